"""Gradient and Hessian of the cosine distance in W."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory import cosine_derivatives, gauss_newton, homogeneous, instances, oracle
from influence_ssl_jax.theory.draw import Draw
from influence_ssl_jax.theory.item import AtMost, Check, Item


class Pair:
    """A linear encoder, two inputs, and the derivatives of their cosine distance, with and without stop-gradient."""

    def __init__(self, draw: Draw, outputs: int = 3, inputs: int = 4):
        self.weight = draw.normal(outputs, inputs)
        self.x = draw.normal(inputs)
        self.perturbed = self.x + 0.5 * instances.unit(draw, inputs)
        self.arguments = self.weight, self.x, self.perturbed
        self.outputs = self.weight @ self.x, self.weight @ self.perturbed
        held = self.outputs[1]
        self.full = oracle.derivatives(lambda w: oracle.cosine(w @ self.x, w @ self.perturbed), self.weight)
        self.stopped = oracle.derivatives(lambda w: oracle.cosine(w @ self.x, held), self.weight)
        self.jacobian = jacobian(lambda w: gauss_newton.cosine_residual(w @ self.x, w @ self.perturbed), self.weight)
        self.held_jacobian = jacobian(lambda w: gauss_newton.cosine_residual(w @ self.x, held), self.weight)
        self.residual = gauss_newton.cosine_residual(*self.outputs)


def jacobian(residual, weight: Float[Array, "d p"]) -> Float[Array, "d k"]:
    """Of a residual in vec W, by automatic differentiation."""
    return jax.jacrev(residual)(weight).reshape(weight.shape[0], -1)


def worst(*pairs: tuple[Float[Array, "..."], Float[Array, "..."]]) -> Float[Array, ""]:
    """Largest relative error of (actual, expected)."""
    return jnp.max(jnp.stack([oracle.relative(actual, expected) for actual, expected in pairs]))


def _gradients(draw: Draw) -> Float[Array, ""]:
    pair = Pair(draw)
    return worst(
        (cosine_derivatives.gradient(*pair.arguments).ravel(), pair.full.gradient),
        (cosine_derivatives.stop_gradient(*pair.arguments).ravel(), pair.stopped.gradient),
    )


def _jacobians(draw: Draw) -> Float[Array, ""]:
    pair = Pair(draw)
    full = cosine_derivatives.jacobian(*pair.arguments)
    return worst(
        (full, pair.jacobian),
        (cosine_derivatives.stop_gradient_jacobian(pair.weight, pair.x), pair.held_jacobian),
        (pair.residual @ full, pair.full.gradient),
    )


def _norms(draw: Draw) -> Float[Array, ""]:
    pair = Pair(draw)
    return worst(
        (cosine_derivatives.squared_norm(*pair.arguments), jnp.sum(pair.full.gradient**2)),
        (cosine_derivatives.stop_gradient_squared_norm(*pair.arguments), jnp.sum(pair.stopped.gradient**2)),
    )


def _geometry(draw: Draw) -> Float[Array, ""]:
    """⟨G, W⟩ = 0 for both, GWᵀ symmetric for the full gradient."""
    pair = Pair(draw)
    full, stopped = (form(*pair.arguments) for form in (cosine_derivatives.gradient, cosine_derivatives.stop_gradient))
    product = full @ pair.weight.T
    euler = [jnp.abs(jnp.sum(g * pair.weight)) / jnp.linalg.norm(g) for g in (full, stopped)]
    return jnp.max(jnp.stack([*euler, jnp.max(jnp.abs(product - product.T)) / jnp.linalg.norm(full)]))


def _order(form, order: int):
    def distance(draw: Draw) -> Float[Array, ""]:
        pair = Pair(draw)
        step = pair.perturbed - pair.x
        # So small that a form with cancellation has no digits left.
        norms = [jnp.sqrt(form(pair.weight, pair.x, pair.x + eps * step)) for eps in (1e-5, 1e-8)]
        return jnp.abs(jnp.log10(norms[0] / norms[1]) / 3 - order)

    return distance


def _hessians(draw: Draw) -> Float[Array, ""]:
    pair = Pair(draw)
    return worst(
        (cosine_derivatives.hessian(*pair.arguments), pair.full.hessian),
        (cosine_derivatives.stop_gradient_hessian(*pair.arguments), pair.stopped.hessian),
    )


def _euler(draw: Draw) -> Float[Array, ""]:
    pair = Pair(draw)
    params = pair.weight.ravel()
    return jnp.max(
        jnp.stack(
            [
                jnp.max(jnp.abs(homogeneous.euler_gradient(d.hessian, params, 0) - d.gradient))
                / (jnp.linalg.norm(d.hessian) * jnp.linalg.norm(params))
                for d in (pair.full, pair.stopped)
            ]
        )
    )


def _lowest(draw: Draw) -> Float[Array, ""]:
    pair = Pair(draw)
    lowest = [jnp.linalg.eigvalsh(d.hessian)[0] / jnp.linalg.norm(d.hessian) for d in (pair.full, pair.stopped)]
    return jnp.maximum(*lowest)


ITEMS = (
    Item(
        name="cosine-gradient",
        title="Cosine distance · gradient",
        source="derived here",
        origin="derived here",
        statement=r"$G = -P x^\top / \|u\| - q\, x'^\top / \|v\|$ with $u = Wx$, $v = Wx'$, $P = \hat v - c\,\hat u$, $q "
        r"= \hat u - c\,\hat v$, $c = \hat u \cdot \hat v$; with the branch of $x'$ held fixed, the first term alone.",
        status="true",
        correction=r"$\langle G, W\rangle = 0$; $GW^\top$ is symmetric for the full gradient. $\|G\|$ is "
        r"$O(\varepsilon^2)$ in full and $O(\varepsilon)$ with stop-gradient: two different scores. $G = J^\top r$ with "
        r"$r = \hat u - \hat v$, $J = (I - \hat u\hat u^\top) \otimes x^\top / \|u\| - (I - \hat v\hat v^\top) \otimes "
        r"x'^\top / \|v\|$.",
        checks=(
            Check("automatic differentiation, both variants: rel. error", _gradients, AtMost(1e-9)),
            Check("J, both variants, and G = Jᵀr: rel. error", _jacobians, AtMost(1e-9)),
            Check("‖G‖², both variants: rel. error", _norms, AtMost(1e-9)),
            Check("⟨G, W⟩ = 0 and GWᵀ symmetric: relative", _geometry, AtMost(1e-9)),
            Check("full: |order of ‖G‖ in ε − 2|", _order(cosine_derivatives.squared_norm, 2), AtMost(0.05, "median")),
            Check(
                "stop-gradient: |order of ‖G‖ in ε − 1|",
                _order(cosine_derivatives.stop_gradient_squared_norm, 1),
                AtMost(0.05, "median"),
            ),
        ),
    ),
    Item(
        name="cosine-hessian",
        title="Cosine distance · Hessian",
        source="derived here",
        origin="derived here",
        statement=r"$H = B_{uu} \otimes xx^\top + B_{uv} \otimes xx'^\top + B_{uv}^\top \otimes x'x^\top + B_{vv} \otimes "
        r"x'x'^\top$ with $B_{uu} = (P\hat u^\top + \hat u P^\top + c(I - \hat u\hat u^\top))/\|u\|^2$ and $B_{uv} = "
        r"-(I - \hat v\hat v^\top - \hat u q^\top)/(\|u\|\|v\|)$.",
        status="true",
        correction=r"$H\,\mathrm{vec}\,W = -\mathrm{vec}\,G$, so $H$ is indefinite wherever $G \neq 0$.",
        checks=(
            Check("automatic differentiation, both variants: rel. error", _hessians, AtMost(1e-9)),
            Check("H vec W = −vec G: relative", _euler, AtMost(1e-9)),
            Check("highest lowest eigenvalue, relative", _lowest, AtMost(-1e-9)),
        ),
    ),
)
