"""The Woodbury inverse against dense formulas: decades of λ, certified rounding, leave-a-part-out, effective dimension."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.blocks import leaf_paths
from influence_ssl_jax.curvature.contributions import measure
from influence_ssl_jax.curvature.products import flat_products
from influence_ssl_jax.errors import CurvatureError, InfluenceError
from influence_ssl_jax.ihvp import CG, EKFAC, Arnoldi, Damping, Exact, Gram, disk, gram
from influence_ssl_jax.ihvp.backend import Spectrum
from influence_ssl_jax.ihvp.cg import spectrum_by_products
from influence_ssl_jax.ihvp.gram import Wide, _by_shards, _inner, _over_spans
from influence_ssl_jax.losses import CosineDistance, SimCLR, SquaredEuclid
from influence_ssl_jax.parallel import Sharded
from influence_ssl_jax.scoring.estimands import bound_estimate, curvature_error, estimate
from influence_ssl_jax.scoring.fitting import DiskFit
from influence_ssl_jax.store.rows import ROWS, complete_rows
from tests import problems
from tests.ihvp.fitted import fitted

COSINE = CosineDistance()
assess = jax.jit(Gram.assess, static_argnums=0)
every_gradient = jax.jit(lambda gradients: trees.ravel_batch(gradients.full()))


def joined(pair: Wide):
    return np.asarray(pair.high, np.float64) + np.asarray(pair.low, np.float64)


@jax.jit
def flattened(state, parts):
    """Vectors that are given block by block, in the order of the parameters, in float64."""

    def one(parts):
        arrays = [(block, parts[block.name].astype("float64")) for block in state.blocks]
        leaves = {}
        for block, array in arrays:
            leaves |= block.write(array.reshape(block.read(state.params).shape))
        return jnp.concatenate([leaves[path].ravel() for path in leaf_paths(state.params)])

    return jax.vmap(one)(parts)


def rows_of(state):
    """A, from the state's spans."""
    spans = {name: np.swapaxes(np.asarray(part.array), 0, 1) for name, part in state.rows.items()}
    return np.asarray(
        flattened(
            state,
            {block.name: spans[block.name].reshape(len(state.order), -1)[:, : block.size] for block in state.blocks},
        )
    )


def solved(matrix, right):
    """`matrix⁻¹ right` by Gauss–Jordan elimination in extended precision; positive definite matrices."""
    a = np.concatenate([matrix, right], axis=1).astype(np.longdouble)
    for i in range(len(a)):
        a[i] /= a[i, i]
        others = np.arange(len(a)) != i
        a[others] -= a[others, i : i + 1] * a[i]
    return a[:, len(a) :]


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(backend, state, gradients, damping):
    """What the backend says, and the very gradients that it says it of, block by block."""
    vectors = {
        block.name: jnp.swapaxes(block.map_examples(gradients, lambda each, _: each, None), 0, 1)
        for block in state.blocks
    }
    return backend.assess(state, gradients, damping), vectors


def judged(backend, state, gradients, damping):
    """Forms, bounds of their rounding, and the gradients, as NumPy's."""
    assessed, vectors = with_gradients(backend, state, gradients, jnp.asarray(damping))
    flat = {name: part.reshape(-1, part.shape[-1]) for name, part in vectors.items()}
    return (
        np.asarray(assessed.form.values, np.float64),
        np.asarray(assessed.rounding, np.float64),
        np.asarray(flattened(state, flat)),
    )


def forms_of(rows, gradients, damping):
    """`g_kᵀ(AᵀA + λI)⁻¹g_l` of two draws, from the dense matrix in extended precision."""
    a, g = rows.astype(np.longdouble), gradients.astype(np.longdouble)
    every = g @ solved(a.T @ a + np.longdouble(damping) * np.eye(a.shape[1]), g.T)
    half = len(g) // 2
    return every.reshape(2, half, 2, half)[:, np.arange(half), :, np.arange(half)]


