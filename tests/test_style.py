"""Docstrings of the package begin with a short sentence."""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "influence_ssl_jax"
MOST_WORDS = 12
"""Words of a first line; what stands between backticks counts as one."""
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
BLOCKS = (ast.stmt, ast.excepthandler, ast.match_case)


def statements(node):
    """A node and all statements inside it; expressions, which have no docstring, are passed by."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, BLOCKS):
            yield from statements(child)


def long_first_lines(file):
    """First lines of docstrings of a file that are too long, each with its place and its number of words."""
    found = []
    for node in statements(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, DOCUMENTED) or not (text := ast.get_docstring(node)):
            continue
        first = text.splitlines()[0]
        words = len(re.sub("`[^`]*`", "formula", first).split())
        if words > MOST_WORDS:
            found.append(f"{file.name}:{getattr(node, 'lineno', 1)}: {words} words: {first}")
    return found


def test_docstrings_begin_with_a_short_sentence():
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 100
    assert [line for file in files for line in long_first_lines(file)] == []


def test_a_long_first_line_is_found_and_a_formula_is_one_word(tmp_path):
    sentence = "One two three four five six seven eight nine ten eleven"
    source = f'"""{sentence} twelve thirteen."""\n'
    source += f'class A:\n    """{sentence} `x = y + z`.\n\n    {sentence} twelve thirteen.\n    """\n'
    source += f'    def f(self):\n        """{sentence} twelve thirteen fourteen."""\n'
    (tmp_path / "a.py").write_text(source)
    assert long_first_lines(tmp_path / "a.py") == [
        f"a.py:1: 13 words: {sentence} twelve thirteen.",
        f"a.py:7: 14 words: {sentence} twelve thirteen fourteen.",
    ]
