"""Every command line of the documentation is one that the program takes, its Python runs, and its site builds.

Of command lines the options are read; nothing is run.
"""

import functools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import influence_ssl_jax
from influence_ssl_jax.cli import main
from tests import chromium
from tests.test_readme import assert_scores_are_shown

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
SNIPPETS = {
    f"{page.relative_to(ROOT)} {number}": snippet
    for page in DOCS
    for number, snippet in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
}
LEFT_OUT = {
    "score": ["--encoder", "e", "--out", "o"],
    "audit": ["scores"],
    "report": ["scores"],
    "pretrain": ["--out", "o"],
    "probe": ["--encoder", "e"],
}
"""What stands for `…` in a command line."""
READ = """
import json, runpy, sys, traceback, tyro
parse = tyro.cli

class Parsed(BaseException):
    pass

def read(*given, **named):
    parse(*given, **named)
    raise Parsed

tyro.cli = read
wrong = []
for words in json.loads(sys.argv[1]):
    sys.argv = words
    try:
        if words[0] == "influence-ssl":
            from influence_ssl_jax.cli import main
            main.run(words[1:])
        elif words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
        wrong.append([words, "no options are read"])
    except Parsed:
        pass
    except BaseException as error:
        wrong.append([words, repr(error) + traceback.format_exc()[-300:]])
print(json.dumps(wrong))
"""
RUN = """
import contextlib, io, json, sys

said = {}
for name, snippet in json.loads(sys.argv[1]).items():
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(snippet, name, "exec"), {"__name__": "snippet"})
    said[name] = out.getvalue()
print(json.dumps(said))
"""
BUILD = """
import json, sys
from pathlib import Path
from click.testing import CliRunner
from mkdocs.__main__ import cli

settings, site, index, *texts = sys.argv[1:]
statuses = []
for text in texts:
    Path(index).write_text(text)
    statuses.append(CliRunner().invoke(cli, ["build", "--strict", "-f", settings, "-d", site]).exit_code)
print(json.dumps(statuses))
"""
WRONG = (("influence-ssl", "report", "--no-such-option"), ("influence-ssl", "skore"), ("experiments/none.py",))
WITHOUT_OPTIONS = ("benchmarks.agreement", "benchmarks.coverage", "benchmarks.render")


