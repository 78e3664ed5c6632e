"""Gauss and Gauss–Radau quadrature: two-sided bounds of `gᵀ(C + λI)⁻¹g` from products with C alone."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

BlockMatvec: TypeAlias = Callable[[Float[Array, "n size"]], Float[Array, "n size"]]
_PROBES = 2


class Bounds(NamedTuple):
    """`lower ≤ gᵀ(C + λI)⁻¹g ≤ upper` for each g.

    Attributes:
        lower: Gauss quadrature.
        upper: Gauss–Radau quadrature; infinite where rounding, as measured, is as large as λ.
        slack: η, the perturbation of C that the bounds allow for.
        steps: Lanczos steps taken.
    """

    lower: Float[Array, " n"]
    upper: Float[Array, " n"]
    slack: Float[Array, " n"]
    steps: Int[Array, ""]


class _Lanczos(NamedTuple):
    """`C Qᵀ = Qᵀ T + β q eᵀ` of every start in lockstep; T has diagonal α and off-diagonal β, q stands after Q."""

    rows: Float[Array, "n rows size"]
    alpha: Float[Array, "n steps"]
    beta: Float[Array, "n steps"]
    taken: Int[Array, ""]


def quadratic_form_bounds(
    products: BlockMatvec,
    starts: Float[Array, "n size"],
    damping: Float[Array, ""],
    key: Key[Array, ""],
    width: float = 0.05,
    steps: int = 60,
    rounding: float = 32.0,
) -> Bounds:
    """Bounds of `gᵀ(C + λI)⁻¹g` by Lanczos started at each g, all in lockstep, until every interval is narrow enough.

    With `T` the tridiagonal matrix of k steps, `‖g‖² e₁ᵀ(T + λI)⁻¹e₁` (Gauss) is a lower bound, and the same with T
    extended by one row so that 0 is an eigenvalue (Gauss–Radau; no eigenvalue of C is smaller) an upper bound.

    In floating point the recurrence is that of a nearby matrix: if `C Qᵀ = Qᵀ T + β q eᵀ + F` with orthonormal Q, then
    some symmetric `C' = C + Δ` with ‖Δ‖ ≤ 2‖F‖ satisfies it exactly. From `C' − ηI ⪯ C ⪯ C' + ηI` for η ≥ ‖Δ‖ the
    bounds hold with damping λ + η below, and damping λ − η with the node moved to −η above. η is measured after the
    last step: `‖F s‖`, s random signs, estimates ‖F‖_F (the largest of two is doubled); the loss of orthogonality
    `‖QQᵀ − I‖_F` counts as a residual of that size times ‖T‖; and `rounding` unit roundoffs times ‖T‖ + λ stand for
    the rounding of C itself (the point at which a network was linearised), which no product with C shows. g, too, is
    taken to be known up to `rounding` unit roundoffs of its norm.
    Reference: Golub & Meurant, Matrices, Moments and Quadrature, chapters 6 and 8; Δ: Parlett, The Symmetric
    Eigenvalue Problem, section 4.5.

    Args:
        products: V ↦ V C for rows V, C positive semi-definite.
        starts: The vectors g, as rows. Memory: (steps + 1) times as much.
        damping: λ.
        key: Draws the signs that measure the residual.
        width: Stop where (upper − lower) ≤ width · their mean for every g.
        steps: Stop after so many.
        rounding: Unit roundoffs to allow for in C and g.
    """
    length = jnp.linalg.norm(starts, axis=1)
    size, dtype = starts.shape[1], starts.dtype
    eps = jnp.asarray(jnp.finfo(dtype).eps, dtype)
    steps = min(steps, size)

    def bounds(found: _Lanczos, slack: Array) -> tuple[Array, Array]:
        low, high = _gauss(found, damping + slack), _radau(found, damping, slack)
        off = rounding * eps / jnp.sqrt(damping)  # ‖δg‖ in the norm of (C + λI)⁻¹, relative to ‖g‖
        low = jnp.maximum(jnp.sqrt(low) - off, 0.0) * length * (1 - 8 * eps)
        high = (jnp.sqrt(high) + off) * length * (1 + 8 * eps)
        return low**2, high**2

    def too_wide(found: _Lanczos) -> Array:
        low, high = bounds(found, rounding * eps * (_size_of(found) + damping))
        narrow = (high - low <= width * (high + low) / 2) | (length == 0)
        return (found.taken < steps) & ((found.taken == 0) | ~jnp.all(narrow))

    unit = starts / jnp.where(length > 0, length, 1.0)[:, None]
    zeros = jnp.zeros((starts.shape[0], steps), dtype)
    rows = jnp.zeros((starts.shape[0], steps + 1, size), dtype).at[:, 0].set(unit)
    begin = _Lanczos(rows, zeros, zeros, jnp.zeros((), int))
    found = jax.lax.while_loop(too_wide, lambda found: _step(products, found), begin)
    slack = rounding * eps * (_size_of(found) + damping) + _measured_slack(products, found, key)
    low, high = bounds(found, slack)
    return Bounds(low, jnp.where(length > 0, high, 0.0), slack, found.taken)


def _step(products: BlockMatvec, found: _Lanczos) -> _Lanczos:
    """One step with full reorthogonalisation, twice; zeros after a breakdown."""
    i = found.taken
    vector = found.rows[:, i]
    product = products(vector)
    alpha = jnp.sum(vector * product, axis=1)
    for _ in range(2):
        coefficients = jnp.einsum("nkp,np->nk", found.rows, product)
        product = product - jnp.einsum("nk,nkp->np", coefficients, found.rows)
    beta = jnp.linalg.norm(product, axis=1)
    floor = 10 * jnp.finfo(product.dtype).eps * jnp.maximum(_size_of(found), jnp.abs(alpha))
    beta = jnp.where(beta > floor, beta, 0.0)
    following = jnp.where(beta > 0, 1 / jnp.where(beta > 0, beta, 1.0), 0.0)[:, None] * product
    return _Lanczos(
        found.rows.at[:, i + 1].set(following), found.alpha.at[:, i].set(alpha), found.beta.at[:, i].set(beta), i + 1
    )


def _gauss(found: _Lanczos, damping: Array) -> Array:
    """`e₁ᵀ(T + damping)⁻¹e₁`."""
    return _corner_of_inverse(found, damping, jnp.zeros_like(damping))


def _radau(found: _Lanczos, damping: Array, slack: Array) -> Array:
    """The same with damping − slack and T extended so that −slack is its smallest eigenvalue."""

    def forward(pivot: Array, entry: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        i, alpha, coupled = entry
        pivot = jnp.where(i < found.taken, alpha + slack - coupled / pivot, pivot)
        return pivot, pivot

    before = jnp.concatenate([jnp.zeros_like(found.beta[:, :1]), found.beta[:, :-1]], axis=1) ** 2
    entries = jnp.arange(found.alpha.shape[1]), found.alpha.T, before.T
    last, pivots = jax.lax.scan(forward, jnp.ones_like(slack), entries)
    coupled = found.beta[:, jnp.maximum(found.taken - 1, 0)] ** 2
    extended = coupled / last - slack + damping - slack
    value = _corner_of_inverse(found, damping - slack, coupled / extended)
    definite = jnp.all(pivots > 0, axis=0) & (damping > 2 * slack) & (value > 0)
    return jnp.where(definite, value, jnp.inf)


def _corner_of_inverse(found: _Lanczos, damping: Array, tail: Array) -> Array:
    """`1 / (α₁ + λ − β₁² / (α₂ + λ − …  − tail))`: a continued fraction from its end, stable to rounding in T."""

    def backward(pivot: Array, entry: tuple[Array, Array, Array]) -> tuple[Array, None]:
        i, alpha, beta = entry
        behind = jnp.where(i == found.taken - 1, tail, beta**2 / pivot)
        return jnp.where(i < found.taken, alpha + damping - behind, pivot), None

    entries = jnp.arange(found.alpha.shape[1]), found.alpha.T, found.beta.T
    pivot, _ = jax.lax.scan(backward, jnp.ones_like(found.alpha[:, 0]), entries, reverse=True)
    return 1 / pivot


def _size_of(found: _Lanczos) -> Float[Array, " n"]:
    """Gershgorin's bound of ‖T‖."""
    before = jnp.concatenate([jnp.zeros_like(found.beta[:, :1]), found.beta[:, :-1]], axis=1)
    return jnp.max(jnp.abs(found.alpha) + found.beta + before, axis=1)


