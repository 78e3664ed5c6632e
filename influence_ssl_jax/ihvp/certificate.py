"""Bounds of the exact `gᵀ(C + λI)⁻¹g` from the solution of any backend, good or bad."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.flat import flat_products
from influence_ssl_jax.errors import CurvatureError
from influence_ssl_jax.ihvp.backend import Backend, Interval, State
from influence_ssl_jax.linalg.krylov import Rows
from influence_ssl_jax.linalg.power import largest_eigenvalue
from influence_ssl_jax.linalg.quadrature import Bounds, Offset, quadratic_form_bounds
from influence_ssl_jax.problem import Problem

_POWER_STEPS = 8


class Solved(NamedTuple):
    """What a backend makes of gradients g, and the products that judge it: `x`, and `A x` with `A = C + λI`.

    Attributes:
        rows: g.
        solutions: x.
        products: A x.
        doubt: Bound of the rounding error of g, in norm.
        product_doubt: Bound of the rounding error of A x, in norm.
    """

    rows: Float[Array, "n size"]
    solutions: Float[Array, "n size"]
    products: Float[Array, "n size"]
    doubt: Float[Array, " n"]
    product_doubt: Float[Array, " n"]


class Certificate(NamedTuple):
    """What a backend says of each gradient, and how wrong it can be.

    Attributes:
        value: `gᵀx`, the backend's own form.
        residual: `‖g − (C + λI)x‖ / ‖g‖`; zero where g is.
        interval: Bounds of the exact form.
    """

    value: Float[Array, " n"]
    residual: Float[Array, " n"]
    interval: Interval


def solved_by(
    backend: Backend[State],
    state: State,
    problem: Problem,
    rows: Float[Array, "n size"],
    damping: Float[Array, ""],
    rounding: float = 32.0,
) -> Solved:
    """Solve for every gradient and multiply the solution by the matrix itself: one product with C a gradient.

    Args:
        backend: Any, fitted to the problem; its `solve` need not be near the inverse.
        state: What `fit` returned.
        problem: Whose curvature.
        rows: The gradients g, each ravelled (`trees.ravel_batch(gradients.full())`).
        damping: λ, one for the whole matrix.
        rounding: Unit roundoffs to allow for, relative to ‖g‖ in g and to (‖C‖ + λ)‖x‖ in products; what products are
            seen to lose comes on top.

    Raises:
        CurvatureError: C is a Hessian, which has no known lower bound.
    """
    if problem.curvature == "hessian":
        raise CurvatureError(
            "Bounds take a C that is positive semi-definite by construction: 'ggn', 'fisher' or 'empirical_fisher', got "
            "curvature='hessian', whose smallest eigenvalue is only ever estimated."
        )
    products, like = flat_products(problem), problem.params
    solutions = jax.vmap(lambda v: trees.ravel(backend.solve(state, trees.unravel(like, v), damping)))(rows)
    moved = products(solutions) + damping * solutions
    # A power iteration rises from below; twice its value after a few steps is above.
    size = 2 * largest_eigenvalue(products, jax.random.key(0), rows[0], _POWER_STEPS)
    unit = rounding * jnp.finfo(rows.dtype).eps
    per_unit = unit * (size + damping) + 4 * _nonlinearity(products, rows[0])
    doubt = unit * jnp.linalg.norm(rows, axis=1)
    return Solved(rows, solutions, moved, doubt, per_unit * jnp.linalg.norm(solutions, axis=1))


def certificate(found: Solved, damping: Float[Array, ""]) -> Certificate:
    """Bounds from no more than a solution and its residual, whatever the solution's length.

    For every t, `r = g − t A x` gives `gᵀA⁻¹g = 2t gᵀx − t² xᵀAx + rᵀA⁻¹r` with `0 ≤ rᵀA⁻¹r ≤ ‖r‖²/λ`, as no eigenvalue
    of A is below λ. The lower bound is largest at `t = gᵀx / xᵀAx`, the upper one smallest where
    `t (‖Ax‖²/λ − xᵀAx) = gᵀAx/λ − gᵀx`: a backend's bias by a common factor costs nothing.
    """
    along, energy = _dot(found.rows, found.solutions), _dot(found.solutions, found.products)
    steep, curved = _dot(found.rows, found.products), _dot(found.products, found.products)
    below, (rest, above) = (
        _left(found, _ratio(along, energy))[1],
        _left(found, _ratio(steep / damping - along, curved / damping - energy)),
    )
    upper = above.values + above.error + (jnp.linalg.norm(rest, axis=1) + above.doubt) ** 2 / damping
    length = jnp.linalg.norm(found.rows, axis=1)
    missing = jnp.linalg.norm(found.rows - found.products, axis=1)
    return Certificate(
        along,
        missing / jnp.where(length > 0, length, 1.0),
        Interval(jnp.maximum(below.values - below.error, 0.0), upper),
    )


def refined(
    found: Solved,
    problem: Problem,
    damping: Float[Array, ""],
    key: Key[Array, ""],
    width: float | Float[Array, ""] = 0.05,
    steps: int = 60,
    rounding: float = 32.0,
) -> Bounds:
    """Bounds as narrow as asked: Gauss and Gauss–Radau quadrature of what the solution leaves, `rᵀA⁻¹r`.

    The bounds hold whatever the backend. Products are saved by the Galerkin solution in a shared Krylov subspace,
    `Arnoldi(complement="drop")`: its residual has next to nothing along the large eigenvalues, so that Lanczos does not
    see them, as if the matrix were deflated. Other backends' residuals have parts everywhere, and save nothing.
    """
    scale = _ratio(_dot(found.rows, found.solutions), _dot(found.solutions, found.products))
    rest, known = _left(found, scale)
    return quadratic_form_bounds(flat_products(problem), rest, damping, key, width, steps, rounding, known)


def _nonlinearity(products: Rows, like: Float[Array, " size"]) -> Float[Array, ""]:
    """`‖C(u + w) − Cu − Cw‖` of random unit vectors, the larger of two: what rounding does to products.

    Where views are nearly equal, a measurement's Jacobian is a small difference of large ones, and products lose digits
    in proportion, a thousand times as many as ‖C‖ would tell.
    """

    def one(key: Key[Array, ""]) -> Float[Array, ""]:
        drawn = jax.random.normal(key, (2, like.size), like.dtype)
        u, w = drawn / jnp.linalg.norm(drawn, axis=1, keepdims=True)
        both, first, second = products(jnp.stack([u + w, u, w]))
        return jnp.linalg.norm(both - first - second)

    return jnp.max(jax.lax.map(one, jax.random.split(jax.random.key(1))))


def _left(found: Solved, scale: Float[Array, " n"]) -> tuple[Float[Array, "n size"], Offset]:
    """`r = g − t A x`, and `2t gᵀx − t² xᵀAx` with what rounding can have done to both."""
    values = 2 * scale * _dot(found.rows, found.solutions) - scale**2 * _dot(found.solutions, found.products)
    length = jnp.abs(scale) * jnp.linalg.norm(found.solutions, axis=1)
    product_doubt = jnp.abs(scale) * found.product_doubt
    error = length * (2 * found.doubt + product_doubt)
    return found.rows - scale[:, None] * found.products, Offset(values, error, found.doubt + product_doubt)


def _ratio(above: Float[Array, " n"], below: Float[Array, " n"]) -> Float[Array, " n"]:
    """A factor for a solution, 1 where there is none to choose."""
    return jnp.where(below > 0, above / jnp.where(below > 0, below, 1.0), 1.0)


def _dot(left: Float[Array, "n size"], right: Float[Array, "n size"]) -> Float[Array, " n"]:
    return jnp.sum(left * right, axis=1)
