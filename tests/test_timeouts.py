"""No test, benchmark or experiment waits for ever for a process."""

import ast
from pathlib import Path

WAITING = {"run", "communicate", "check_call", "check_output"}
"""Calls that wait for a process to end; `wait` too, where it is called on one."""


def unbounded(file):
    """Lines of a file that wait for a process and say not how long."""
    places = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner = ast.unparse(node.func.value)
        waits = (owner == "subprocess" and node.func.attr in WAITING) or node.func.attr == "communicate"
        waits |= node.func.attr == "wait" and "process" in owner
        if waits and "timeout" not in {option.arg for option in node.keywords}:
            places.append(f"{file.name}:{node.lineno}")
    return places


def test_every_wait_for_a_process_has_a_limit():
    root = Path(__file__).parents[1]
    files = sorted(file for folder in ("tests", "benchmarks", "experiments") for file in (root / folder).rglob("*.py"))
    assert len(files) > 250
    assert [line for file in files for line in unbounded(file)] == []


def test_a_wait_without_one_is_found(tmp_path):
    (tmp_path / "a.py").write_text(
        "subprocess.run([])\nprocess.wait()\nx.communicate()\nprocess.wait(timeout=3)\nrun()\n"
    )
    assert unbounded(tmp_path / "a.py") == ["a.py:1", "a.py:2", "a.py:3"]
