"""The README is short, its Python runs as it stands, its commands, links and picture exist."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from influence_ssl_jax.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_is_something_to_run():
    assert SNIPPETS


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippet_runs(snippet, tmp_path):
    """In a process of its own: the reader has no float64 and no checks of shapes."""
    command = [sys.executable, "-c", snippet]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert_scores_are_shown(done.stdout)


def assert_scores_are_shown(said):
    """A table of three numbers a column: scores that are finite, positive and fall, and what stands beside them."""
    rows = dict(re.findall(r"^(\w+): \[\[(.*)\]\]$", said, re.MULTILINE))
    columns = {name: [float(value) for value in row.split(",")] for name, row in rows.items() if name != "id"}
    assert set(columns) == {"score", "score_se", "alignment_loss"}
    for values in columns.values():
        assert len(values) == 3
        assert all(math.isfinite(value) and value > 0 for value in values)
    assert columns["score"] == sorted(columns["score"], reverse=True)
    assert len(set(rows["id"].split(","))) == 3


@pytest.mark.parametrize("wrong", ["nan", "0.5", "-1"])
def test_a_table_without_scores_is_noticed(wrong):
    """Scores that are not numbers, do not fall, or are negative."""
    good = 'id: [["7","2","9"]]\nscore: [[0.4,0.3,0.2]]\nscore_se: [[0.1,0.1,0.1]]\nalignment_loss: [[0.2,0.2,0.1]]\n'
    assert_scores_are_shown(good)
    with pytest.raises(AssertionError):
        assert_scores_are_shown(good.replace("0.3", wrong))


def test_it_is_read_in_three_minutes():
    assert len(README.split()) <= 700


def test_links_lead_to_files_and_the_picture_is_small():
    links = [each for each in re.findall(r"\]\(([^)#]+)", README) if "://" not in each]
    assert len(links) >= 12
    assert [each for each in links if not (ROOT / each).is_file()] == []
    (picture,) = re.findall(r"!\[.+\]\((.*)\)", README)
    assert (ROOT / picture).read_bytes().startswith(b"\x89PNG")
    assert (ROOT / picture).stat().st_size < 150_000


def test_commands_exist():
    shown = set(re.findall(r"influence-ssl ([a-z]+)", README))
    assert shown
    assert shown <= set(COMMANDS)
