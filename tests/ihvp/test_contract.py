"""What every backend promises, asked of every backend in the one list, on every small problem that can show more.

A linear net with a loss that couples examples for all; a convolutional one with a separable loss, and a linear one whose
eigenvalues are repeated, for those whose code meets something new there (`fitted.ASKED`).
"""

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
from influence_ssl_jax.ihvp import ASTRA, BACKENDS, Damping, LiSSA
from tests.ihvp.fitted import ASKED, BLOCKWISE, PROBLEMS, SMALL, asking, fitted, gradient_rows
from tests.ihvp.grid import places

pytestmark = pytest.mark.xdist_group("small problems")  # fitted once, in `fitted.py` and `dense.py`


def test_the_list_is_covered():
    assert set(SMALL) == set(BACKENDS)
    assert {name for _, name in ASKED} == set(PROBLEMS)


every = pytest.mark.parametrize("kind", BACKENDS, ids=lambda kind: kind.__name__)
on_each = pytest.mark.parametrize(("kind", "name"), ASKED, ids=lambda value: getattr(value, "__name__", value))


@on_each
def test_solve_is_linear_self_adjoint_and_honours_any_damping(kind, name):
    backend, _, state, _ = fitted(kind, name)
    ask, shape = asking(kind, name), gradient_rows(name).shape

    @settings(max_examples=6)
    @given(st.integers(0, 2**31), st.floats(1e-3, 1e3))
    def check(seed, relative):
        damping = backend.resolve(state, Damping(relative))
        rows = np.random.default_rng(seed).normal(size=shape)
        rows[2] = 2 * rows[0] + rows[1]
        solved = np.asarray(ask(rows, damping).solved)
        assert np.linalg.norm(solved[2] - 2 * solved[0] - solved[1]) <= 1e-8 * np.linalg.norm(solved[2])
        forms = rows @ solved.T
        scale = np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(solved, axis=1)[None]
        assert (np.abs(forms - forms.T) <= 1e-8 * scale).all()
        assert (np.diag(forms) >= 0).all()

    rows = np.random.default_rng(0).normal(size=shape)
    damping = backend.resolve(state, Damping(0.1))
    first = ask(rows, damping).solved
    check()
    np.testing.assert_array_equal(ask(rows, damping).solved, first)


@on_each
def test_forms_agree_with_solve(kind, name):
    """Quadratic form = ⟨g, solve g⟩; the draw Gram and the bilinear form hold the same numbers; self is its diagonal."""
    backend, _, state, _ = fitted(kind, name)
    rows = gradient_rows(name)
    computed = asking(kind, name)(rows, backend.resolve(state, Damping(0.3)))
    want = rows @ np.asarray(computed.solved).T
    scale = np.abs(want).max()
    np.testing.assert_allclose(computed.bilinear, want, rtol=1e-7, atol=1e-9 * scale)
    np.testing.assert_allclose(computed.quadratic, np.diag(want), rtol=1e-7, atol=1e-9 * scale)
    b = want.shape[0] // 2
    blocks = want.reshape(2, b, 2, b)[:, np.arange(b), :, np.arange(b)]
    np.testing.assert_allclose(computed.form.values, blocks, rtol=1e-7, atol=1e-9 * scale)
    assert computed.form.residual.shape == (b,)
    # A number of steps is cut short; what it is must agree all the same, and it says how far it is from computed.
    assert float(computed.form.residual.max()) < (1.0 if kind in (ASTRA, LiSSA) else 1e-10)


@on_each
def test_forms_fall_with_damping_and_tend_to_the_identity(kind, name):
    backend, _, state, _ = fitted(kind, name)
    ask, rows = asking(kind, name), gradient_rows(name)
    values = [ask(rows, backend.resolve(state, Damping(10.0**p))).quadratic for p in range(-2, 3)]
    assert all((a > b).all() and (b > 0).all() for a, b in itertools.pairwise(values))  # a damping ignored would tie
    large = 1e9 * float(max(jax.tree.leaves(backend.resolve(state, Damping(1.0)))))
    limit = large * np.asarray(ask(rows, backend.resolve(state, Damping(absolute=large))).solved)
    if backend.definite:
        np.testing.assert_allclose(limit, rows, atol=1e-6 * np.linalg.norm(rows, axis=1).max())
    else:  # what lies outside its bases is dropped
        assert (np.sum(limit * rows, axis=1) > 0).all()


@pytest.mark.parametrize("kind", BLOCKWISE, ids=lambda kind: kind.__name__)
def test_every_block_has_a_damping_of_its_own(kind):
    """What one block's damping is changes its own part of a solution and no other."""
    backend, problem, state, _ = fitted(kind, "cosine")
    rows, damping = gradient_rows("cosine"), backend.resolve(state, Damping())
    assert len(set(map(float, damping.values()))) == len(damping) == 3
    before = np.asarray(asking(kind, "cosine")(rows, damping).solved)
    for block in state.blocks:
        at = places(problem, block)
        other = {**damping, block.name: 2 * damping[block.name]}
        moved = np.asarray(asking(kind, "cosine")(rows, other).solved) != before
        assert moved[:, at].any()
        assert not np.delete(moved, at, axis=1).any()


@every
def test_jit_is_no_jit_and_traces_once(kind):
    backend, problem, state, _ = fitted(kind, "coupled")
    ask, rows = asking(kind, "coupled"), gradient_rows("coupled").copy()
    rows[0] = trees.ravel(problem.params)
    for relative in (0.1, 1.0, 10.0):
        damping = backend.resolve(state, Damping(relative))
        once = ask(rows, damping).solved[0]
    plain = backend.solve(state, problem.params, damping)
    np.testing.assert_allclose(once, trees.ravel(plain), rtol=1e-9)
    assert len(ask.traced) == len(set(ask.traced))


@every
def test_a_vector_of_another_structure_is_refused(kind):
    backend, _, state, _ = fitted(kind, "coupled")
    damping = backend.resolve(state, Damping())
    with pytest.raises(StructureError, match="structure and shapes"):
        backend.solve(state, {"other": jnp.zeros(3)}, damping)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_damping_must_be_positive(value):
    with pytest.raises(InfluenceError, match="positive"):
        Damping(relative=value)
    with pytest.raises(InfluenceError, match="positive"):
        Damping(absolute=value)


@on_each
def test_forms_do_not_depend_on_order(kind, name):
    backend, _, state, gradients = fitted(kind, name)
    rows, damping = gradient_rows(name), backend.resolve(state, Damping())
    half = rows.shape[0] // 2
    order = np.random.default_rng(0).permutation(half)
    order = np.concatenate([order, half + order])
    other = dataclasses.replace(gradients, images=gradients.images[:, order], cotangents=gradients.cotangents[:, order])
    one, moved = (asking(kind, name)(rows, damping, chosen) for chosen in (gradients, other))
    np.testing.assert_allclose(moved.quadratic, one.quadratic[order], rtol=1e-9)
    np.testing.assert_allclose(moved.form.values, one.form.values[order[:half]], rtol=1e-9)


@every
def test_forms_do_not_depend_on_batch_size(kind):
    backend, _, state, gradients = fitted(kind, "coupled")
    damping = backend.resolve(state, Damping())
    some = dataclasses.replace(
        gradients, images=gradients.images[:, 2:5], cotangents=gradients.cotangents[:, 2:5], draws=1
    )
    whole = asking(kind, "coupled")(gradient_rows("coupled"), damping).quadratic
    np.testing.assert_allclose(jax.jit(backend.quadratic_form)(state, some, damping), whole[2:5], rtol=1e-9)
