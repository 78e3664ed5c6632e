"""What is added to one list is in the help, is accepted, recorded, read again and compared."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from influence_ssl_jax.ihvp import BACKENDS, Backend, Grid

PROGRAM = Path(__file__).with_name("registered.py")


def test_an_entry_of_each_kind_is_added_in_one_place_and_walks_the_command_line(tmp_path):
    """In a process of its own: the lists are read once, when the command line is imported."""
    command = [sys.executable, str(PROGRAM), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr
    said = json.loads((tmp_path / "said.json").read_text())
    assert {name: entry["status"] for name, entry in said.items()} == dict.fromkeys(said, 0), said

    words = said["score --help"]["text"]
    assert "  plain  Never, but in this test." in words
    assert "  random-dots  Images of this test." in words
    assert "  distance  A measurement of this test." in words
    assert "faint" in said["perturbations"]["text"]
    assert "  random-dots  Images of this test." in said["pretrain --help"]["text"]
    assert "  contrast  Contrast, views simclr" in said["pretrain --help"]["text"]
    assert "--training.loss.temperature FLOAT" in said["contrast"]["text"]

    record = json.loads((tmp_path / "scores" / "run.json").read_text())
    kept = record["configuration"]
    assert (kept["backend"]["class"], kept["backend"]["rank"]) == ("Plain", 3)
    assert (kept["source"]["class"], kept["measurement"]["class"]) == ("RandomDots", "Distance")
    assert kept["perturbation"]["name"] == "faint"
    assert record["identity"]["network"]["network"]["module"]["class"] == "Flat"
    assert record["counts"]["scored"] == 12
    assert (tmp_path / "scores" / "report.html").read_text().count("data:image/png") > 0

    rows = json.loads((tmp_path / "compared" / "comparison.json").read_text())["rows"]
    by_name = {row["name"]: row for row in rows if row["backend"]}
    assert list(by_name) == ["Exact", "Plain 5", "Plain 7"]
    assert all(row["reason"] == "" for row in by_name.values())
    assert by_name["Exact"]["deviation"]["raw"]["median"] < 1e-4
    assert "Plain 7" in said["compare"]["text"]


@pytest.mark.parametrize("kind", BACKENDS, ids=lambda kind: kind.__name__)
def test_every_backend_declares_when_to_use_it_and_what_a_comparison_tries(kind):
    assert kind.when_to_use[0].isupper()
    assert kind.when_to_use.endswith(".")
    variants = kind.variants(Grid((3, 5), (2,), (4,), (6,), deflated=(7,)))
    assert variants
    assert all(type(each) is kind for each in variants)
    assert len(set(variants)) == len(variants)


def test_a_backend_without_a_grid_is_compared_by_its_defaults():
    class Bare(Backend):
        def __eq__(self, other):
            return type(other) is Bare

    Bare.__abstractmethods__ = frozenset()
    assert Bare.variants(Grid()) == (Bare(),)
