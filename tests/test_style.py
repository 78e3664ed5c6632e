"""Docstrings of the package begin with a short sentence; no modules import each other."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

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
    places = []
    for node in statements(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, DOCUMENTED) or not (text := ast.get_docstring(node)):
            continue
        first = text.splitlines()[0]
        words = len(re.sub("`[^`]*`", "formula", first).split())
        if words > MOST_WORDS:
            places.append(f"{file.name}:{getattr(node, 'lineno', 1)}: {words} words: {first}")
    return places


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


def imports(root, packages):
    """The modules of packages that each of them imports, inside functions too; not what only type checkers read."""
    files = {}
    for file in (file for package in packages for file in sorted((root / package).rglob("*.py"))):
        files[".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")] = file

    def names(node):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in files else node.module for name in whole)
        for child in ast.iter_child_nodes(node):
            yield from names(child)

    return {name: {*names(ast.parse(file.read_text()))} & {*files} - {name} for name, file in files.items()}


def test_no_modules_import_each_other():
    graph = imports(PACKAGE.parent, ("influence_ssl_jax", "benchmarks", "experiments", "tests"))
    assert len(graph) > 300
    assert "influence_ssl_jax.scoring.scores" in graph["influence_ssl_jax.scoring.stream"]
    assert len([*graphlib.TopologicalSorter(graph).static_order()]) == len(graph)  # a circle is an error that names it


def test_a_circle_is_an_error_even_inside_a_function(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.py").write_text("from a import two\n")
    (tmp_path / "a" / "two.py").write_text("def f():\n    import a.one\n")
    graph = imports(tmp_path, ("a",))
    assert graph == {"a.one": {"a.two"}, "a.two": {"a.one"}}
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(graph).prepare()