@functools.cache
def case(curvature="fisher", loss=COSINE, dtype=jnp.float64, storage="working", samples=10):
    """A fitted Gram, its rows, gradients of a measurement in two draws and the same whole, in float64."""
    problem = problems.problem(loss, curvature, module=problems.Small(), samples=samples)
    params, frozen = trees.astype(problem.params, dtype), trees.astype(problem.frozen, dtype)
    problem = dataclasses.replace(problem, params=params, frozen=frozen)
    backend = Gram(samples=None, storage=storage, parts=4)
    state = jax.jit(backend.fit)(problem, jax.random.key(0))
    measurement = problems.objective(CosineDistance(), problems.Small())
    batch = problems.first_batch(problem)
    measured = jax.jit(measure, static_argnums=(0, 4))(measurement, params, frozen, batch, 2).gradients
    return backend, problem, state, measured, np.asarray(every_gradient(measured), np.float64)


CURVATURES = [("ggn", CosineDistance()), ("fisher", SimCLR(0.5)), ("empirical_fisher", SimCLR(0.5))]


@pytest.mark.parametrize(("curvature", "loss"), CURVATURES, ids=lambda value: str(value)[:6])
def test_rows_make_the_matrix(curvature, loss):
    backend, problem, state, _, _ = case(curvature, loss)
    rows = rows_of(state)
    matrix = np.asarray(jax.jit(flat_products(problem))(jnp.eye(rows.shape[1])))
    np.testing.assert_allclose(rows.T @ rows, matrix, atol=1e-12 * np.abs(matrix).max())
    np.testing.assert_allclose(joined(state.gram), rows @ rows.T, atol=1e-14 * np.abs(matrix).max() * len(rows))
    np.testing.assert_allclose(backend.mean_eigenvalue(state), np.trace(matrix) / len(matrix), rtol=1e-12)


@pytest.mark.parametrize("decade", range(-6, 3))
def test_forms_are_exact_over_eight_decades_of_damping(decade):
    """80 rows of 51 parameters: every gradient is in their span, K is singular, and with little damping all cancels."""
    backend, _, state, gradients, _ = case()
    rows = rows_of(state)
    damping = 10.0**decade * np.sum(rows**2) / rows.shape[1]
    values, rounding, whole = judged(backend, state, gradients, damping)
    want = forms_of(rows, whole, damping)
    size = np.sqrt(np.einsum("bkk->bk", want).astype(float))
    scale = size[:, :, None] * size[:, None]
    error = np.abs(values - want)
    assert (error <= 1e-10 * scale).all()
    assert (error <= rounding).all()
    assert (rounding <= 1e-7 * scale).all()


@pytest.mark.parametrize(("decade", "careful"), [(-6, True), (3, False)])
def test_both_ways_of_computing_a_form_are_taken_where_they_are_needed(decade, careful):
    """With little damping the difference of the Woodbury identity has no digit left in float32, the sum has all."""
    backend, _, state, gradients, _ = case(dtype=jnp.float32)
    rows = rows_of(state)
    damping = jnp.float32(10.0**decade * np.sum(rows**2) / rows.shape[1])
    values, _, whole = judged(backend, state, gradients, damping)
    want = forms_of(rows, whole, float(damping)).astype(float)
    own = np.einsum("bkk->bk", want)
    np.testing.assert_allclose(np.einsum("bkk->bk", values), own, rtol=1e-5)
    forced, rounding, whole = judged(dataclasses.replace(backend, accuracy=1e9), state, gradients, damping)
    want = forms_of(rows, whole, float(damping)).astype(float)
    assert np.array_equal(values, forced) != careful
    assert (np.abs(forced - want) <= rounding).all()  # it says what it has lost
    assert (np.einsum("bkk->bk", rounding) > 0.01 * own).any() == careful


@pytest.mark.parametrize("storage", ["working", "bfloat16"])
@pytest.mark.parametrize("relative", [1e-4, 0.1, 100.0])
def test_bounds_hold_in_float32_and_for_rows_kept_in_bfloat16(storage, relative):
    """C is that of the rows before they are rounded to bfloat16: the interval holds its forms, and is of use.

    24 rows of 51 parameters: gradients have parts outside their span.
    """
    backend, _, state, gradients, _ = case(dtype=jnp.float32, storage=storage, samples=3)
    rows = rows_of(case(dtype=jnp.float32, samples=3)[2])
    damping = jnp.float32(relative * np.sum(rows**2) / rows.shape[1])
    values, rounding, whole = judged(backend, state, gradients, damping)
    want = forms_of(rows, whole, float(damping)).astype(float)
    assert (np.abs(values - want) <= rounding).all()
    assert state.rows["head"].array.dtype == (jnp.bfloat16 if storage == "bfloat16" else jnp.float32)
    own, width = (np.einsum("bkk->bk", each) for each in (want, rounding))
    if relative >= 100:
        assert (width <= {"working": 1e-2, "bfloat16": 0.2}[storage] * own).all()


