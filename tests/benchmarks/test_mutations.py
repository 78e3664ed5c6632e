"""The mutation harness: every listed fault has its place, rules change one thing, and what came of a fault is told apart."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import mutations
from benchmarks.mutations import Config, Fault, Results, by_rule, likeliest, put_in, realistic, sources
from benchmarks.planted import EQUIVALENT, LIKELY, PLANTED

FILES = {
    "influence_ssl_jax/linalg/first.py": '"""A module of numbers: 1 + 1."""\n\nWIDTH = 3\n\n\ndef sized(x, by=2):\n'
    '    """Return 2 x."""\n    if x > 5:\n        raise ValueError(f"{x + 1} is more than 5")\n    return by * x\n',
    "influence_ssl_jax/linalg/second.py": "def other(x):\n    return x.T @ x\n",
}

SEVERAL = """
import time
import pytest

def test_fine(): pass
def test_wrong(): assert 1 == 2
def test_stops(): 1 / 0
def test_quiet():
    with pytest.raises(ValueError): pass
def test_long(): time.sleep(60)
"""


def test_every_listed_fault_is_found_in_one_place_and_there_are_enough():
    files = sources()
    faults = realistic(files)
    assert all((mutations.ROOT / where).exists() for named in mutations.TESTS.values() for where in named)
    assert len(faults) == len(PLANTED) >= 100
    assert {fault.folder for fault in faults} <= set(mutations.TESTS)
    assert set(LIKELY) | set(EQUIVALENT) <= {*(fault.name for fault in faults), *EQUIVALENT}
    for fault in faults:
        ast.parse(fault.planted(files[fault.file]))
    made = by_rule(files, Config().operators, Config().seed)
    assert len(faults) + len(made) >= 150
    assert {fault.folder for fault in made} == set(mutations.SAMPLED)
    for fault in made:
        text = fault.planted(files[fault.file])
        assert ast.dump(ast.parse(text)) != ast.dump(ast.parse(files[fault.file])), fault.name


def test_a_text_that_is_nowhere_or_twice_is_an_error_that_names_it():
    listed = (("gone", "return by / x", ""), ("twice", "return", "yield"), ("here", "by * x", "by / x"))
    with pytest.raises(ValueError, match=r"(?s)gone: 0 places hold .*twice: 2 places hold"):
        realistic(FILES, listed)
    (fault,) = realistic(FILES, listed[2:])
    assert fault.planted(FILES[fault.file]).endswith("return by / x\n")


def test_rules_change_the_inside_of_functions_and_nothing_that_is_only_said():
    names = {fault.name for fault in by_rule(FILES, 99, 0)}
    assert names == {
        "sized: x > 5 → x >= 5",
        "sized: 5 → 6 in x > 5",
        "sized: by * x → (by) / (x)",
        "other: x.T → x",
    }


def test_the_sample_does_not_know_where_code_lies():
    moved = {"influence_ssl_jax/linalg/merged.py": "\n".join(FILES.values())}
    for count in (1, 3):
        before, after = ([fault.name for fault in by_rule(files, count, 7)] for files in (FILES, moved))
        assert before == after
        assert len(before) == count


def test_the_likeliest_tests_come_first(tmp_path):
    for name, text in {"a": "sized(3)", "b": "other(4)", "first": ""}.items():
        path = tmp_path / "tests" / "linalg" / f"test_{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    fault = next(fault for fault in by_rule(FILES, 99, 0) if fault.name.startswith("other"))
    with pytest.raises(ValueError, match="tests/ihvp, which TESTS names, is not there"):
        likeliest(fault, FILES, tmp_path)
    (tmp_path / "tests" / "ihvp").mkdir()
    assert likeliest(fault, FILES, tmp_path)[0] == "tests/linalg/test_b.py"
    stray = Fault("x", "realistic", "influence_ssl_jax/nowhere/x.py", 0, 0, "")
    with pytest.raises(ValueError, match="influence_ssl_jax/nowhere"):
        likeliest(stray, FILES, tmp_path)


def test_a_fault_is_taken_out_again(tmp_path):
    (tmp_path / "influence_ssl_jax" / "linalg").mkdir(parents=True)
    (fault,) = realistic(FILES, (("here", "by * x", "by / x"),))
    with put_in(fault, tmp_path, FILES):
        assert "by / x" in (tmp_path / fault.file).read_text()
    assert (tmp_path / fault.file).read_text() == FILES[fault.file]


def test_what_came_of_a_fault_is_told_apart(tmp_path):
    """In a process of its own: it divides, which one that computes must not."""
    (tmp_path / "test_all.py").write_text(SEVERAL)
    (tmp_path / "test_gone.py").write_text("import nothing_of_that_name\n")
    asked = [f"all.py::test_{name}" for name in ("fine", "wrong", "stops", "quiet", "long")]
    asked.insert(4, "gone.py")
    code = (
        "import hypothesis, json, pytest, sys; from pathlib import Path; from benchmarks.mutations import tried; "
        "limits = {'all.py::test_long': 2}; "
        "print(json.dumps([tried(Path(sys.argv[1]), ['test_' + each], limits.get(each, 60)) for each in sys.argv[2:]]))"
    )
    run = [sys.executable, "-c", code, str(tmp_path), *asked]
    told = subprocess.run(run, cwd=mutations.ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert told.returncode == 0, told.stderr
    record = json.loads(told.stdout)
    assert [each["outcome"] for each in record] == [
        "survived",
        "assertion",
        "exception",
        "assertion",
        "import",
        "undecided",
    ]
    assert record[1]["by"].endswith("test_wrong")
    assert record[2]["error"].startswith("ZeroDivisionError")


def test_results_are_gone_on_with_and_name_their_survivors(tmp_path, monkeypatch):
    monkeypatch.setattr(mutations, "_made", dict)
    every = by_rule(FILES, 99, 0)
    config = Config(out=tmp_path / "r.json")
    results = Results(config.out)
    results.add(every[0], {"outcome": "survived", "by": "", "error": "", "seconds": 1}, every, config)
    results.add(every[1], {"outcome": "assertion", "by": "t", "error": "", "seconds": 1}, every, config)
    record = json.loads(Path(config.out).read_text())
    assert (record["faults_there_are"], record["faults_tried"]) == (4, 2)
    assert record["outcomes"] == {"survived": 1, "assertion": 1}
    assert list(record["survivors"]) == [every[0].key]
    assert set(Results(config.out).faults) == {every[0].key, every[1].key}
