"""Scores through the command line, killed at random moments: a short form of `benchmarks/fault_injection.py`.

A killed pretraining run is in `tests/train/test_loop.py`.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_killed_runs_end_with_the_bytes_of_an_undisturbed_one(tmp_path):
    out = tmp_path / "found.json"
    few = ["--faults", "kills", "--kills", "2", "--training-kills", "0", "--at-most", "2", "--images", "120"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "benchmarks.fault_injection", *few, "--out", str(out)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=800)
    assert run.returncode == 0, run.stdout + run.stderr
    (record,) = json.loads(out.read_text())
    assert record["kills"] >= 2
    assert record["faults survived"] == record["faults tried"] >= 2
    assert record["examples lost or repeated"] == 0
