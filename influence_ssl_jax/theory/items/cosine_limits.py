"""Theorem 1 for the cosine distance: small-damping limits and scaling."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory import cosine, gauss_newton, homogeneous, oracle
from influence_ssl_jax.theory.draw import Draw
from influence_ssl_jax.theory.item import AtLeast, AtMost, Check, Item
from influence_ssl_jax.theory.items.cosine_derivatives import Pair, jacobian, worst


def _exact_limit(draw: Draw) -> Float[Array, ""]:
    pair = Pair(draw)
    loss = cosine.distance(*pair.outputs)
    closed = homogeneous.influence_limit(loss, 0)
    limits = [oracle.pseudo_quadratic(d.hessian, d.gradient) for d in (pair.full, pair.stopped)]
    return jnp.maximum(*(jnp.abs(limit - closed) for limit in limits)) / loss


def _gauss_newton_limits(draw: Draw) -> Float[Array, ""]:
    pair = Pair(draw)
    return worst(
        (cosine.full_limit(*pair.outputs), gauss_newton.influence_limit(pair.residual, pair.jacobian)),
        (cosine.stop_gradient_limit(*pair.outputs), gauss_newton.influence_limit(pair.residual, pair.held_jacobian)),
    )


def _scores(draw: Draw, damping) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Gauss–Newton scores at W with λ = 0.1 and at 3W with the damping given."""
    pair = Pair(draw)
    gram = pair.jacobian @ pair.jacobian.T
    scaled = jacobian(lambda w: gauss_newton.cosine_residual(w @ pair.x, w @ pair.perturbed), 3 * pair.weight)
    return (
        gauss_newton.influence(pair.residual, gram, 0.1),
        gauss_newton.influence(pair.residual, scaled @ scaled.T, damping),
    )


def _rescaled(draw: Draw) -> Float[Array, ""]:
    here, there = _scores(draw, homogeneous.rescaled_damping(0.1, 3.0, 0))
    return oracle.relative(homogeneous.rescaled(here, 3.0, 0), there)


def _fixed_damping_ratio(draw: Draw) -> Float[Array, ""]:
    here, there = _scores(draw, 0.1)
    return there / here


ITEMS = (
    Item(
        name="cosine-limits",
        title="Theorem 1 for the cosine distance",
        source="Sec. 4 uses the cosine distance, App. C.1 proves the Euclidean case; derived here",
        statement=r"Theorem 1 carries over to the cosine distance: $I_0 = 2\,l$.",
        status="true under conditions",
        conditions=r"With the Gauss–Newton matrix, both branches differentiated and $\hat u \neq \pm\hat v$.",
        correction=r"Gauss–Newton: $2(1 - c)$ in full, $1 - c^2$ with stop-gradient. Exact Hessian: $g^\top H^{+} g = 0$ "
        r"identically. $I_{\lambda/c^2}(cW) = I_\lambda(W)$ in place of Claim 3.",
        checks=(
            Check("exact Hessian: |gᵀH⁺g|/l, both variants", _exact_limit, AtMost(1e-6)),
            Check("Gauss–Newton: 2(1 − c) and 1 − c², rel. error", _gauss_newton_limits, AtMost(1e-6)),
            Check("3W with λ/9: rel. error", _rescaled, AtMost(1e-9)),
            Check("3W at fixed λ: I(3W)/I(W), 9 by Claim 3", _fixed_damping_ratio, AtMost(1.0)),
            Check("3W at fixed λ: I(3W)/I(W)", _fixed_damping_ratio, AtLeast(1 / 9, "worst")),
        ),
    ),
)
