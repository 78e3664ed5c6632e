"""Gradient and Hessian of the cosine distance `l = 1 − c` in W, for `f(x) = Wx` (row-major vec W).

`u = Wx`, `v = Wx′`, `û`, `v̂` their directions, `c = û·v̂`, `P = v̂ − cû`, `q = û − cv̂`. The `stop_gradient` forms hold
the perturbed branch v fixed. Derived for this project; arXiv 2412.17170 gives no such formula.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class _Angles(NamedTuple):
    """The two directions, their cosine, and the lengths that were divided out."""

    left: Float[Array, " d"]
    right: Float[Array, " d"]
    cosine: Float[Array, ""]
    left_norm: Float[Array, ""]
    right_norm: Float[Array, ""]


def gradient(weight: Float[Array, "d p"], x: Float[Array, " p"], perturbed: Float[Array, " p"]) -> Float[Array, "d p"]:
    """`G = −P xᵀ/‖u‖ − q x′ᵀ/‖v‖`: O(ε²), since the branches cancel. `⟨G, W⟩ = 0` and `GWᵀ` is symmetric."""
    return stop_gradient(weight, x, perturbed) + stop_gradient(weight, perturbed, x)


def stop_gradient(weight: Float[Array, "d p"], x: Float[Array, " p"], fixed: Float[Array, " p"]) -> Float[Array, "d p"]:
    """`G = −P xᵀ/‖u‖` with the branch of `fixed` held: O(ε), an order larger than `gradient`."""
    angles = _angles(weight, x, fixed)
    return -jnp.outer(angles.right - angles.cosine * angles.left, x) / angles.left_norm


def squared_norm(weight: Float[Array, "d p"], x: Float[Array, " p"], perturbed: Float[Array, " p"]) -> Float[Array, ""]:
    """`‖G‖² = (1 − c²)·‖x/‖u‖ − x′/‖v‖‖² + 2(1 − c²)(1 − c) x·x′/(‖u‖‖v‖)`, free of cancellation at small angles."""
    angles = _angles(weight, x, perturbed)
    left, right = x / angles.left_norm, perturbed / angles.right_norm
    chord = angles.left - angles.right
    half = chord @ chord / 2
    return half * (2 - half) * (jnp.sum((left - right) ** 2) + 2 * half * (left @ right))


def stop_gradient_squared_norm(
    weight: Float[Array, "d p"], x: Float[Array, " p"], fixed: Float[Array, " p"]
) -> Float[Array, ""]:
    """`‖G‖² = (1 − c²)‖x‖²/‖u‖²`."""
    angles = _angles(weight, x, fixed)
    chord = angles.left - angles.right
    half = chord @ chord / 2
    return half * (2 - half) * (x @ x) / angles.left_norm**2


def jacobian(weight: Float[Array, "d p"], x: Float[Array, " p"], perturbed: Float[Array, " p"]) -> Float[Array, "d dp"]:
    """`J = P_u ⊗ xᵀ/‖u‖ − P_v ⊗ x′ᵀ/‖v‖` of the residual `r = û − v̂`, `P_u = I − ûûᵀ`: `G = Jᵀr`, Gauss–Newton `JᵀJ`."""
    return stop_gradient_jacobian(weight, x) - stop_gradient_jacobian(weight, perturbed)


def stop_gradient_jacobian(weight: Float[Array, "d p"], x: Float[Array, " p"]) -> Float[Array, "d dp"]:
    """`J = P_u ⊗ xᵀ/‖u‖`, whatever the branch that is held fixed."""
    angles = _angles(weight, x, x)
    across = jnp.eye(angles.left.size) - jnp.outer(angles.left, angles.left)
    return jnp.kron(across, x[None]) / angles.left_norm


def hessian(weight: Float[Array, "d p"], x: Float[Array, " p"], perturbed: Float[Array, " p"]) -> Float[Array, "dp dp"]:
    """`B_uu ⊗ xxᵀ + B_uv ⊗ xx′ᵀ + B_uvᵀ ⊗ x′xᵀ + B_vv ⊗ x′x′ᵀ`.

    `B_uv = −(I − v̂v̂ᵀ − ûqᵀ)/(‖u‖‖v‖)`. `H vec W = −vec G`: indefinite wherever G ≠ 0, and `gᵀH⁺g = 0` everywhere.
    """
    angles = _angles(weight, x, perturbed)
    left, right = angles.left, angles.right
    tangent = left - angles.cosine * right
    mixed = jnp.outer(right, right) + jnp.outer(left, tangent) - jnp.eye(left.size)
    cross = jnp.kron(mixed / (angles.left_norm * angles.right_norm), jnp.outer(x, perturbed))
    return stop_gradient_hessian(weight, x, perturbed) + stop_gradient_hessian(weight, perturbed, x) + cross + cross.T


def stop_gradient_hessian(
    weight: Float[Array, "d p"], x: Float[Array, " p"], fixed: Float[Array, " p"]
) -> Float[Array, "dp dp"]:
    """`B_uu ⊗ xxᵀ` with `B_uu = (Pûᵀ + ûPᵀ + c(I − ûûᵀ))/‖u‖²`."""
    angles = _angles(weight, x, fixed)
    turn = jnp.outer(angles.right - angles.cosine * angles.left, angles.left)
    across = jnp.eye(angles.left.size) - jnp.outer(angles.left, angles.left)
    return jnp.kron((turn + turn.T + angles.cosine * across) / angles.left_norm**2, jnp.outer(x, x))


def _angles(weight: Float[Array, "d p"], x: Float[Array, " p"], other: Float[Array, " p"]) -> _Angles:
    u, v = weight @ x, weight @ other
    left_norm, right_norm = jnp.linalg.norm(u), jnp.linalg.norm(v)
    left, right = u / left_norm, v / right_norm
    return _Angles(left=left, right=right, cosine=left @ right, left_norm=left_norm, right_norm=right_norm)
