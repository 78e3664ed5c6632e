"""What an installed package holds: every module, the report's templates, the tested versions, the command."""

import configparser
import email
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that the build backend makes of the tree."""
    pytest.importorskip("hatchling", reason="the build backend is not installed: pip install '.[dev]'")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    told = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert told.returncode == 0, told.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = {
        path for path in (ROOT / "influence_ssl_jax").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    want = {str(path.relative_to(ROOT)) for path in package} | {"influence_ssl_jax/constraints.txt"}
    assert {name for name in names if ".dist-info/" not in name} == want
    assert {"influence_ssl_jax/report/templates/report.html", "influence_ssl_jax/report/templates/style.css"} <= names


def test_the_wheel_says_what_it_needs_and_what_it_runs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        folder = next(name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name)
        described = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
        points = configparser.ConfigParser()
        points.read_string(archive.read(f"{folder}/entry_points.txt").decode())
        constraints = archive.read("influence_ssl_jax/constraints.txt")
        assert f"{folder}/licenses/LICENSE" in archive.namelist()
    assert described["Name"] == "influence-ssl-jax"
    assert described["Requires-Python"] == ">=3.11"
    assert any(line.startswith("jax>=") for line in described.get_all("Requires-Dist"))
    assert dict(points["console_scripts"]) == {"influence-ssl": "influence_ssl_jax.cli.main:main"}
    assert constraints == (ROOT / "constraints.txt").read_bytes()


def test_the_command_runs_out_of_the_wheel(wheel, tmp_path):
    """From the archive itself, in an empty folder: nothing of the tree is beside it."""
    code = f"import sys; sys.path.insert(0, {str(wheel)!r}); "
    code += "from influence_ssl_jax.cli import main; sys.exit(main.run(['-h']))"
    run = [sys.executable, "-P", "-c", code]
    told = subprocess.run(run, cwd=tmp_path, env={}, capture_output=True, text=True, check=False, timeout=120)
    assert told.returncode == 0, told.stderr
    assert "influence-ssl COMMAND" in told.stdout
