"""What every backend promises, asked of every backend in the one list, on every small problem."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influence_ssl_jax import trees
from influence_ssl_jax.errors import InfluenceError, StructureError
from influence_ssl_jax.ihvp import BACKENDS, Damping, LiSSA
from tests.ihvp.fitted import PROBLEMS, SMALL, fitted, jitted


def test_the_list_is_covered():
    assert set(SMALL) == set(BACKENDS)


every = pytest.mark.parametrize("kind", BACKENDS, ids=lambda kind: kind.__name__)
on_each = pytest.mark.parametrize("name", PROBLEMS)


@every
@on_each
def test_solve_is_linear_self_adjoint_and_honours_any_damping(kind, name):
    backend, problem, state, _ = fitted(kind, name)
    solve = jitted(backend, "solve")

    @settings(max_examples=8)
    @given(st.integers(0, 2**31), st.floats(1e-3, 1e3))
    def check(seed, relative):
        damping = backend.resolve(state, Damping(relative))
        rng = np.random.default_rng(seed)
        v, w = (jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), problem.params) for _ in range(2))
        x, y = solve(state, v, damping), solve(state, w, damping)
        both = solve(state, trees.axpy(2.0, v, w), damping)
        size = float(trees.norm(both))
        assert float(trees.norm(jax.tree.map(lambda b, a, c: b - 2 * a - c, both, x, y))) <= 1e-8 * size
        left, right = float(trees.dot(w, x)), float(trees.dot(v, y))
        assert abs(left - right) <= 1e-8 * float(trees.norm(v) * trees.norm(y))
        assert float(trees.dot(v, x)) >= 0
        np.testing.assert_array_equal(trees.ravel(solve(state, v, damping)), trees.ravel(x))

    check()


@every
@on_each
def test_forms_agree_with_solve(kind, name):
    """Quadratic form = ⟨g, solve g⟩; the draw Gram and the bilinear form hold the same numbers; self is its diagonal."""
    backend, _, state, gradients = fitted(kind, name)
    damping = backend.resolve(state, Damping(0.3))
    rows = jax.jit(type(gradients).full)(gradients)
    solved = jax.jit(jax.vmap(backend.solve, in_axes=(None, 0, None)))(state, rows, damping)
    want = trees.ravel_batch(rows) @ trees.ravel_batch(solved).T
    scale = np.abs(want).max()
    got = jitted(backend, "bilinear_form")(state, gradients, gradients, damping)
    np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-9 * scale)
    diagonal = jitted(backend, "quadratic_form")(state, gradients, damping)
    np.testing.assert_allclose(diagonal, np.diag(want), rtol=1e-7, atol=1e-9 * scale)
    form = jitted(backend, "draw_gram")(state, gradients, damping)
    b = want.shape[0] // 2
    blocks = want.reshape(2, b, 2, b)[:, np.arange(b), :, np.arange(b)]
    np.testing.assert_allclose(form.values, blocks, rtol=1e-7, atol=1e-9 * scale)
    assert form.residual.shape == (b,)
    # LiSSA's series is cut short; what it is must agree all the same, and it says how far it is from solved.
    assert float(form.residual.max()) < (1.0 if kind is LiSSA else 1e-10)


@every
@on_each
def test_forms_fall_with_damping_and_tend_to_the_identity(kind, name):
    backend, problem, state, gradients = fitted(kind, name)
    quadratic = jitted(backend, "quadratic_form")
    values = [quadratic(state, gradients, backend.resolve(state, Damping(10.0**p))) for p in range(-2, 3)]
    assert all((a >= b).all() and (b >= 0).all() for a, b in itertools.pairwise(values))
    large = 1e9 * float(max(jax.tree.leaves(backend.resolve(state, Damping(1.0)))))
    v = problem.params
    damping = backend.resolve(state, Damping(absolute=large))
    limit = trees.scale(large, jitted(backend, "solve")(state, v, damping))
    if not backend.definite:  # what lies outside its bases is dropped: a second solve changes nothing more
        cross = trees.dot(limit, v)
        assert float(cross) > 0
    else:
        np.testing.assert_allclose(trees.ravel(limit), trees.ravel(v), atol=1e-6 * float(trees.norm(v)))


@every
def test_jit_is_no_jit_and_traces_once(kind):
    backend, problem, state, _ = fitted(kind, "linear")
    traces = 0

    def solve(state, v, damping):
        nonlocal traces
        traces += 1
        return backend.solve(state, v, damping)

    compiled = jax.jit(solve)
    for relative in (0.1, 1.0, 10.0):
        damping = backend.resolve(state, Damping(relative))
        once = compiled(state, problem.params, damping)
        np.testing.assert_allclose(
            trees.ravel(once), trees.ravel(backend.solve(state, problem.params, damping)), rtol=1e-9
        )
    assert traces == 1


@every
def test_a_vector_of_another_structure_is_refused(kind):
    backend, _, state, _ = fitted(kind, "linear")
    damping = backend.resolve(state, Damping())
    with pytest.raises(StructureError, match="structure and shapes"):
        backend.solve(state, {"other": jnp.zeros(3)}, damping)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_damping_must_be_positive(value):
    with pytest.raises(InfluenceError, match="positive"):
        Damping(relative=value)
    with pytest.raises(InfluenceError, match="positive"):
        Damping(absolute=value)


def test_forms_do_not_depend_on_batch_size_or_order():
    for kind in BACKENDS:
        backend, _, state, gradients = fitted(kind, "cosine")
        damping = backend.resolve(state, Damping())
        n = gradients.cotangents.shape[1]
        order = np.random.default_rng(0).permutation(n)[:5]
        some = dataclasses.replace(
            gradients, images=gradients.images[:, order], cotangents=gradients.cotangents[:, order], draws=1
        )
        whole = jitted(backend, "quadratic_form")(state, gradients, damping)
        np.testing.assert_allclose(jitted(backend, "quadratic_form")(state, some, damping), whole[order], rtol=1e-9)