def test_k_is_a_float64_matrix_where_the_working_type_is_float32():
    """A squared number of float32 has more digits than float32: K must hold them."""
    state = case(dtype=jnp.float32, samples=3)[2]
    rows = rows_of(state)
    np.testing.assert_allclose(joined(state.gram), rows @ rows.T, rtol=0, atol=1e-13 * np.sum(rows**2))
    assert np.abs(np.asarray(state.gram.high, np.float64) - rows @ rows.T).max() > 1e-10 * np.sum(rows**2)


@pytest.mark.parametrize(("curvature", "loss", "units"), [("fisher", COSINE, 8), ("fisher", SimCLR(0.5), 2)])
def test_leaving_out_a_part_is_refitting_without_it(curvature, loss, units):
    """Eight examples in four parts and in two; of a loss that couples examples, two batches in two."""
    backend, problem, state, gradients, whole = case(curvature, loss)
    rows = rows_of(state)
    assert (state.units, state.parts) == (units, min(4, units))
    damping = 0.1 * np.sum(rows**2) / rows.shape[1]
    assessed = assess(backend, state, gradients, jnp.asarray(damping))
    batches, size = problem.batches.index.shape
    unit = np.arange(len(rows)) // (len(rows) // batches)
    if loss.separable:  # within a batch, draw by draw, example by example
        unit = unit * size + np.arange(len(rows)) % size

    def without(part, parts):
        kept = rows[unit // (units // parts) != part]
        return forms_of(kept * (parts / (parts - 1)) ** 0.5, whole, damping).astype(float)

    want = np.stack([without(part, state.parts) for part in range(state.parts)])
    np.testing.assert_allclose(np.asarray(assessed.left_out), want, rtol=1e-8, atol=1e-9 * np.abs(want).max())
    scores = np.mean(np.einsum("pbkk->pbk", want), axis=2)
    error = np.sqrt((state.parts - 1) / state.parts * np.sum((scores - scores.mean(axis=0)) ** 2, axis=0))
    np.testing.assert_allclose(curvature_error(assessed.left_out, "mean_of_scores"), error, rtol=1e-6)
    halves = np.stack([without(1, 2), without(0, 2)])
    np.testing.assert_allclose(np.asarray(assessed.halves), halves, rtol=1e-8, atol=1e-9 * np.abs(halves).max())


@pytest.mark.parametrize("estimand", ["mean_of_scores", "u_statistic", "score_of_mean"])
def test_bounds_of_every_estimand_follow_from_those_of_the_forms(estimand):
    """Whatever the errors within their bounds, the estimate stays within its own; the largest errors reach them."""
    rng = np.random.default_rng(0)
    gram, rounding = (jnp.asarray(rng.uniform(low, 1, (3, 4, 4))) for low in (0.5, 0))
    low, high = bound_estimate(gram, rounding, estimand)
    for signs in (np.ones((3, 4, 4)), -np.ones((3, 4, 4)), rng.uniform(-1, 1, (3, 4, 4))):
        score = estimate(gram + signs * rounding, estimand).score
        assert (score <= high).all()
        assert ((score >= low) | (low == 0)).all()
    np.testing.assert_allclose(high, estimate(gram + rounding, estimand).score, rtol=1e-13)
    tiny = bound_estimate(0.01 * gram, rounding, estimand)[0]
    assert (tiny < 0).all() if estimand == "u_statistic" else (tiny == 0).all()  # a positive form is never below zero


def test_what_it_cannot_represent_is_refused_by_name():
    problem = problems.problem(CosineDistance(), "hessian", module=problems.Small())
    with pytest.raises(CurvatureError, match=r"Gram .* got curvature='hessian'"):
        Gram().fit(problem, jax.random.key(0))
    problem = problems.problem(CosineDistance(), "fisher", module=problems.Small())
    with pytest.raises(InfluenceError, match="24 outer products, over Gram's limit of 8 rows"):
        Gram(max_rows=8).fit(problem, jax.random.key(0))
    with pytest.raises(InfluenceError, match=r"Gram: samples is .* of at least 1 .* got 0"):
        Gram(samples=0)
    with pytest.raises(InfluenceError, match=r"Gram: parts is .* of at least 2 .* got 1"):
        Gram(parts=1)
    with pytest.raises(InfluenceError, match=r"Gram: accuracy is .* got nan"):
        Gram(accuracy=float("nan"))


def effective_dimension(matrix, damping):
    return np.trace(matrix @ np.linalg.inv(matrix + damping * np.eye(len(matrix))))


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_damping_by_effective_dimension(share):
    """λ of the dense matrix, from K, from all eigenvalues, and from products alone."""
    _, _, state, _, _ = case("ggn")
    rows = rows_of(state)
    matrix, rank = rows.T @ rows, np.linalg.matrix_rank(rows)
    damping = Damping(effective_dimension=share)
    resolved = float(Gram().resolve(state, damping))
    np.testing.assert_allclose(effective_dimension(matrix, resolved), share * rank, rtol=1e-8)
    exact = fitted(Exact, "cosine")
    np.testing.assert_allclose(Exact().resolve(exact[2], damping), resolved, rtol=1e-6)


def test_damping_by_effective_dimension_from_products_alone():
    """Stochastic, but for the quadrature: within four standard errors of both traces that random signs give."""
    exact, share = fitted(Exact, "linear")[2], 0.3
    matrix = np.asarray((exact.eigenvectors * exact.eigenvalues[None]) @ exact.eigenvectors.T)
    backend = CG(probes=64, lanczos_steps=60)
    spectrum = jax.jit(backend.spectrum)(fitted(CG, "linear")[2])
    resolved = float(Damping(effective_dimension=share).resolve_by_spectrum(spectrum))
    shrunk, whole = (matrix @ np.linalg.pinv(matrix + value * np.eye(len(matrix)), 1e-10) for value in (resolved, 0.0))
    errors = [np.sqrt(2 * np.sum((each - np.diag(np.diag(each))) ** 2) / 64) for each in (shrunk, whole)]
    rank = min(spectrum.rank, len(matrix))
    assert abs(np.trace(shrunk) - share * rank) <= 4 * (errors[0] + share * errors[1]) + 1e-6


def test_damping_by_effective_dimension_block_by_block():
    """Of a block-diagonal backend every block has its own, by its own corrected eigenvalues."""
    backend, _, state, _ = fitted(EKFAC, "cosine")
    resolved = backend.resolve(state, Damping(effective_dimension=0.5))
    for name, each in backend.spectrum(state).items():
        values, counts = np.asarray(each.values), np.asarray(each.counts)
        assert counts.sum() == next(block.size for block in state.blocks if block.name == name)
        fine = values > counts.sum() * np.finfo(float).eps * values.max()
        np.testing.assert_allclose(
            np.sum(counts * values / (values + float(resolved[name]))), 0.5 * counts[fine].sum(), rtol=1e-6
        )


def test_damping_over_the_mean_of_nonzero_eigenvalues():
    _, _, state, _, _ = case("ggn")
    rows = rows_of(state)
    resolved = Gram().resolve(state, Damping(0.1, relative_to="nonzero"))
    np.testing.assert_allclose(resolved, 0.1 * np.sum(rows**2) / np.linalg.matrix_rank(rows), rtol=1e-10)


def test_damping_that_takes_eigenvalues_is_refused_where_there_are_none():
    backend, _, state, _ = fitted(Arnoldi, "linear")
    with pytest.raises(InfluenceError, match="Arnoldi does not know the eigenvalues"):
        backend.resolve(state, Damping(effective_dimension=0.5))
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(InfluenceError, match="share of the rank of C"):
            Damping(effective_dimension=share)
    with pytest.raises(InfluenceError, match="given twice"):
        Damping(absolute=1.0, effective_dimension=0.5)
    problem = problems.problem(SquaredEuclid(), "hessian", module=problems.Linear(), image=3)
    indefinite = dataclasses.replace(fitted(Exact, "linear")[2], eigenvalues=jnp.linspace(-1.0, 1.0, 54))
    with pytest.raises(CurvatureError, match="smallest eigenvalue of this C is -1"):
        Exact().resolve(indefinite, Damping(effective_dimension=0.5))
    with pytest.raises(CurvatureError, match="curvature='hessian'"):
        CG().spectrum(dataclasses.replace(fitted(CG, "linear")[2], problem=problem))


@jax.jit
def matrix_of(problem):
    return flat_products(problem)(jnp.eye(trees.size(problem.params)))


@functools.partial(jax.jit, static_argnums=0)
def without_own(backend, state, gradients, damping, index):
    return backend.assess_without_own(state, gradients, damping, index)


def others_of(problem, index):
    """The problem over one batch of all images of the curvature set but one."""
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), problem.batches)
    kept = np.flatnonzero(np.asarray(flat.index) != index)
    return dataclasses.replace(problem, batches=jax.tree.map(lambda leaf: leaf[kept][None], flat))


