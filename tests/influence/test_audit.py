"""Certificates hold the dense score, for every estimand, in float64 and in float32."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax import randomness, trees
from influence_ssl_jax.data import Arrays, ToInput
from influence_ssl_jax.errors import CurvatureError
from influence_ssl_jax.evaluation.certificate import Audit, _combined, _starts
from influence_ssl_jax.evaluation.sample import absolute_damping, audit, certified, relative_width, sample
from influence_ssl_jax.ihvp import Damping
from influence_ssl_jax.losses import CosineDistance
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.scoring.scores import Scoring
from influence_ssl_jax.types import Batch
from tests import problems
from tests.curvature.dense import dense

IMAGE = 3
TRANSFORM = ToInput(IMAGE, IMAGE, 3)
SCORING = Scoring(draws=2, seed=5)
SETTINGS = Audit(examples=6, steps=60, batch_size=3, width=0.05)


@functools.cache
def source():
    pixels = np.random.default_rng(1).integers(0, 256, (9, IMAGE, IMAGE, 3), dtype=np.uint8)
    return Arrays(pixels).open()


@functools.cache
def the_problem(curvature="ggn"):
    return problems.problem(CosineDistance(), curvature, module=problems.Linear(), image=IMAGE, channels=3)


@functools.cache
def matrix():
    return np.asarray(dense(the_problem()))


@functools.cache
def gradients():
    """Of every draw of every image, each alone by `jax.grad`: [2, 9, parameters]."""
    problem = the_problem()

    @jax.jit
    def alone(image, index, draw):
        own = randomness.branch(jax.random.fold_in(SCORING.key, index), Stream.PERTURBATIONS)
        one = Batch(image[None], jax.random.fold_in(own, draw)[None], index[None], jnp.array([-1]))
        return trees.ravel(jax.grad(problem.objective)(problem.params, problem.frozen, one))

    images = [jnp.asarray(source().read(index).image) for index in range(9)]
    return np.stack([[alone(image, jnp.asarray(i), draw) for i, image in enumerate(images)] for draw in range(2)])


def exact_scores(damping, estimand="mean_of_scores"):
    """The formula of each estimand over two draws, with the dense matrix."""
    damped = matrix() + float(damping) * np.eye(len(matrix()))

    def form(g):
        return np.sum(g * np.linalg.solve(damped, g.T).T, axis=1)

    first, second = gradients()
    own, of_mean = (form(first) + form(second)) / 2, form((first + second) / 2)
    return {"mean_of_scores": own, "score_of_mean": of_mean, "u_statistic": 2 * of_mean - own}[estimand]


@functools.cache
def damping(relative=0.02):
    return absolute_damping(the_problem(), Damping(relative), SETTINGS)


@functools.cache
def audited(estimand, subspace=0):
    settings = dataclasses.replace(SETTINGS, subspace=subspace)
    return audit(
        the_problem(), source(), TRANSFORM, damping(), dataclasses.replace(SCORING, estimand=estimand), settings
    )


def sides(table):
    return table["lower"].to_numpy(), table["upper"].to_numpy()


@pytest.mark.parametrize("estimand", ["mean_of_scores", "u_statistic"])
def test_certificates_hold_the_score_of_the_dense_matrix(estimand):
    table = audited(estimand)
    assert table["index"].to_pylist() == sorted(sample(SETTINGS, 9).tolist())
    want = exact_scores(damping(), estimand)[table["index"].to_numpy()]
    lower, upper = sides(table)
    assert (lower <= want).all()
    assert (want <= upper).all()
    if estimand != "u_statistic":  # a difference of two forms is wider than either
        assert (upper - lower <= 0.0501 * (upper + lower) / 2).all()


def test_the_score_of_the_mean_starts_at_the_mean_gradient():
    """Beside the starts of the two other estimands, whose certificates are held against the dense matrix."""
    rows = jnp.asarray(gradients())
    mean = (gradients()[0] + gradients()[1]) / 2
    np.testing.assert_allclose(_starts(rows, "score_of_mean"), mean[None], rtol=1e-14)
    np.testing.assert_allclose(_starts(rows, "u_statistic"), np.concatenate([rows, mean[None]]), rtol=1e-14)
    one = jnp.asarray([[1.0, 2.0]]), jnp.asarray([[3.0, 4.0]])
    for found, want in zip(_combined(*one, "score_of_mean"), one, strict=True):
        np.testing.assert_array_equal(found, want[0])


def test_a_shared_subspace_leaves_bounds_that_hold_and_saves_products():
    alone, helped = audited("mean_of_scores"), audited("mean_of_scores", subspace=24)
    want = exact_scores(damping())[alone["index"].to_numpy()]
    for table in (alone, helped):
        lower, upper = sides(table)
        assert (lower <= want).all()
        assert (want <= upper).all()
        assert set(table["reason"].to_pylist()) == {""}
    assert max(helped["products"].to_pylist()) < max(alone["products"].to_pylist())


@pytest.mark.parametrize("relative", [0.1, 10.0])
def test_float32_certificates_hold_the_float64_score(relative):
    """Rounding is a share of λ: bounds open where λ is small and Lanczos goes on after a space is exhausted, but hold."""
    want = exact_scores(damping(relative))
    single = trees.astype(the_problem(), jnp.float32)
    settings = dataclasses.replace(SETTINGS, width=0.0, examples=9)
    lower, upper = sides(audit(single, source(), TRANSFORM, damping(relative).astype("float32"), SCORING, settings))
    assert (lower <= want).all()
    assert (want <= upper).all()
    if relative > 1:
        assert (upper / lower < 1.1).all()


def test_damping_is_resolved_on_the_whole_matrix():
    settings = dataclasses.replace(SETTINGS, probes=1000)
    found = absolute_damping(the_problem(), Damping(0.1), settings)
    np.testing.assert_allclose(found, 0.1 * np.trace(matrix()) / len(matrix()), rtol=0.1)
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
    """One step leaves wide bounds."""
    settings = dataclasses.replace(SETTINGS, steps=1, examples=9)
    table = audit(the_problem(), source(), TRANSFORM, damping(0.3), SCORING, settings)
    width = (table["upper"].to_numpy() / table["lower"].to_numpy()) - 1
    wide = [reason.startswith("too wide") for reason in table["reason"].to_pylist()]
    np.testing.assert_array_equal(wide, width > 0.051)
    assert any(wide)


@pytest.mark.parametrize("estimand", ["mean_of_scores", "u_statistic"])
def test_where_rounding_is_as_large_as_the_damping_there_is_no_bound_and_the_table_says_so(estimand):
    """No bound is another matter than no score."""
    scoring = dataclasses.replace(SCORING, estimand=estimand)
    nearly_none = jnp.asarray(1e-18, jnp.float64)  # and no weak type, which would be another program
    found = next(certified(the_problem(), source(), TRANSFORM, np.arange(3), nearly_none, scoring, SETTINGS))
    lower, upper = sides(found.table)
    assert set(found.table["reason"].to_pylist()) == {"no bound: rounding is as large as the damping"}
    assert np.isinf(upper).all()
    if estimand == "u_statistic":
        assert np.isneginf(lower).all()


def test_widths_are_relative_to_the_magnitude_of_the_bounds():
    """Of a U-statistic bounds can be negative: [−3, 1] is no narrow interval, and [−1, 1] no infinite one."""
    lower, upper = np.array([-3.0, -1, 1, 0, -np.inf, 2, np.nan]), np.array([1.0, 1, 2, 0, 1, np.inf, np.nan])
    np.testing.assert_allclose(relative_width(lower, upper), [2, 2, 2 / 3, 0, np.inf, np.inf, np.nan])


def test_settings_that_certify_nothing_are_refused():
    with pytest.raises(ValueError, match="at least one of steps"):
        Audit(steps=0)
    with pytest.raises(ValueError, match="width is a share"):
        Audit(width=float("nan"))
