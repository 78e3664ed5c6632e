"""Every command line of README, docs and Makefile is one that the program takes: its options are read, nothing is run."""

import functools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from influence_ssl_jax.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LEFT_OUT = {
    "score": ["--encoder", "e", "--out", "o"],
    "audit": ["scores"],
    "report": ["scores"],
    "pretrain": ["--out", "o"],
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
WRONG = (("influence-ssl", "report", "--no-such-option"), ("influence-ssl", "skore"), ("experiments/none.py",))
WITHOUT_OPTIONS = ("benchmarks.agreement", "benchmarks.render")


@functools.cache
def commands() -> list[str]:
    """Command lines of the pages, from their blocks (continued lines joined) and from what stands between backticks."""
    found = []
    for page in PAGES:
        text = page.read_text()
        blocks = re.findall(r"^```(?:console|bash)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        blocks += re.findall(r"(?:^ {8}.*\n)+", text, re.MULTILINE)
        for block in blocks:
            block = re.sub(r"\\\n *", " ", block)
            lines = re.sub(r"\n *(?=--|source:|backend:)", " ", block).splitlines()
            found += [line.strip().removeprefix("$ ") for line in lines]
        plain = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        found += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", plain)]
    return list(dict.fromkeys(found))


def words_after(name: str, every: list[str]) -> list[list[str]]:
    """What follows a program's name wherever it is called, shell comments and quotes around it left out."""
    found = []
    for line in every:
        for part in re.findall(rf"(?<![\w/-]){name} ([^\"|&;]*)", re.sub(r"\s#.*", "", line)):
            found.append(shlex.split(part))
    return found


@functools.cache
def dry(target: str) -> list[str]:
    """What `make` would run for a target."""
    told = subprocess.run(
        ["make", "-n", "-B", target], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert told.returncode == 0, told.stderr
    return [line.replace(".venv/bin/", "") for line in told.stdout.splitlines()]


def targets() -> list[str]:
    return sorted({words[0] for words in words_after("make", commands()) if words and words[0].isalpha()})


def test_the_documented_targets_are_there():
    assert {"demo", "test", "bench", "check"} <= set(targets())
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
    found = [words for words in every if words and (words[0].startswith("experiments/") or words[0] == "-m")]
    found = [["simclr" if word == "M" else word for word in words] for words in found]
    ours = ("experiments/", "-m benchmarks.", "-m influence_ssl_jax")
    return [words for words in found if " ".join(words).startswith(ours)]


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
    found = scripts()
    assert len({tuple(words) for words in found}) >= 10
    for words in found:
        if words[1] in WITHOUT_OPTIONS:
            assert len(words) == 2
            assert (ROOT / f"{words[1].replace('.', '/')}.py").is_file()
        assert refused.get(tuple(words), "") == ""


def test_a_command_line_that_is_wrong_is_noticed(refused):
    assert set(WRONG) <= refused.keys()