@pytest.mark.parametrize(("curvature", "relative"), [("fisher", 1e-7), ("empirical_fisher", 1e-2)])
def test_an_example_of_the_curvature_set_is_scored_by_the_others(curvature, relative):
    """Against the dense matrix over a batch of the other images, at the same λ; images outside the set as ever."""
    backend, problem, state, gradients, whole = case(curvature)
    damping = relative * float(backend.mean_eigenvalue(state))
    index = jnp.array([0, 99, 2, 3])
    assessed = without_own(backend, state, gradients, jnp.asarray(damping), index)
    values, rounding = np.asarray(assessed.form.values), np.asarray(assessed.rounding)
    ordinary = assess(backend, state, gradients, jnp.asarray(damping))
    np.testing.assert_allclose(values[1], np.asarray(ordinary.form.values)[1], rtol=1e-9)
    for row in (0, 2, 3):
        matrix = np.asarray(matrix_of(others_of(problem, int(index[row]))), np.longdouble)
        g = whole.reshape(2, 4, -1)[:, row].astype(np.longdouble)
        want = (g @ solved(matrix + np.longdouble(damping) * np.eye(len(matrix)), g.T)).astype(float)
        size = np.sqrt(np.outer(np.diag(want), np.diag(want)))
        assert np.all(
            np.diag(values[row]) > 1.001 * np.diag(np.asarray(ordinary.form.values)[row])
        )  # it is lower inside
        assert (np.abs(values[row] - want) <= 1e-9 / relative**0.5 * 1e-1 * size).all()
        assert (rounding[row] <= 1e-6 * size).all()
    assert np.isnan(np.asarray(assessed.left_out)[:, [0, 2, 3]]).all()
    np.testing.assert_allclose(np.asarray(assessed.left_out)[:, 1], np.asarray(ordinary.left_out)[:, 1], rtol=1e-7)


