"""Proposition 1, first half: Claims 1–2 and Corollary 1."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory import instances, linear, oracle, properties, two_layer
from influence_ssl_jax.theory.draw import Draw
from influence_ssl_jax.theory.item import AtLeast, AtMost, Check, CounterExample, Item

_ONE = jnp.ones


def _influence(weight: Float[Array, "d p"], drawn: instances.Linear) -> Float[Array, ""]:
    return linear.influence(weight, drawn.delta, drawn.eps, drawn.damping)


def _decomposition(draw: Draw) -> Float[Array, ""]:
    drawn = instances.linear(draw, 3, 4)
    scale, geometry = properties.decomposition(drawn.weight, drawn.delta, drawn.eps, drawn.damping)
    trace = jnp.trace(drawn.weight.T @ drawn.weight @ jnp.outer(drawn.delta, drawn.delta))
    undamped, _ = properties.decomposition(drawn.weight, drawn.delta, drawn.eps, 0.0)
    return jnp.maximum(
        oracle.relative(scale * geometry, _influence(drawn.weight, drawn)),
        oracle.relative(undamped * geometry, 2 * drawn.eps**2 * trace),
    )


def _rayleigh(draw: Draw) -> Float[Array, ""]:
    drawn = instances.linear(draw, 3, 4)
    _, geometry = properties.decomposition(drawn.weight, drawn.delta, drawn.eps, drawn.damping)
    return geometry / jnp.linalg.norm(drawn.weight, ord=2) ** 2


def _rotation(draw: Draw) -> Float[Array, ""]:
    drawn = instances.linear(draw, 3, 4)
    expected = _influence(drawn.weight, drawn)
    rotated = [_influence(instances.orthogonal(draw, rows, 3) @ drawn.weight, drawn) for rows in (3, 5)]
    return jnp.max(jnp.stack([oracle.relative(value, expected) for value in rotated]))


def _layered(first: Float[Array, "h p"], second: Float[Array, "d h"], drawn: instances.TwoLayer) -> Float[Array, ""]:
    return two_layer.alignment_influence(first, second, drawn.delta, drawn.eps, drawn.damping)


def _hidden_rotation(draw: Draw) -> Float[Array, ""]:
    drawn = instances.two_layer(draw, 2, 3, 4)
    hidden, outputs = instances.orthogonal(draw, 3, 3), instances.orthogonal(draw, 2, 2)
    expected = _layered(drawn.first, drawn.second, drawn)
    turned = _layered(hidden @ drawn.first, outputs @ drawn.second @ hidden.T, drawn)
    return oracle.relative(turned, expected)


def _exact_rotation(draw: Draw) -> Float[Array, ""]:
    """The exact Hessian in (W₁, W₂), damped above its poles."""
    drawn = instances.two_layer(draw, 2, 3, 4)
    hidden, outputs = instances.orthogonal(draw, 3, 3), instances.orthogonal(draw, 2, 2)

    def score(first: Float[Array, "h p"], second: Float[Array, "d h"]) -> Float[Array, ""]:
        def loss(flat: Float[Array, " k"]) -> Float[Array, ""]:
            layers = flat[: first.size].reshape(first.shape), flat[first.size :].reshape(second.shape)
            return jnp.sum(oracle.deep(layers, drawn.delta) ** 2)

        gradient, hessian = oracle.derivatives(loss, jnp.concatenate([first.ravel(), second.ravel()]))
        return oracle.quadratic(hessian, gradient, 2 * jnp.linalg.norm(hessian))

    return oracle.relative(
        score(hidden @ drawn.first, outputs @ drawn.second @ hidden.T), score(drawn.first, drawn.second)
    )


def _input_rotation(draw: Draw) -> Float[Array, ""]:
    drawn = instances.linear(draw, 3, 4)
    return oracle.relative(
        _influence(drawn.weight @ instances.orthogonal(draw, 4, 4), drawn), _influence(*drawn[:1], drawn)
    )


def _hidden_rescaling(draw: Draw, damping: float | None = None) -> Float[Array, ""]:
    drawn = instances.two_layer(draw, 2, 3, 4)
    if damping is not None:
        drawn = drawn._replace(damping=damping * drawn.eps**2)
    change = draw.normal(3, 3)
    rescaled = _layered(change @ drawn.first, jnp.linalg.solve(change.T, drawn.second.T).T, drawn)
    return oracle.relative(rescaled, _layered(drawn.first, drawn.second, drawn))


def _undamped_rescaling(draw: Draw) -> Float[Array, ""]:
    return _hidden_rescaling(draw, 1e-12)


ITEMS = (
    Item(
        name="claim-1",
        title="Claim 1 (Prop. 1.1) · scale times geometry",
        source="Prop. 1, App. C.2, confidence medium",
        statement=r"$I_0 = -2\varepsilon^2\,\mathrm{tr}(W^\top W\, \delta\delta^\top)$: a scale $2\varepsilon^2$ times "
        r"the geometric term $\|W\delta\|^2$.",
        status="true under conditions",
        conditions=r"$\lambda = 0$ and $\|\delta\| = 1$; the split is not canonical.",
        correction=r"$I_\lambda = \frac{t^2}{t + \lambda}\,\rho$ with the Rayleigh quotient $\rho = "
        r"\|W\delta\|^2 / \|\delta\|^2 \in [0, \sigma_{\max}(W)^2]$. A geometric term that is homogeneous of degree "
        r"$0$ in $\delta$, with a scale that depends on $\|\varepsilon\delta\|$ alone, is this one up to a constant.",
        checks=(
            Check("scale · geometry = I_λ, and the trace form at λ = 0: rel. error", _decomposition, AtMost(1e-12)),
            Check("ρ/σ_max²", _rayleigh, AtMost(1 + 1e-12)),
        ),
    ),
    Item(
        name="claim-2",
        title="Claim 2 (Prop. 1.2) · orthogonal invariance",
        source="Prop. 1, App. C.2, confidence high",
        statement=r"$I(x; QW) = I(x; W)$ for orthogonal $Q$.",
        status="true",
        correction=r"For every $\lambda \geq 0$, for isometries $Q^\top Q = I$ into more dimensions, and in "
        r"$(W_1, W_2)$ for rotations of the outputs and of the hidden layer. Not for rotations of the inputs.",
        checks=(
            Check("square Q and isometries, any λ: rel. error", _rotation, AtMost(1e-12)),
            Check("two layers, Gauss–Newton: rel. error", _hidden_rotation, AtMost(1e-9)),
            Check("two layers, exact Hessian: rel. error", _exact_rotation, AtMost(1e-6)),
            Check("rotated inputs: rel. gap", _input_rotation, AtLeast(0.1)),
        ),
    ),
    Item(
        name="corollary-1",
        title="Corollary 1 · geometry, not parametrisation",
        source="App. C.2, confidence medium",
        statement=r"Influence depends on the geometry of the representation only, not on the parametrisation.",
        status="false as stated",
        correction=r"It is invariant under rotations. Under a change of parameters that keeps the function, $W_1 \to "
        r"A W_1$ and $W_2 \to W_2 A^{-1}$, only the limit $\lambda \to 0$ is.",
        counter_example=CounterExample(
            instance=r"$w_1 = w_2 = \delta = \varepsilon = \lambda = 1$ gives $8/5$; $w_1 = 2$, $w_2 = 1/2$ is the "
            r"same function and gives $34/19$.",
            stated=lambda: two_layer.alignment_influence(_ONE((1, 1)), _ONE((1, 1)), _ONE(1), 1.0, 1.0),
            actual=lambda: two_layer.alignment_influence(2 * _ONE((1, 1)), _ONE((1, 1)) / 2, _ONE(1), 1.0, 1.0),
            gap=18 / 95,
        ),
        checks=(
            Check("hidden layer rescaled, function kept: rel. gap", _hidden_rescaling, AtLeast(0.005)),
            Check("the same as λ → 0: rel. gap", _undamped_rescaling, AtMost(1e-6)),
        ),
    ),
)
