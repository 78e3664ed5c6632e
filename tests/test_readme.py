"""The README's Python runs as it stands, and the commands that it shows exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from influence_ssl_jax.cli.main import COMMANDS

README = (Path(__file__).parents[1] / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_is_something_to_run():
    assert SNIPPETS


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippet_runs(snippet, tmp_path):
    """In a process of its own: the reader has no float64 and no checks of shapes."""
    command = [sys.executable, "-c", snippet]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "score" in done.stdout


def test_commands_exist():
    shown = set(re.findall(r"influence-ssl ([a-z]+)", README))
    assert shown
    assert shown <= set(COMMANDS)
