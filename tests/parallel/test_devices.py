"""Eight simulated devices give what one gives."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from influence_ssl_jax.parallel.mesh import owners

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "tests.parallel.eight_devices"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=800)
    assert run.returncode == 0, run.stderr
    record = json.loads(run.stdout.splitlines()[-1])
    assert record["devices"] == 8
    return record


def assert_first_are_the_same(scores, want):
    """The three highest scores, 1 % of all, are of the same images in the same order."""
    assert (np.argsort(-scores)[:3] == np.argsort(-want)[:3]).all()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rounding"), [("EKFAC", 1e-5), ("Gram", 1e-5), ("CG", 1e-4)])
def test_scores_in_float32_are_those_of_one_device_and_rank_alike(report, name, rounding):
    record = report["scored"][name]
    plain, sharded = np.array(record["plain"]), np.array(record["sharded"])
    assert len(plain) == 203
    np.testing.assert_allclose(sharded, plain, rtol=rounding)
    assert_first_are_the_same(sharded, plain)
    assert record["batches"] == 5  # three of eight devices had only padding
    assert record["shapes"]


@pytest.mark.slow
def test_rows_that_devices_share_give_the_scores_and_bounds_of_rows_in_one_piece(report):
    """In float64. With little damping the bounds of rows in bfloat16 say nothing, and follow from numbers that cancel."""
    record = report["shared rows"]
    for (score, low, high), rounding in zip(record["apart"], (1e-12, 1e-12, 1e-6), strict=True):
        assert score < 1e-12
        assert max(low, high) < rounding
    assert record["elsewhere"]
    assert record["taken up"]


@pytest.mark.slow
def test_each_device_has_its_share_of_the_rows_as_the_formula_says(report):
    """324 parameters in 21 spans of at most 16, three spans on each of eight devices; 40 rows in bfloat16."""
    record = report["shared rows"]
    shared, whole = record["formula"]
    assert record["bytes"] == [shared] * 8
    assert (shared, whole) == (3 * 40 * 16 * 2, 21 * 40 * 16 * 2)
    assert record["of four"]  # the devices of a process take all rows of a fit by several processes
    assert record["bytes of four"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "devices"), [("grown", [1, 8]), ("shrunk", [8, 1])])
def test_a_run_goes_on_with_another_number_of_devices_and_differs_by_rounding(report, name, devices):
    """Of LoGra, with the curvature set and the images split; `same` stops and goes on with one device."""
    same, record = report["continued"]["same"], report["continued"][name]
    assert (same["devices"], record["devices"]) == ([1, 1], devices)
    assert record["index"] == same["index"] == list(range(203))
    assert record["rows"] == same["rows"] == 203  # nothing twice
    assert record["resumed"] == same["resumed"] == 40
    np.testing.assert_allclose(record["score"], same["score"], rtol=1e-5)
    assert_first_are_the_same(np.array(record["score"]), np.array(same["score"]))
    if name == "grown":  # fitted and begun as the other
        assert record["score"][:40] == same["score"][:40]


@pytest.mark.slow
def test_a_pretraining_gradient_is_that_of_one_device(report):
    assert max(report["trained"]) < 1e-12


@pytest.mark.slow
def test_eigendecompositions_are_spread_and_come_back(report):
    assert report["decomposed"]["error"] < 1e-11


@given(costs=st.lists(st.floats(0.1, 100), min_size=1, max_size=30), workers=st.integers(1, 9))
def test_no_worker_is_given_much_more_than_its_share(costs, workers):
    owner = owners(costs, workers)
    load = np.bincount(owner, weights=costs, minlength=workers)
    assert load.max() <= sum(costs) / workers + max(costs)
