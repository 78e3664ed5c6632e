"""Scores from inner products alone are the dense formula, for any part of the curvature set."""

import json

import numpy as np
import pytest

from experiments.curvature_set import HERE, Products, curve, sweep

RESULTS = sorted((HERE / "results").glob("curvature_set_*.json"))


def vectors():
    """32 rows that C is made of and 10 gradients, of 40 parameters."""
    return np.random.default_rng(0).normal(size=(42, 40)) * np.linspace(0.2, 2, 40)[None]


def products():
    held = vectors()
    return Products({"products": held @ held.T, "size": np.asarray(40)}, 32)


@pytest.mark.parametrize("chosen", [np.arange(32), np.arange(5, 17)])
def test_scores_and_damping_are_those_of_the_dense_matrix(chosen):
    rows, gradients = vectors()[chosen], vectors()[32:]
    matrix = rows.T @ rows / len(rows)
    for dimension in (0.2, 0.8, None):
        damping = products().damping(chosen, dimension)
        shrunk = matrix @ np.linalg.inv(matrix + damping * np.eye(40))
        if dimension is None:
            np.testing.assert_allclose(damping, 0.1 * np.trace(matrix) / 40, rtol=1e-12)
        else:
            np.testing.assert_allclose(np.trace(shrunk), dimension * len(rows), rtol=1e-5)
        want = np.sum(gradients.T * np.linalg.solve(matrix + damping * np.eye(40), gradients.T), axis=0)
        np.testing.assert_allclose(products().scores(chosen, damping), want, rtol=1e-9)


def test_the_curve_ends_at_the_largest_set_and_the_sweep_knows_itself():
    rows = curve(products(), 32, 0.5)
    assert [row["rows"] for row in rows] == [32, 16]
    assert rows[0]["with the largest"]["spearman"] == pytest.approx(1)
    assert "disjoint" in rows[1]
    assert rows[1]["jackknife"] > rows[0]["jackknife"] > 0
    points = sweep(products(), np.arange(10.0), 32, (0.1, 0.9))
    for row in points:
        assert row["with the others"][row["effective dimension"]] == pytest.approx(1)


def test_there_are_results():
    assert [path.stem for path in RESULTS]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_committed_result_has_no_place_of_a_machine_in_it(path):
    text = path.read_text()
    assert "/" not in text
    record = json.loads(text)
    assert record["configuration"]["rows"] == record["curve"]["0.5"][0]["rows"]