def test_rows_in_a_file_give_every_number_of_memory_to_the_bit(tmp_path, monkeypatch):
    """Rows in bfloat16, and what they lack for the bounds; forms by the difference and by the sum that cannot cancel."""
    monkeypatch.setattr(disk, "SLAB", 1)  # so that one span is read at a time
    backend, problem, state, gradients, _ = case(dtype=jnp.float32, storage="bfloat16", samples=3)
    placed = dataclasses.replace(backend, rows="disk")
    fit = DiskFit(problem, placed, tmp_path / ROWS)
    from_file = fit.state(complete_rows("owner", fit.places, fit.parts, fit.form))
    for name in ("lost", "gram", "eigenvalues", "eigenvectors", "order", "members"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(from_file, name))
    for decade in (-6, 3):
        damping = jnp.float32(10.0**decade) * jnp.trace(state.gram.high) / trees.size(state.params)
        want, got = assess(backend, state, gradients, damping), assess(placed, from_file, gradients, damping)
        jax.tree.map(np.testing.assert_array_equal, want, got)


def test_a_pass_over_a_file_reads_every_span_once_and_adds_up_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "SLAB", 2 * 3 * 4 * 4)
    rows = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    (place,) = disk.lay_out(tmp_path / ROWS, [rows.shape], np.float32)
    (tmp_path / ROWS).write_bytes(rows.tobytes())
    reads, load = [], disk.DiskRows._load

    def counted(self, count, first):
        reads.append((int(first), count))
        return load(self, count, first)

    monkeypatch.setattr(disk.DiskRows, "_load", counted)
    vectors = jnp.asarray(np.random.default_rng(1).normal(size=(2, 18)).astype(np.float32))  # the last span is not full

    @functools.partial(jax.jit, static_argnums=0)
    def fold(file, rows, vectors):
        def compute(a, v):
            return v @ a.T, jnp.sum(v)

        return _over_spans(compute, jnp.zeros((2, 3), jnp.float32), place if file else Sharded(rows, 5), vectors)

    jax.tree.map(np.testing.assert_array_equal, fold(True, rows, vectors), fold(False, rows, vectors))
    assert sorted(reads) == [(0, 2), (2, 2), (4, 1)]


