"""Certificates and Galerkin intervals hold the dense score, for every estimand, in float64 and in float32."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest

from influence_ssl_jax import randomness, trees
from influence_ssl_jax.augment.transform import Views
from influence_ssl_jax.curvature.blocks import discover_blocks
from influence_ssl_jax.data import Arrays, ToInput
from influence_ssl_jax.data.loader import batches
from influence_ssl_jax.errors import CurvatureError, InfluenceError
from influence_ssl_jax.evaluation.certificate import Audit, _combine, _rows, _starts, bound_by_galerkin, certify
from influence_ssl_jax.evaluation.sample import (
    absolute_damping,
    certify_examples,
    relative_width,
    sample,
)
from influence_ssl_jax.ihvp import Arnoldi, Damping
from influence_ssl_jax.ihvp.gram import curvature_rows
from influence_ssl_jax.ihvp.rounding import row_doubt
from influence_ssl_jax.losses import CosineDistance, SimCLR
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.scoring import memory
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


def exact_scores(damping, estimand="mean_of_scores", exact=None):
    """The formula of each estimand over two draws, with the dense matrix."""
    exact = matrix() if exact is None else exact
    damped = exact + float(damping) * np.eye(len(exact))

    def form(g):
        return np.sum(g * np.linalg.solve(damped, g.T).T, axis=1)

    first, second = gradients()
    own, of_mean = (form(first) + form(second)) / 2, form((first + second) / 2)
    return {"mean_of_scores": own, "score_of_mean": of_mean, "u_statistic": 2 * of_mean - own}[estimand]


@functools.cache
def damping(relative=0.02):
    return absolute_damping(the_problem(), Damping(relative), SETTINGS)


def certify_sample(problem, source, transform, damping, scoring, settings):
    """Certify a random sample, in order of `index`."""
    chosen = sample(settings, len(source))
    parts = certify_examples(problem, source, transform, chosen, damping, scoring, settings)
    return pa.concat_tables([part.table for part in parts if part.table.num_rows]).sort_by("index")


@functools.cache
def audited(estimand, subspace=0):
    settings = dataclasses.replace(SETTINGS, subspace=subspace)
    return certify_sample(
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
    for combined, want in zip(_combine(*one, "score_of_mean"), one, strict=True):
        np.testing.assert_array_equal(combined, want[0])


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
    lower, upper = sides(
        certify_sample(single, source(), TRANSFORM, damping(relative).astype("float32"), SCORING, settings)
    )
    assert (lower <= want).all()
    assert (want <= upper).all()
    if relative > 1:
        assert (upper / lower < 1.1).all()


CURVATURES = {
    "fisher": lambda: the_problem("fisher"),
    "every output": the_problem,
    "batch-coupled": lambda: problems.problem(SimCLR(), "fisher", module=problems.Linear(), image=IMAGE, channels=3),
}


def by_rows(problem, estimand, damping, **changes):
    """Bounds of three images, and their exact scores by the dense matrix."""
    settings = dataclasses.replace(SETTINGS, by="rows", **changes)
    scoring, measurement = dataclasses.replace(SCORING, estimand=estimand), the_problem().objective
    given = problem, source(), TRANSFORM, np.arange(3), damping, scoring, settings, measurement
    return next(certify_examples(*given)).table


@pytest.mark.parametrize(
    ("kind", "estimand", "dtype", "width"),
    [
        ("every output", "u_statistic", jnp.float64, 1e-9),
        ("batch-coupled", "score_of_mean", jnp.float64, 1e-9),
        ("fisher", "mean_of_scores", jnp.float32, 0.01),
    ],
)
def test_rows_of_the_curvature_give_narrow_bounds_of_the_dense_score(kind, estimand, dtype, width):
    problem = CURVATURES[kind]()
    exact = np.asarray(dense(problem))
    value = jnp.asarray(0.1 * np.trace(exact) / len(exact), dtype)
    want = exact_scores(value, estimand, exact)[:3]
    given = dataclasses.replace(problem, params=trees.astype(problem.params, dtype))
    lower, upper = sides(by_rows(given, estimand, value))
    assert (lower <= want).all()
    assert (want <= upper).all()
    assert (upper - lower <= width * np.abs(want)).all()


@jax.jit
def matrix_rows(problem):
    """A, spans of parameters side by side."""
    rows = [part.array for part in curvature_rows(problem, None, discover_blocks(problem, "error")).values()]
    return jnp.concatenate([jnp.moveaxis(part, 1, 0).reshape(part.shape[1], -1) for part in rows], axis=1)


@dataclasses.dataclass(frozen=True)
class Near(Views):
    """An image and itself moved by few multiples of 2⁻¹⁶, which float32 holds exactly."""

    step: float = 2.0**-14

    def __call__(self, key, image):
        image, noise = jnp.round(256 * image) / 256, jnp.round(4 * problems.hashed_noise(key, image.size)) / 4
        return jnp.stack([image, image + self.step * noise.reshape(image.shape).astype(image.dtype)])


def test_the_doubt_of_rows_holds_what_float32_has_lost():
    """A row of two views that nearly agree is a difference of two parts: relative to its length it has lost much."""
    problem = the_problem("empirical_fisher")
    problem = dataclasses.replace(problem, objective=dataclasses.replace(problem.objective, views=Near()))
    single = dataclasses.replace(problem, params=trees.astype(problem.params, jnp.float32))
    exact, rounded = matrix_rows(problem), matrix_rows(single)
    doubt = jax.jit(lambda problem: row_doubt(problem, None, discover_blocks(problem, "error")))(single)
    lost, length = np.linalg.norm(exact - rounded), np.linalg.norm(exact)
    assert 1e-4 * length < lost <= doubt <= 0.1 * length


def test_bounds_from_rows_allow_for_rows_that_are_off():
    """Rows of a slightly other curvature set, with the distance between both as their doubt."""
    problem, settings = the_problem(), dataclasses.replace(SETTINGS, by="rows")
    other = dataclasses.replace(problem.batches, image=problem.batches.image + 1e-3)
    rows = jax.jit(_rows, static_argnums=1)(dataclasses.replace(problem, batches=other), settings, jax.random.key(0))
    off = jnp.linalg.norm(matrix_rows(problem) - matrix_rows(dataclasses.replace(problem, batches=other)))
    batch = next(batches(source(), TRANSFORM, 3, SCORING.key, np.arange(3))).batch
    value = jnp.asarray(0.1 * np.trace(matrix()) / len(matrix()))
    want = exact_scores(value)[:3]
    run = jax.jit(certify, static_argnums=(1, 5, 6))
    known, unknown = (
        run(problem, problem.objective, batch, value, jax.random.key(0), SCORING, settings, rows._replace(doubt=doubt))
        for doubt in (off, 0 * off)
    )
    wide = run(
        problem,
        problem.objective,
        batch,
        value,
        jax.random.key(0),
        SCORING,
        settings,
        rows._replace(doubt=2 * jnp.sqrt(value)),
    )
    np.testing.assert_allclose(wide.upper, (1 + 2 * 2 + 5 * 2**2) * unknown.upper, rtol=1e-6)
    assert (known.lower <= want).all()
    assert (want <= known.upper).all()
    assert ((unknown.upper < want) | (want < unknown.lower)).all()


def test_rows_of_a_curvature_with_too_many_are_refused_by_number():
    many = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * 200), the_problem("fisher").batches)
    with pytest.raises(InfluenceError, match="outer products, over Gram's limit"):
        by_rows(dataclasses.replace(the_problem("fisher"), batches=many), "mean_of_scores", jnp.asarray(1.0))


def test_damping_is_resolved_on_the_whole_matrix():
    settings = dataclasses.replace(SETTINGS, probes=1000)
    value = absolute_damping(the_problem(), Damping(0.1), settings)
    np.testing.assert_allclose(value, 0.1 * np.trace(matrix()) / len(matrix()), rtol=0.1)
    assert float(absolute_damping(the_problem(), Damping(absolute=0.5), SETTINGS)) == 0.5


def test_a_hessian_has_no_certificate():
    with pytest.raises(CurvatureError, match="lower bound"):
        certify_sample(the_problem("hessian"), source(), TRANSFORM, jnp.asarray(1.0), Scoring(draws=1), SETTINGS)


def test_the_sample_is_seeded_and_without_repetition():
    chosen = sample(Audit(examples=20, seed=3), 100)
    assert len(set(chosen.tolist())) == 20
    np.testing.assert_array_equal(chosen, sample(Audit(examples=20, seed=3), 100))
    assert (chosen != sample(Audit(examples=20, seed=4), 100)).any()
    np.testing.assert_array_equal(np.sort(sample(Audit(examples=20), 5)), np.arange(5))


def test_a_larger_sample_begins_with_a_smaller_one():
    np.testing.assert_array_equal(sample(Audit(examples=30), 100)[:20], sample(Audit(examples=20), 100))


def test_a_sample_of_very_many_is_drawn_in_pieces_and_has_the_same_properties():
    population, aside = 10**12, np.arange(10**6)
    many = sample(Audit(examples=10_000, seed=3), population)
    assert len(set(many.tolist())) == 10_000
    np.testing.assert_array_equal(many[:20], sample(Audit(examples=20, seed=3), population))
    assert abs(np.mean(many) / population - 0.5) < 5 * 12**-0.5 / 100
    assert not np.isin(sample(Audit(examples=500), 2 * 10**6, aside), aside).any()


def test_what_has_no_narrow_certificate_says_why():
    """One step leaves wide bounds."""
    settings = dataclasses.replace(SETTINGS, steps=1, examples=9)
    table = certify_sample(the_problem(), source(), TRANSFORM, damping(0.3), SCORING, settings)
    width = (table["upper"].to_numpy() / table["lower"].to_numpy()) - 1
    wide = [reason.startswith("too wide") for reason in table["reason"].to_pylist()]
    np.testing.assert_array_equal(wide, width > 0.051)
    assert any(wide)


@pytest.mark.parametrize("estimand", ["mean_of_scores", "u_statistic"])
def test_where_rounding_is_as_large_as_the_damping_there_is_no_bound_and_the_table_says_so(estimand):
    """No bound is another matter than no score."""
    scoring = dataclasses.replace(SCORING, estimand=estimand)
    nearly_none = jnp.asarray(1e-18, jnp.float64)  # and no weak type, which would be another program
    batch = next(certify_examples(the_problem(), source(), TRANSFORM, np.arange(3), nearly_none, scoring, SETTINGS))
    lower, upper = sides(batch.table)
    assert set(batch.table["reason"].to_pylist()) == {"no bound: rounding is as large as the damping"}
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
    with pytest.raises(ValueError, match="needs no Krylov subspace"):
        Audit(by="rows", subspace=4)


def test_bounds_of_a_difference_take_the_far_ends():
    """Of two draws and their mean: `2 · form of the mean − mean of the forms`, each form known to an interval."""
    lower, upper = jnp.array([[1.0], [2.0], [4.0]]), jnp.array([[3.0], [6.0], [5.0]])
    combined = _combine(lower, upper, "u_statistic")
    np.testing.assert_allclose([float(side[0]) for side in combined], [2 * 4 - 4.5, 2 * 5 - 1.5])
    low, high = _combine(lower[:2], upper[:2], "mean_of_scores")
    assert (float(low[0]), float(high[0])) == (1.5, 4.5)


def test_intervals_hold_the_score_of_every_example(monkeypatch):
    monkeypatch.setitem(memory.LARGEST, "cpu", 4)
    damping, want = jnp.asarray(0.05), exact_scores(0.05)
    for rank in (6, trees.size(the_problem().params)):
        state = jax.jit(Arnoldi(rank, block=2, probes=2).fit)(the_problem(), jax.random.key(0))
        given = the_problem(), state, source(), TRANSFORM, damping
        table = pa.concat_tables(bound_by_galerkin(*given, SCORING, the_problem().objective))
        assert table["index"].to_pylist() == list(range(9))
        lower, upper = table["galerkin_lo"].to_numpy(), table["galerkin_hi"].to_numpy()
        assert (lower <= want).all()
        assert (want <= upper).all()
    np.testing.assert_allclose(lower, upper, rtol=1e-5)
    refused = bound_by_galerkin(*given, dataclasses.replace(SCORING, estimand="u_statistic"), the_problem().objective)
    with pytest.raises(InfluenceError, match="mean_of_scores"):
        next(refused)
