"""Rows of a comparison: exact where the backend is, a reason where it cannot, and the scores of the scoring path."""

import functools

import numpy as np
import pytest

from influence_ssl_jax.data import Arrays, ToInput
from influence_ssl_jax.data.loader import batches
from influence_ssl_jax.evaluation.certificate import Audit
from influence_ssl_jax.evaluation.comparison import (
    Examples,
    Grid,
    backends_to_compare,
    baselines,
    compare_backends,
    label,
    rankings,
)
from influence_ssl_jax.evaluation.exact import choose_kind, exact_scores
from influence_ssl_jax.ihvp import CG, Damping, Deflated, Diagonal, Exact, Identity, LiSSA
from influence_ssl_jax.losses import CosineDistance
from influence_ssl_jax.scoring.scores import Scoring
from influence_ssl_jax.scoring.stream import self_influence
from tests import problems

IMAGE = 3
TRANSFORM = ToInput(IMAGE, IMAGE, 3)
SCORING = Scoring(draws=2, seed=3)


@functools.cache
def source():
    return Arrays(np.random.default_rng(1).integers(0, 256, (10, IMAGE, IMAGE, 3), dtype=np.uint8)).open()


@functools.cache
def the_problem(curvature="fisher"):
    return problems.problem(CosineDistance(), curvature, module=problems.Linear(), image=IMAGE, channels=3)


@functools.cache
def examples():
    loaded = list(batches(source(), TRANSFORM, 4, SCORING.key, np.arange(10)))
    valid = np.concatenate([part.valid for part in loaded])
    return Examples(the_problem().objective, [part.batch for part in loaded], valid, SCORING)


@functools.cache
def known(kind, relative=(0.1, 1.0)):
    return exact_scores(
        kind, the_problem(), *examples()[:3], relative, SCORING, Audit(steps=40, width=0.02, probes=400)
    )


def test_the_three_truths_agree():
    dense, space = known("dense"), known("function_space")
    for left, right in zip(dense, space, strict=True):
        np.testing.assert_allclose(left.damping, right.damping, rtol=1e-9)
        np.testing.assert_allclose(left.lower, right.lower, rtol=1e-8)
    (bounds,) = known("certified", (0.1,))
    assert (bounds.upper - bounds.lower <= 0.0201 * bounds.upper).all()
    (exact,) = exact_scores(
        "dense", the_problem(), *examples()[:3], (bounds.damping / dense[0].damping * 0.1,), SCORING
    )
    assert (bounds.lower <= exact.lower).all()
    assert (exact.lower <= bounds.upper).all()
    assert choose_kind(the_problem()) == "dense"
    assert choose_kind(the_problem(), dense=10) == "function_space"
    assert choose_kind(the_problem(), dense=10, rank=10) == "certified"


def test_an_exact_backend_has_no_error_and_others_have_the_scores_of_the_scoring_path():
    rows = list(compare_backends([Exact(), Diagonal()], the_problem(), examples(), known("dense")))
    assert [row.damping for row in rows] == [0.1, 1.0, 0.1, 1.0]
    for row in rows[:2]:
        assert row.reason == ""
        assert row.deviation is not None
        assert row.deviation.raw.p90 < 1e-9
        assert row.deviation.spearman.value == pytest.approx(1)
        assert row.seconds_per_thousand > 0
        assert row.fit_megabytes > 0
    for row, truth in zip(rows[2:], known("dense"), strict=True):
        settings = Scoring(Damping(absolute=truth.damping), draws=2, seed=3, batch_size=4)
        table = self_influence(the_problem(), Diagonal(), source(), TRANSFORM, settings)
        np.testing.assert_allclose(row.scores, table["score"].to_numpy(), rtol=1e-9)
        assert row.deviation is not None
        assert row.deviation.raw.median > 1e-3
    for name, values in baselines(the_problem(), examples()).items():
        np.testing.assert_allclose(values, table[name.replace(" ", "_")].to_numpy(), rtol=1e-6)


def test_what_fails_is_a_row_with_the_reason():
    backends = [LiSSA(5, scale=1e-9, probes=2, power_steps=3), Exact(max_parameters=3), CG(iterations=1, probes=2)]
    rows = list(compare_backends(backends, the_problem(), examples(), known("dense")[:1]))
    assert "LiSSA diverges" in rows[0].reason
    assert np.isfinite(rows[0].fit_seconds)
    assert "over its limit of 3 parameters" in rows[1].reason
    assert np.isnan(rows[1].fit_seconds)
    assert rows[2].reason.startswith("unconverged: relative residual")
    assert rows[2].deviation is not None
    assert [row.deviation is None for row in rows[:2]] == [True, True]


def test_contenders_are_told_apart_by_their_labels():
    every = backends_to_compare(Grid(deflated=(96,)))
    assert Deflated(96, samples=4) in every
    assert len({label(backend) for backend in every}) == len(every)
    assert label(CG(iterations=7, preconditioner=Identity())) == "CG 7 by Identity"
    assert {type(backend).__name__ for backend in every} >= {"EKFAC", "KFAC", "LoGra", "Deflated", "LiSSA", "CG"}


def test_rankings_by_a_curvature_and_its_multiple_agree_and_an_indefinite_one_is_damped_more():
    # Of the linear net's Fisher little reaches other images, so that every curvature ranks them as the gradient's norm.
    fisher, hessian = (
        problems.problem(CosineDistance(), kind, module=problems.Small(), image=IMAGE, channels=3)
        for kind in ("fisher", "hessian")
    )
    chosen = examples()._replace(measurement=fisher.objective, scoring=Scoring(draws=1, seed=3))
    table = rankings({"fisher": fisher, "again": fisher, "hessian": hessian}, chosen)
    (hessian,) = (name for name in table if name.startswith("hessian"))
    assert hessian == "hessian, λ = 1.1 |least eigenvalue|"
    assert table["fisher"]["again"] == pytest.approx(1)
    assert table["fisher"]["fisher"] == pytest.approx(1)
    for name, row in table.items():
        assert row["gradient norm"] == pytest.approx(table["gradient norm"][name])
    assert abs(table["fisher"][hessian]) < 1
