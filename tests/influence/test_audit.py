"""Certificates hold the dense score, for every estimand, in float64 and in float32."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax import trees
from influence_ssl_jax.data import Arrays, ToInput
from influence_ssl_jax.errors import CurvatureError
from influence_ssl_jax.evaluation.certificate import Audit
from influence_ssl_jax.evaluation.sample import absolute_damping, audit, certified, relative_width, sample
from influence_ssl_jax.ihvp import Damping, Exact
from influence_ssl_jax.losses import CosineDistance
from influence_ssl_jax.scoring.scores import Scorer, Scoring
from influence_ssl_jax.scoring.stream import stream
from tests import problems

TRANSFORM = ToInput(problems.SIZE, problems.SIZE, 3)
SETTINGS = Audit(examples=6, steps=60, batch_size=3, width=0.05)


@functools.cache
def source():
    pixels = np.random.default_rng(1).integers(0, 256, (9, problems.SIZE, problems.SIZE, 3), dtype=np.uint8)
    return Arrays(pixels).open()


@functools.cache
def the_problem(curvature="ggn"):
    return problems.problem(CosineDistance(), curvature, module=problems.ConvNet(width=2, outputs=3), channels=3)


def exact_scores(scoring, damping):
    settings = dataclasses.replace(scoring, damping=Damping(absolute=float(damping)), batch_size=3)
    scorer = Scorer.fit(the_problem(), Exact(), settings)
    rows = [row for part in stream(scorer, source(), TRANSFORM) for row in part.table.to_pylist()]
    return np.array([row["score"] for row in rows])


@pytest.mark.parametrize("estimand", ["mean_of_scores", "score_of_mean", "u_statistic"])
def test_certificates_hold_the_score_of_the_dense_backend(estimand):
    scoring = Scoring(draws=2, estimand=estimand, seed=5)
    damping = absolute_damping(the_problem(), Damping(0.1), SETTINGS)
    table = audit(the_problem(), source(), TRANSFORM, damping, scoring, SETTINGS)
    assert table["index"].to_pylist() == sorted(sample(SETTINGS, 9).tolist())
    want = exact_scores(scoring, damping)[table["index"].to_numpy()]
    lower, upper = table["lower"].to_numpy(), table["upper"].to_numpy()
    assert (lower <= want).all()
    assert (want <= upper).all()
    if estimand != "u_statistic":  # a difference of two forms is wider than either
        assert (upper - lower <= 0.0501 * (upper + lower) / 2).all()


def test_a_shared_subspace_leaves_bounds_that_hold_and_saves_products():
    scoring, problem = Scoring(draws=2, seed=5), the_problem()
    damping = absolute_damping(problem, Damping(0.01), SETTINGS)
    want = exact_scores(scoring, damping)
    alone, helped = (
        audit(problem, source(), TRANSFORM, damping, scoring, dataclasses.replace(SETTINGS, examples=9, subspace=rank))
        for rank in (0, 24)
    )
    for table in (alone, helped):
        assert (table["lower"].to_numpy() <= want).all()
        assert (want <= table["upper"].to_numpy()).all()
        assert set(table["reason"].to_pylist()) == {""}
    assert max(helped["products"].to_pylist()) < max(alone["products"].to_pylist())


@pytest.mark.parametrize(("width", "relative"), [(0.0, 0.1), (0.05, 10.0)])
def test_float32_certificates_hold_the_float64_score(width, relative):
    """Rounding is a share of λ: bounds open where λ is small and Lanczos goes on after a space is exhausted, but hold."""
    scoring = Scoring(draws=2, seed=5)
    damping = absolute_damping(the_problem(), Damping(relative), SETTINGS)
    want = exact_scores(scoring, damping)
    single = trees.astype(the_problem(), jnp.float32)
    settings = dataclasses.replace(SETTINGS, width=width, examples=9)
    table = audit(single, source(), TRANSFORM, jnp.asarray(damping, jnp.float32), scoring, settings)
    lower, upper = table["lower"].to_numpy(), table["upper"].to_numpy()
    assert (lower <= want).all()
    assert (want <= upper).all()
    if width:
        assert (upper / lower < 1.1).all()


def test_damping_is_resolved_on_the_whole_matrix():
    state = jax.jit(Exact().fit)(the_problem(), jax.random.key(0))
    settings = dataclasses.replace(SETTINGS, probes=4000)
    found = absolute_damping(the_problem(), Damping(0.1), settings)
    np.testing.assert_allclose(found, 0.1 * np.mean(np.asarray(state.eigenvalues)), rtol=0.1)
    assert float(absolute_damping(the_problem(), Damping(absolute=0.5), SETTINGS)) == 0.5


def test_a_hessian_has_no_certificate():
    with pytest.raises(CurvatureError, match="lower bound"):
        audit(the_problem("hessian"), source(), TRANSFORM, jnp.asarray(1.0), Scoring(draws=1), SETTINGS)


def test_the_sample_is_seeded_and_without_repetition():
    chosen = sample(Audit(examples=20, seed=3), 100)
    assert len(set(chosen.tolist())) == 20
    np.testing.assert_array_equal(chosen, sample(Audit(examples=20, seed=3), 100))
    assert (chosen != sample(Audit(examples=20, seed=4), 100)).any()
    np.testing.assert_array_equal(np.sort(sample(Audit(examples=20), 5)), np.arange(5))


def test_a_larger_sample_begins_with_a_smaller_one():
    np.testing.assert_array_equal(sample(Audit(examples=30), 100)[:20], sample(Audit(examples=20), 100))


def test_what_has_no_narrow_certificate_says_why():
    """One step leaves wide bounds, and too little damping none."""
    settings = dataclasses.replace(SETTINGS, steps=1, batch_size=9)
    chosen = np.arange(9)
    damping = absolute_damping(the_problem(), Damping(0.1), SETTINGS)
    found = list(certified(the_problem(), source(), TRANSFORM, chosen, damping, Scoring(draws=1), settings))
    table = found[0].table
    width = (table["upper"].to_numpy() / table["lower"].to_numpy()) - 1
    wide = [reason.startswith("too wide") for reason in table["reason"].to_pylist()]
    np.testing.assert_array_equal(wide, width > 0.051)
    assert any(wide)
    # damping lost in float32's rounding: no upper bound, and the table says so
    single = trees.astype(the_problem(), jnp.float32)
    none = list(
        certified(single, source(), TRANSFORM, chosen, jnp.asarray(1e-9, jnp.float32), Scoring(draws=1), settings)
    )
    assert set(none[0].table["reason"].to_pylist()) == {"no bound: rounding is as large as the damping"}
    assert np.isinf(none[0].table["upper"].to_numpy()).all()


def test_widths_are_relative_to_the_magnitude_of_the_bounds():
    """Of a U-statistic bounds can be negative: [−3, 1] is no narrow interval, and [−1, 1] no infinite one."""
    lower, upper = np.array([-3.0, -1, 1, 0, -np.inf, 2, np.nan]), np.array([1.0, 1, 2, 0, 1, np.inf, np.nan])
    np.testing.assert_allclose(relative_width(lower, upper), [2, 2, 2 / 3, 0, np.inf, np.inf, np.nan])


def test_a_u_statistic_without_bounds_says_so():
    """No bound is another matter than no score."""
    single = trees.astype(the_problem(), jnp.float32)
    scoring, chosen = Scoring(draws=2, estimand="u_statistic"), np.arange(3)
    found = next(certified(single, source(), TRANSFORM, chosen, jnp.asarray(1e-9, jnp.float32), scoring, SETTINGS))
    assert set(found.table["reason"].to_pylist()) == {"no bound: rounding is as large as the damping"}
    assert np.isneginf(found.table["lower"].to_numpy()).all()


def test_settings_that_certify_nothing_are_refused():
    with pytest.raises(ValueError, match="at least one of steps"):
        Audit(steps=0)
    with pytest.raises(ValueError, match="width is a share"):
        Audit(width=float("nan"))