@pytest.mark.parametrize("together", [2, 3, 9])
def test_spans_that_are_computed_at_once_give_the_sums_of_spans_in_turn(together, monkeypatch):
    rng = np.random.default_rng(together)
    rows, vectors = Sharded(jnp.asarray(rng.normal(size=(7, 3, 4))), 7), jnp.asarray(rng.normal(size=(2, 26)))

    def fold():
        return _over_spans(lambda a, v: (v @ a.T, v - 1.0), jnp.zeros((2, 3)), rows, vectors)

    monkeypatch.setattr(gram, "_spans_at_once", lambda *_: 1)
    in_turn = fold()
    monkeypatch.setattr(gram, "_spans_at_once", lambda *_: together)
    for turn, once in zip(in_turn, jax.jit(fold)(), strict=True):
        assert turn.shape == once.shape
        np.testing.assert_allclose(once, turn, rtol=1e-13)


@pytest.mark.parametrize(("numbers", "lengths"), [(100, [3, 1]), (1, [1]), (10**6, [7])])
def test_as_many_spans_are_computed_at_once_as_the_limit_of_the_platform_allows(monkeypatch, numbers, lengths):
    """A span of 3 rows, 2 vectors and 4 parameters reads and writes 26 numbers."""
    vmap = jax.vmap
    monkeypatch.setattr(gram, "TOGETHER", {jax.default_backend(): numbers})
    rows, vectors = Sharded(jnp.ones((7, 3, 4)), 7), jnp.ones((2, 26))
    seen = []

    def compute(a, v):
        return v @ a.T, None

    monkeypatch.setattr(jax, "vmap", lambda compute: lambda *some: seen.append(len(some[0])) or vmap(compute)(*some))
    total, _ = _over_spans(compute, jnp.zeros((2, 3)), rows, vectors)
    np.testing.assert_array_equal(total, np.full((2, 3), 26.0))
    assert seen == [length for length in lengths if length > 1 or numbers > 1]


def test_memory_grows_with_a_slab_and_a_layers_gradients_not_with_the_rows(tmp_path, monkeypatch):
    """XLA's own account of a product with 4 MiB of rows; `workspace` counts two slabs, and four of a layer's gradients."""
    slab, (length, count, span), some, draws = 2**17, (64, 256, 64), 4, 2
    monkeypatch.setattr(disk, "SLAB", slab)
    (place,) = disk.lay_out(tmp_path / ROWS, [(length, count, span)], np.float32)
    gradients = jax.ShapeDtypeStruct((some, draws, length * span), np.float32)
    product = jax.jit(lambda g: _by_shards(functools.partial(_inner, place, False), g, None))
    temporary = product.lower(gradients).compile().memory_analysis().temp_size_in_bytes
    assert 0 < temporary < 2 * slab + 4 * gradients.size * 4 < place.size / 4