@functools.cache
def commands() -> list[str]:
    """Command lines of the pages, from their blocks (continued lines joined) and from what stands between backticks."""
    lines_of_commands = []
    for page in PAGES:
        text = page.read_text()
        blocks = re.findall(r"^```(?:console|bash)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        blocks += re.findall(r"(?:^ {8}.*\n)+", text, re.MULTILINE)
        for block in blocks:
            block = re.sub(r"\\\n *", " ", block)
            lines = re.sub(r"\n *(?=--|source:|backend:)", " ", block).splitlines()
            lines_of_commands += [line.strip().removeprefix("$ ") for line in lines]
        plain = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        lines_of_commands += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", plain)]
    return list(dict.fromkeys(lines_of_commands))


def words_after(name: str, every: list[str]) -> list[list[str]]:
    """What follows a program's name wherever it is called, shell comments and quotes around it left out."""
    split = []
    for line in every:
        for part in re.findall(rf"(?<![\w/-]){name} ([^\"|&;]*)", re.sub(r"\s#.*", "", line)):
            split.append(shlex.split(part))
    return split


@functools.cache
def dry(target: str) -> list[str]:
    """What `make` would run for a target."""
    # No interpreter is looked for, and the environment has its own name, wherever these tests run.
    make = ["make", "-n", "-B", target, f"PYTHON={sys.executable}", "VENV=.venv"]
    told = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert told.returncode == 0, told.stderr
    return [line.replace(".venv/bin/", "") for line in told.stdout.splitlines()]


def targets() -> list[str]:
    return sorted({words[0] for words in words_after("make", commands()) if words and words[0].isalpha()})


def test_the_documented_targets_are_there():
    assert {"demo", "test", "bench", "check", "docs", "fix"} <= set(targets())
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    for target in sorted({*targets(), *phony[1].split()}):
        assert dry(target)


def lines_of_the_program() -> list[tuple[str, ...]]:
    every = [*commands(), *(line for target in ("demo", "bench") for line in dry(target))]
    return list(dict.fromkeys(tuple(words) for words in words_after("influence-ssl", every) if words[0] != "…"))


def test_what_is_documented_is_found():
    lines = lines_of_the_program()
    assert len([words for words in lines if len(words) > 1]) >= 12
    assert ("demo", "--out", "demo") in lines
    assert ("report", "runs/simclr/scores") in lines


def completed(words: tuple[str, ...]) -> list[str]:
    """A command line with what `…` stands for in it."""
    name, *rest = words
    return ["influence-ssl", name, *(each for word in rest for each in (LEFT_OUT[name] if word == "…" else [word]))]


def scripts() -> list[list[str]]:
    """Documented benchmarks and experiments, with their options; M is the name of a method."""
    every = words_after("python", [*commands(), *dry("bench")])
    chosen = [words for words in every if words and (words[0].startswith("experiments/") or words[0] == "-m")]
    chosen = [["simclr_torch" if word == "M" else word for word in words] for words in chosen]
    ours = ("experiments/", "-m benchmarks.", "-m influence_ssl_jax")
    return [words for words in chosen if " ".join(words).startswith(ours)]


@pytest.fixture(scope="module")
def refused() -> dict[tuple[str, ...], str]:
    """The command lines whose options could not be read, and why: all are read in one process of their own."""
    asked = [completed(words) for words in lines_of_the_program() if len(words) > 1]
    asked += [words for words in scripts() if words[1] not in WITHOUT_OPTIONS]
    asked += map(list, WRONG)
    unique = [json.loads(each) for each in dict.fromkeys(map(json.dumps, asked))]
    run = [sys.executable, "-c", READ, json.dumps(unique)]
    told = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert told.returncode == 0, told.stderr
    return {tuple(words): why for words, why in json.loads(told.stdout.splitlines()[-1])}


@pytest.mark.parametrize("words", lines_of_the_program(), ids=" ".join)
def test_a_command_line_is_taken(words, refused):
    assert words[0] in main.COMMANDS
    assert refused.get(tuple(completed(words)), "") == ""


def test_benchmarks_and_experiments_take_their_documented_options(refused):
    documented = scripts()
    assert len({tuple(words) for words in documented}) >= 10
    for words in documented:
        if words[1] in WITHOUT_OPTIONS:
            assert len(words) == 2
            assert (ROOT / f"{words[1].replace('.', '/')}.py").is_file()
        assert refused.get(tuple(words), "") == ""


def test_a_command_line_that_is_wrong_is_noticed(refused):
    assert set(WRONG) <= refused.keys()


def test_python_of_the_pages_runs(tmp_path):
    """All in one process of its own: the reader has no float64 and no checks of shapes."""
    assert {"docs/concepts.md 0", "docs/networks.md 0"} <= SNIPPETS.keys()
    run = [sys.executable, "-c", RUN, json.dumps(SNIPPETS)]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    for said in json.loads(done.stdout.splitlines()[-1]).values():
        assert_scores_are_shown(said)


@pytest.fixture(scope="module")
def material() -> None:
    """Skip where what builds the site is not installed."""
    pytest.importorskip("material", reason="mkdocs-material is not installed: pip install '.[docs]'")


@pytest.fixture(scope="module")
def site(material, tmp_path_factory) -> Path:
    """The site, built strictly: a link, an anchor or a name that leads nowhere is an error."""
    folder = tmp_path_factory.mktemp("built") / "site"
    built = mkdocs(ROOT / "mkdocs.yml", folder)
    assert built.returncode == 0, built.stderr[-3000:]
    return folder


def mkdocs(configuration: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Build a site strictly."""
    run = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(configuration), "-d", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)


def test_the_site_holds_every_page_and_every_public_name(site):
    pages = [page.relative_to(ROOT / "docs").with_suffix(".html") for page in DOCS]
    assert [str(page) for page in pages if not (site / page).is_file()] == []
    assert {page.stem for page in (ROOT / "notebooks").glob("*.ipynb")} == {
        page.stem for page in (site / "tutorials").glob("*.html")
    }
    reference = (site / "reference" / "index.html").read_text()
    for name in influence_ssl_jax.__all__:
        assert re.search(rf'id="influence_ssl_jax\.[\w.]*\b{name}"', reference), name


def test_formulas_are_written_out_and_outputs_of_notebooks_shown(site):
    theory = (site / "theory.html").read_text()
    assert theory.count("<math") > 300
    assert not re.search(r"\$[^$<]*\\\\(frac|lambda|top)", theory)
    tutorial = (site / "tutorials" / "compare_ihvp.html").read_text()
    assert tutorial.count('src="data:image/png;base64,') == 2
    assert "Coverage of 90 % intervals is expected to be" in tutorial


@pytest.mark.skipif(chromium.PROGRAM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_of_the_site_have_nothing_to_complain_of(site, tmp_path, width):
    with chromium.browser(tmp_path / "profile") as opened:
        for page in ("index.html", "theory.html", "tutorials/compare_ihvp.html"):
            assert chromium.look(opened, site / page, width, root=site) == [], page


def test_a_link_that_leads_nowhere_stops_the_build(material, tmp_path):
    """With the settings of the site, on two pages of their own; all are built in one process."""
    pages = tmp_path / "docs"
    pages.mkdir()
    (pages / "other.md").write_text("# Other\n\n## Here\n")
    settings = (ROOT / "mkdocs.yml").read_text()
    kept = [settings[settings.index("validation:") : settings.index("nav:")], "site_name: two pages"]
    (tmp_path / "mkdocs.yml").write_text("\n".join(kept))
    texts = [f"# Start\n\n[there]({link})\n" for link in ("other.md#here", "absent.md", "other.md#absent")]
    run = [sys.executable, "-c", BUILD, tmp_path / "mkdocs.yml", tmp_path / "site", pages / "index.md", *texts]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert json.loads(done.stdout) == [0, 1, 1], done.stderr


def test_make_takes_the_first_interpreter_that_starts(tmp_path):
    """One that is found and does not start, as the stand-ins of a version manager, is passed over."""
    binaries = tmp_path / "bin"
    binaries.mkdir()

    def interpreter(name: str, does: str) -> None:
        (binaries / name).write_text(f"#!/bin/sh\n{does}\n")
        (binaries / name).chmod(0o755)

    def make(*options: str) -> subprocess.CompletedProcess[str]:
        run = ["make", "demo", f"VENV={tmp_path / 'none'}", *options]
        environment = {"PATH": f"{binaries}:/usr/bin:/bin"}
        return subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)

    for name in ("python3.13", "python3.12", "python3.11", "python3"):
        interpreter(name, "exit 127")
    assert "No Python from 3.11 on" in make().stderr
    interpreter("python3.12", f'exec "{sys.executable}" "$@"')
    assert "|| python3.12 -m venv" in make("--dry-run").stdout


def test_files_and_names_of_the_instructions_for_contributors_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    files = {span for span in spans if re.fullmatch(r"[\w./]+(\.py|\.toml|\.md|/)", span)}
    absent = [each for each in files if not any((base / each).exists() for base in (ROOT, ROOT / "influence_ssl_jax"))]
    assert (len(files) > 30, absent) == (True, [])
    sources = [path for top in ("influence_ssl_jax", "tests", "benchmarks") for path in (ROOT / top).rglob("*.py")]
    code = "\n".join(path.read_text() for path in sources if path != Path(__file__))
    names = {span for span in spans if re.fullmatch(r"[A-Z]\w+|[a-z]+_\w+", span)}
    assert (len(names) > 20, [each for each in names if not re.search(rf"\b{each}\b", code)]) == (True, [])


def test_the_tree_lists_every_part_of_the_package():
    tree = (ROOT / "CONTRIBUTING.md").read_text().split("```\n")[2]
    package = tree.split("tests/", 1)[0]
    parts = {path.name + "/" * path.is_dir() for path in (ROOT / "influence_ssl_jax").iterdir()}
    parts -= {"__pycache__/", "__main__.py", "py.typed"}
    assert parts <= set(re.findall(r"[a-z_]+(?:/|\.py)", package))
