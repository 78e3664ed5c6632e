"""The cosine distance of two encodings, its expansion in the perturbation, and its derivatives in W.

Proposition 3 of arXiv 2412.17170 (reconstructed) and what replaces it. `u = f(x)`, `v = f(a(x))`, `û`, `v̂` their
directions, `c = û·v̂`, `P = v̂ − cû`, `q = û − cv̂`; for a linear encoder `f(a(x)) = u + εm` with `m = Wδ`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory.scalars import Scalar


def distance(output: Float[Array, " d"], perturbed: Float[Array, " d"]) -> Float[Array, ""]:
    """`1 − cos(u, v) = ½‖û − v̂‖²`: the half-chord form keeps the digits that `1 − û·v̂` loses at small angles."""
    chord = _unit(output) - _unit(perturbed)
    return chord @ chord / 2


def moved_distance(output: Float[Array, " d"], move: Float[Array, " d"], eps: Scalar) -> Float[Array, ""]:
    """Cosine distance of u and u + εm from their geometry alone.

    With `s = 1 + εa`, `a = u·m/‖u‖²`, `k = ε²‖m_⊥‖²/‖u‖²`, `h = √(s² + k)`: `1 − s/h`, written as `k/(h(h + s))` where
    s > 0. There it equals `1 − (1 + c)^(−1/2)` with `c = k/s² = tan²` of the angle.
    """
    along = 1 + eps * (output @ move) / (output @ output)
    across = eps**2 * perpendicular(output, move)
    length = jnp.sqrt(along**2 + across)
    return jnp.where(along > 0, across / (length + jnp.abs(along)), length - along) / length


def perpendicular(output: Float[Array, " d"], move: Float[Array, " d"]) -> Float[Array, ""]:
    """`‖P_⊥ m‖²/‖u‖²`: the part of the move that turns u, relative to its length."""
    direction = _unit(output)
    across = move - (move @ direction) * direction
    return (across @ across) / (output @ output)


def leading(output: Float[Array, " d"], move: Float[Array, " d"], eps: Scalar) -> Float[Array, ""]:
    """Proposition 3 corrected: `1 − cos = ε²‖P_⊥m‖²/(2‖u‖²) + O(ε³)`."""
    return eps**2 * perpendicular(output, move) / 2


def third_order(output: Float[Array, " d"], move: Float[Array, " d"], eps: Scalar) -> Float[Array, ""]:
    """One term more: `ε²q/2 − ε³aq`, `q = ‖P_⊥m‖²/‖u‖²`, error O(ε⁴)."""
    along = (output @ move) / (output @ output)
    return leading(output, move, eps) - eps**3 * along * perpendicular(output, move)


def stated_leading(output: Float[Array, " d"], move: Float[Array, " d"], eps: Scalar) -> Float[Array, ""]:
    """Proposition 3 as stated: `ε²‖m‖²/(2‖u‖²)`. Too large by `1 + a²/q`: moves along u do not turn it."""
    return eps**2 * (move @ move) / (2 * (output @ output))


def expansion_bounds(tangent_squared: Scalar) -> Float[Array, "2"]:
    """`c/2 − 3c²/8 ≤ 1 − cos ≤ c/2` for `c = tan²` of an angle below a right angle."""
    half = jnp.asarray(tangent_squared) / 2
    return jnp.stack([half - 3 * half**2 / 2, half])


def full_limit(output: Float[Array, " d"], perturbed: Float[Array, " d"]) -> Float[Array, ""]:
    """Per-point Gauss–Newton score as λ → 0, both branches differentiated: `2(1 − c)`, twice the loss (û ≠ −v̂)."""
    return 2 * distance(output, perturbed)


def stop_gradient_limit(output: Float[Array, " d"], perturbed: Float[Array, " d"]) -> Float[Array, ""]:
    """The same with one branch held fixed: `1 − c² = sin²` of the angle."""
    half = distance(output, perturbed)
    return half * (2 - half)


def _unit(vector: Float[Array, " d"]) -> Float[Array, " d"]:
    return vector / jnp.linalg.norm(vector)
