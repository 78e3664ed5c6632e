"""The core runs without the optional packages, and what needs one of them names the extra that installs it."""

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from influence_ssl_jax.errors import EXTRAS

ROOT = Path(__file__).parents[1]
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "orbax": "orbax-checkpoint"}
"""Distributions whose name differs from that of the package that they install."""
PART_OF_FLAX = {"optax", "orbax", "rich", "scipy"}
"""Packages that flax or jax installs and imports itself, so that the core is never without them."""
BLOCKED = sorted({name for names in EXTRAS.values() for name in names} - PART_OF_FLAX)
CORE = """
from influence_ssl_jax import curvature, ihvp, losses, nets, problem, scoring
from influence_ssl_jax.curvature import contributions, gradients, matrices, products
from influence_ssl_jax.scoring import Scorer, Scoring
import influence_ssl_jax as isj

isj.EKFAC(rank=8), isj.Gram(), isj.Problem, isj.CosineDistance(), isj.GaussianNoise(0.2)
"""
NEEDS = {
    "import influence_ssl_jax as isj; isj.Folder": "data",
    "from influence_ssl_jax.data import Folder": "data",
    "from influence_ssl_jax.scoring import self_influence": "data",
    "import influence_ssl_jax.store": "data",
    "import influence_ssl_jax.evaluation.statistics": "data",
    "import influence_ssl_jax.report.render": "report",
    "from influence_ssl_jax.data.tfds import Tfds; Tfds('mnist').open()": "tfds",
    "from influence_ssl_jax.cli.main import run; sys.exit(run(['score', '--help']))": "cli",
}
"""Programs, and the extra that each asks for where its packages are not installed."""
TRIED = """
import io, json, sys, contextlib, traceback

programs, core = json.loads(sys.argv[1]), sys.argv[2]
sys.modules.update(dict.fromkeys(json.loads(sys.argv[3])))  # importing any of them is an error
exec(core, {})
said = {}
for program, allowed in programs.items():
    kept = dict(sys.modules)
    for name in allowed:
        del sys.modules[name]
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        try:
            exec(program, {"sys": sys})
        except SystemExit:
            pass
        except ImportError as error:
            told.write(f"{type(error).__name__}: {error}")
    said[program] = told.getvalue()
    for name in sys.modules.keys() - kept.keys():
        if name.startswith("influence_ssl_jax"):
            del sys.modules[name]
    sys.modules.update(dict.fromkeys(allowed))
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    """What each program of `NEEDS` says where nothing but the extras below the one that it asks for is installed."""
    allowed = {program: EXTRAS["data"] if extra == "tfds" else () for program, extra in NEEDS.items()}
    programs = {program: [name for name in names if name in BLOCKED] for program, names in allowed.items()}
    run = [sys.executable, "-c", TRIED, json.dumps(programs), CORE, json.dumps(BLOCKED)]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"the core takes more than jax, flax, numpy and jaxtyping:\n{done.stderr[-2000:]}"
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("program", "extra"), NEEDS.items())
def test_an_absent_extra_is_named_in_one_sentence(said, program, extra):
    assert f"pip install 'influence-ssl-jax[{extra}]'" in " ".join(said[program].split())
    assert "Traceback" not in said[program]


def test_the_extras_install_what_the_package_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    core = {re.split(r"[><=\[; ]", each)[0] for each in project["dependencies"]}
    assert core == {"jax", "flax", "numpy", "jaxtyping"}
    for extra, packages in EXTRAS.items():
        listed = {re.split(r"[><=; ]", each)[0] for each in extras[extra]}
        assert {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in packages} <= listed, extra
    assert set(extras) >= {*EXTRAS, "all", "docs", "dev", "bench", "cuda", "tpu"}


def test_everything_is_installed_by_all_and_by_dev():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    def reached(extra: str) -> set[str]:
        inner = [re.fullmatch(r"influence-ssl-jax\[(.*)\]", each) for each in project[extra]]
        return {extra}.union(*(reached(name) for match in inner if match for name in match[1].split(",")))

    assert reached("all") >= set(EXTRAS)
    assert reached("dev") >= {*EXTRAS, "all", "docs"}
    assert reached("bench") >= {"all"}


def test_flax_and_jax_install_what_the_core_is_never_without():
    needed = {
        re.split(r"[><=\[; ]", each)[0].lower()
        for name in ("flax", "jax")
        for each in importlib.metadata.requires(name) or []
        if "extra ==" not in each
    }
    assert {DISTRIBUTIONS.get(name, name) for name in PART_OF_FLAX} <= needed


def test_every_package_of_development_is_pinned():
    """`make test` installs constraints.txt without resolving anything; `pip check` finds what those packages lack."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = declared["optional-dependencies"]

    def names(requirements):
        for requirement in requirements:
            own = re.match(r"influence-ssl-jax\[(.*)\]", requirement)
            if own:
                for extra in own[1].split(","):
                    yield from names(extras[extra])
            else:
                yield re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-").replace(".", "-")

    pinned = {
        line.partition("==")[0].lower().replace("_", "-").replace(".", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    wanted = set(names([*declared["dependencies"], *extras["dev"]]))
    assert wanted <= pinned, sorted(wanted - pinned)
    assert len(wanted) > 20