def test_rows_for_a_disk_are_refused_where_there_is_no_folder():
    with pytest.raises(InfluenceError, match=r"Gram\(rows='disk'\) writes its rows into the folder of the scores"):
        Gram(rows="disk").fit(case()[1], jax.random.key(0))


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_and_halves_need_not_be_equal(parts):
    """Eight examples in three parts of three, three and two: refitted without each, averaged over those that are left."""
    backend, _, state, gradients, whole = case()
    rows, damping = rows_of(state)[np.asarray(state.order)].reshape(8, -1, 51), 0.3
    found = assess(backend, dataclasses.replace(state, parts=parts), gradients, jnp.asarray(damping))
    want = []
    for left_out in np.array_split(np.arange(8), parts):
        kept = np.delete(rows, left_out, axis=0).reshape(-1, 51)
        want.append(forms_of(kept * (8 / (8 - len(left_out))) ** 0.5, whole, damping).astype(float))
    np.testing.assert_allclose(np.asarray(found.left_out), want, rtol=1e-8, atol=1e-9 * np.abs(want).max())


@pytest.mark.parametrize("units", [17, 31])
def test_any_number_of_examples_has_a_jackknife(units):
    problem = problems.problem(
        SquaredEuclid(), "empirical_fisher", module=problems.Linear(), image=3, num_batches=1, size=units
    )
    assert jax.jit(Gram(parts=16).fit)(problem, jax.random.key(0)).parts == min(16, units)


@pytest.mark.parametrize("curvature", ["ggn", "fisher"])
def test_damping_by_effective_dimension_from_estimated_counts_is_never_out_of_reach(curvature):
    """The bound of the rank may be far above it (26 of 112 here), so that no λ leaves its share of the bound."""
    problem = problems.problem(SimCLR(0.5), curvature, module=problems.Linear(), image=3)
    matrix = np.asarray(matrix_of(problem))
    eigenvalues = np.linalg.eigvalsh(matrix)
    rank = np.linalg.matrix_rank(matrix)
    spectrum = spectrum_by_products(problem, 64, 40)
    for share in (0.1, 0.5, 0.97):
        found = float(Damping(effective_dimension=share).resolve_by_spectrum(spectrum))
        np.testing.assert_allclose(np.sum(eigenvalues / (eigenvalues + found)) / rank, share, atol=0.08)


def test_eigenvalues_of_many_parameters_count_in_float32_too():
    """A million eigenvalues of a hundredth: a million unit roundoffs are more than that."""
    spectrum = Spectrum(jnp.asarray([1.0, 0.01], jnp.float32), jnp.asarray([1.0, 999_999.0], jnp.float32))
    assert float(Damping(effective_dimension=0.5).resolve_by_spectrum(spectrum)) == pytest.approx(0.01, rel=1e-4)


def test_rows_in_bfloat16_give_the_effective_dimension_of_dependent_rows():
    """80 rows of rank 24: rounding each of them to bfloat16 makes all independent, with eigenvalues of nothing."""
    share = Damping(effective_dimension=0.1)
    exact, rounded = (
        float(Gram().resolve(case(dtype=jnp.float32, storage=storage)[2], share)) for storage in ("working", "bfloat16")
    )
    np.testing.assert_allclose(rounded, exact, rtol=0.3)


@pytest.mark.parametrize("damping", [Damping(absolute=1e-45), Damping(absolute=1e60), Damping(1e-42)])
def test_damping_that_the_working_type_cannot_hold_is_refused(damping):
    state = case(dtype=jnp.float32)[2]
    with pytest.raises(InfluenceError, match=r"is λ = .* here, and float32 computes with numbers from"):
        Gram().resolve(state, damping)


def test_solve_under_vmap_keeps_float64_products_where_the_working_type_is_float32():
    """CG solves all rows of a block at once, and Gram may be its preconditioner."""
    backend, problem, state, gradients, _ = case(dtype=jnp.float32, samples=3)
    damping = jnp.asarray(1e-3 * float(backend.mean_eigenvalue(state)), jnp.float32)
    with jax.enable_x64(False):
        rows = every_gradient(gradients)

        @jax.jit  # a loop of CG likewise: traced first, and made a batch afterwards
        def solve(row):
            return trees.ravel(backend.solve(state, trees.unravel(problem.params, row), damping))

        together, alone = jax.vmap(solve)(rows[:3]), solve(rows[1])
    np.testing.assert_array_equal(together[1], alone)