def _measured_slack(products: BlockMatvec, found: _Lanczos, key: Key[Array, ""]) -> Float[Array, " n"]:
    """`2 (2 ‖F s‖ + 2 √2 ‖T‖ ‖QQᵀ − I‖_F)`, see `quadratic_form_bounds`."""
    n, steps = found.alpha.shape
    used = jnp.arange(steps) < found.taken

    def residual(key: Key[Array, ""]) -> Float[Array, " n"]:
        signs = jnp.where(used, jax.random.rademacher(key, (n, steps), found.alpha.dtype), 0.0)
        beta = jnp.where(used, found.beta, 0.0)
        onward = jnp.pad(beta * signs, ((0, 0), (1, 0)))
        back = jnp.pad((beta * jnp.pad(signs[:, 1:], ((0, 0), (0, 1)))), ((0, 0), (0, 1)))
        expected = jnp.pad(found.alpha * signs, ((0, 0), (0, 1))) + onward + back
        product = products(jnp.einsum("nk,nkp->np", signs, found.rows[:, :steps]))
        return jnp.linalg.norm(product - jnp.einsum("nk,nkp->np", expected, found.rows), axis=1)

    worst = jnp.max(jax.lax.map(residual, jax.random.split(key, _PROBES)), axis=0)
    gram = jnp.einsum("nkp,nlp->nkl", found.rows, found.rows)
    alive = jnp.any(found.rows != 0, axis=2)
    identity = jnp.eye(steps + 1, dtype=gram.dtype)[None] * alive[:, :, None]
    orthogonality = jnp.linalg.norm(gram - identity, axis=(1, 2))
    return 4 * worst + 2 * 8**0.5 * _size_of(found) * orthogonality
