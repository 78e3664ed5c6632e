"""What stands for rounding in the linear algebra, made large: the node of Radau, the measured slack, Nyström's shift."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax.linalg import nystrom as module
from influence_ssl_jax.linalg.nystrom import nystrom
from influence_ssl_jax.linalg.quadrature import Tridiagonal, gauss, quadratic_form_bounds, radau

SIZE = 24


def definite(low=0.01, seed=0):
    orthogonal = np.linalg.qr(np.random.default_rng(seed).normal(size=(SIZE, SIZE)))[0]
    return (orthogonal * np.linspace(low, 1, SIZE)) @ orthogonal.T


def lanczos(matrix, start, steps):
    """T of so many steps, with the coupling to what comes next: α and β."""
    rows, alphas, betas = [start / np.linalg.norm(start)], [], []
    for _ in range(steps):
        moved = matrix @ rows[-1]
        alphas.append(rows[-1] @ moved)
        for _ in range(2):
            moved = moved - np.array(rows).T @ (np.array(rows) @ moved)
        betas.append(np.linalg.norm(moved))
        rows.append(moved / betas[-1])
    return np.array(alphas), np.array(betas)


@pytest.mark.parametrize("slack", [0.0, 0.04])
def test_the_node_of_radau_is_minus_the_slack_and_its_damping_smaller_by_it(slack):
    """`e₁ᵀ(T' + (λ − η) I)⁻¹e₁`, T' extended by the row that makes −η its smallest eigenvalue; two rows are not in use."""
    steps, damping = 5, 0.3
    alpha, beta = lanczos(definite(), np.random.default_rng(1).normal(size=SIZE), steps)
    inner = np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
    extended = np.zeros((steps + 1, steps + 1))
    extended[:steps, :steps] = inner
    extended[steps, steps - 1] = extended[steps - 1, steps] = beta[-1]
    tail = np.linalg.inv(inner + slack * np.eye(steps))[-1, -1]
    extended[steps, steps] = -slack + beta[-1] ** 2 * tail
    np.testing.assert_allclose(np.linalg.eigvalsh(extended)[0], -slack, atol=1e-12)
    unused = np.full(2, np.nan)
    held = Tridiagonal(
        jnp.asarray(np.r_[alpha, unused])[None], jnp.asarray(np.r_[beta, unused])[None], jnp.asarray(steps)
    )
    want = np.linalg.inv(extended + (damping - slack) * np.eye(steps + 1))[0, 0]
    np.testing.assert_allclose(radau(held, jnp.asarray(damping), jnp.full(1, slack)), [want], rtol=1e-10)
    below = np.linalg.inv(inner + damping * np.eye(steps))[0, 0]
    np.testing.assert_allclose(gauss(held, jnp.full(1, damping)), [below], rtol=1e-10)
    assert np.isinf(radau(held, jnp.asarray(0.08), jnp.full(1, 0.04))).all()


def test_products_that_are_not_those_of_a_symmetric_matrix_are_measured_and_allowed_for():
    """A skew part of norm s leaves a residual of the recurrence that no count of roundoffs tells of."""
    rng = np.random.default_rng(2)
    skew = rng.normal(size=(SIZE, SIZE))
    skew = 3e-4 * (skew - skew.T) / np.linalg.norm(skew - skew.T, 2)
    matrix, starts, damping = definite(), rng.normal(size=(20, SIZE)), 0.1
    found = jax.jit(
        lambda starts: quadratic_form_bounds(
            lambda rows: rows @ jnp.asarray(matrix + skew), starts, jnp.asarray(damping), jax.random.key(0), 1e-9, 12
        )
    )(jnp.asarray(starts))
    want = np.sum(starts * np.linalg.solve(matrix + damping * np.eye(SIZE), starts.T).T, axis=1)
    assert (found.lower <= want).all()
    assert (want <= found.upper).all()
    assert (np.asarray(found.slack) > 3e-4).all()
    assert (np.asarray(found.upper - found.lower) < 0.5 * want).all()


def test_the_shift_of_nystrom_is_taken_off_again(monkeypatch):
    """A thousand times as large as a rounding, it still changes no eigenvalue at full rank."""
    coarse = types.SimpleNamespace(eps=1e-3, tiny=np.finfo(float).tiny)
    monkeypatch.setattr(module, "jnp", types.SimpleNamespace(**{**vars(jnp), "finfo": lambda _: coarse}))
    matrix = definite(0.1)
    found = nystrom(lambda rows: rows @ jnp.asarray(matrix), jax.random.key(1), jnp.zeros(SIZE), SIZE)
    np.testing.assert_allclose(np.sort(found.eigenvalues), np.linalg.eigvalsh(matrix), rtol=1e-9)
