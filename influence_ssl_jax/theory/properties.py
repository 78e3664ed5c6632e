"""State Proposition 1 (Claims 1–4, Corollaries 1–2) for a linear encoder.

arXiv 2412.17170; reconstructed and corrected. All differences are of `I_λ` of `linear.influence`; `t = 2ε²‖δ‖²`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory import gauss_newton, instances, linear, oracle
from influence_ssl_jax.theory.instances import Draw
from influence_ssl_jax.theory.item import AtLeast, AtMost, Check, CounterExample, Item, Scalar


class Decomposition(NamedTuple):
    """The two factors of `I_λ = scale · geometry`."""

    scale: Float[Array, ""]
    geometry: Float[Array, ""]


def decomposition(
    weight: Float[Array, "d p"], delta: Float[Array, " p"], eps: Scalar, damping: Scalar
) -> Decomposition:
    """Return Claim 1's factors: a scale and the Rayleigh quotient.

    The scale `t·t/(t + λ)` has no W; the quotient is `ρ = ‖Wδ‖²/‖δ‖²`. ρ lies in [0, σ_max(W)²].

    Args:
        weight: W.
        delta: δ ≠ 0.
        eps: ε.
        damping: λ ≥ 0.
    """
    eigenvalue = linear.eigenvalue(delta, eps)
    moved = weight @ delta
    return Decomposition(
        scale=eigenvalue * linear.shrinkage(eigenvalue, damping), geometry=(moved @ moved) / (delta @ delta)
    )


def exponent(delta: Float[Array, " p"], eps: Scalar, damping: Scalar) -> Float[Array, ""]:
    """Return the exponent of ε (Claim 3 corrected): `d log I_λ/d log ε = 2 + 2λ/(λ + t)`.

    It is 4 if ε² ≪ λ, and 2 if ε² ≫ λ.
    """
    return 2 + 2 * linear.limit_gap(delta, eps, damping)


def change(
    weight: Float[Array, "d p"], shift: Float[Array, "d p"], delta: Float[Array, " p"], eps: Scalar, damping: Scalar
) -> Float[Array, ""]:
    """Return the exact change of Claim 4: `I_λ(W + E) − I_λ(W) = 2ε²(2⟨Wδ, Eδ⟩ + ‖Eδ‖²)·t/(t + λ)`."""
    before, step = weight @ (eps * delta), shift @ (eps * delta)
    return 2 * (2 * before @ step + step @ step) * linear.shrinkage(linear.eigenvalue(delta, eps), damping)


def stated_change_bound(
    weight_norm: Scalar, shift_norm: Scalar, delta: Float[Array, " p"], eps: Scalar
) -> Float[Array, ""]:
    """Return the stated bound of Claim 4 and Corollary 2.

    It is `4ε²‖W‖‖E‖` (times ‖δ‖²). It does not hold, because I is quadratic in W.
    """
    return 2 * linear.eigenvalue(delta, eps) * weight_norm * shift_norm


def change_bound(weight_norm: Scalar, shift_norm: Scalar, delta: Float[Array, " p"], eps: Scalar) -> Float[Array, ""]:
    """Return the corrected bound of Claim 4.

    `|I_λ(W + E) − I_λ(W)| ≤ (4ε²‖W‖‖E‖ + 2ε²‖E‖²)‖δ‖²` holds for every λ ≥ 0.

    Args:
        weight_norm: Frobenius or (sharper) spectral norm of W.
        shift_norm: The same norm of E.
        delta: δ.
        eps: ε.
    """
    stated = stated_change_bound(weight_norm, shift_norm, delta, eps)
    return stated + linear.eigenvalue(delta, eps) * shift_norm**2


def lipschitz_constant(radius: Scalar, delta: Float[Array, " p"], eps: Scalar) -> Float[Array, ""]:
    """Return the Lipschitz constant of `I_λ` on the ball `‖W‖_F ≤ B`: `4ε²B‖δ‖²`.

    There is none on the whole space.
    """
    return 2 * linear.eigenvalue(delta, eps) * radius


# Checks


_ONE = jnp.ones


def _influence(weight: Float[Array, "d p"], drawn: instances.Linear) -> Float[Array, ""]:
    """Return the influence of an instance at the given W."""
    return linear.influence(weight, drawn.delta, drawn.eps, drawn.damping)


def _decomposition(draw: Draw) -> Float[Array, ""]:
    """Check that scale times geometry is the influence, damped and undamped."""
    drawn = instances.linear(draw, 3, 4)
    scale, geometry = decomposition(drawn.weight, drawn.delta, drawn.eps, drawn.damping)
    trace = jnp.trace(drawn.weight.T @ drawn.weight @ jnp.outer(drawn.delta, drawn.delta))
    undamped, _ = decomposition(drawn.weight, drawn.delta, drawn.eps, 0.0)
    return jnp.maximum(
        oracle.relative(scale * geometry, _influence(drawn.weight, drawn)),
        oracle.relative(undamped * geometry, 2 * drawn.eps**2 * trace),
    )


def _rayleigh(draw: Draw) -> Float[Array, ""]:
    """Return the geometry over its upper bound `σ_max(W)²`."""
    drawn = instances.linear(draw, 3, 4)
    _, geometry = decomposition(drawn.weight, drawn.delta, drawn.eps, drawn.damping)
    return geometry / jnp.linalg.norm(drawn.weight, ord=2) ** 2


def _rotation(draw: Draw) -> Float[Array, ""]:
    """Check that isometries of the outputs keep the influence."""
    drawn = instances.linear(draw, 3, 4)
    expected = _influence(drawn.weight, drawn)
    rotated = [_influence(instances.orthogonal(draw, rows, 3) @ drawn.weight, drawn) for rows in (3, 5)]
    return jnp.max(jnp.stack([oracle.relative(value, expected) for value in rotated]))


def _layered(first: Float[Array, "h p"], second: Float[Array, "d h"], drawn: instances.TwoLayer) -> Float[Array, ""]:
    """Return the two-layer influence of an instance at the given layers."""
    return gauss_newton.two_layer_influence(first, second, drawn.delta, drawn.eps, drawn.damping)


def _hidden_rotation(draw: Draw) -> Float[Array, ""]:
    """Check that rotations of hidden units and outputs keep the influence."""
    drawn = instances.two_layer(draw, 2, 3, 4)
    hidden, outputs = instances.orthogonal(draw, 3, 3), instances.orthogonal(draw, 2, 2)
    expected = _layered(drawn.first, drawn.second, drawn)
    turned = _layered(hidden @ drawn.first, outputs @ drawn.second @ hidden.T, drawn)
    return oracle.relative(turned, expected)


def _exact_rotation(draw: Draw) -> Float[Array, ""]:
    """Check rotations with the exact Hessian in `(W₁, W₂)`.

    The damping is above its poles.
    """
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
    """Measure how much a rotation of the inputs changes the influence."""
    drawn = instances.linear(draw, 3, 4)
    return oracle.relative(
        _influence(drawn.weight @ instances.orthogonal(draw, 4, 4), drawn), _influence(*drawn[:1], drawn)
    )


def _hidden_rescaling(draw: Draw, damping: float | None = None) -> Float[Array, ""]:
    """Measure how much rescaling the hidden layer changes the influence."""
    drawn = instances.two_layer(draw, 2, 3, 4)
    if damping is not None:
        drawn = drawn._replace(damping=damping * drawn.eps**2)
    change = draw.normal(3, 3)
    rescaled = _layered(change @ drawn.first, jnp.linalg.solve(change.T, drawn.second.T).T, drawn)
    return oracle.relative(rescaled, _layered(drawn.first, drawn.second, drawn))


def _undamped_rescaling(draw: Draw) -> Float[Array, ""]:
    """Measure the same almost without damping."""
    return _hidden_rescaling(draw, 1e-12)


def _scaling(draw: Draw) -> Float[Array, ""]:
    """Check the scaling in W and in ε.

    The one in W is checked at any λ; the one in ε at λ = 0, and at any λ that is rescaled too.
    """
    drawn = instances.linear(draw, 3, 4)
    factor = draw.log_uniform(0.1, 10.0)
    expected = factor**2 * _influence(drawn.weight, drawn)
    undamped = factor**2 * linear.influence_limit(*drawn[:2], drawn.eps)
    moved = linear.influence(*drawn[:2], factor * drawn.eps, factor**2 * drawn.damping)
    errors = [
        oracle.relative(_influence(factor * drawn.weight, drawn), expected),
        oracle.relative(linear.influence_limit(*drawn[:2], factor * drawn.eps), undamped),
        oracle.relative(moved, expected),
    ]
    return jnp.max(jnp.stack(errors))


def _exponent(draw: Draw) -> Float[Array, ""]:
    """Compare the local exponent with automatic differentiation."""
    drawn = instances.linear(draw, 3, 4)

    def logarithm(log_eps: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.log(linear.influence(*drawn[:2], jnp.exp(log_eps), drawn.damping))

    slope = jax.grad(logarithm)(jnp.log(drawn.eps))
    return jnp.abs(slope - exponent(drawn.delta, drawn.eps, drawn.damping))


def _shifted(draw: Draw) -> tuple[instances.Linear, Float[Array, "d p"]]:
    """Draw an instance and a change of its W."""
    drawn = instances.linear(draw, 3, 4)
    size = draw.log_uniform(1e-2, 1e2) * jnp.linalg.norm(drawn.weight)
    return drawn, size * draw.normal(3, 4)


def _change(draw: Draw) -> Float[Array, ""]:
    """Compare the closed change with the difference of two influences."""
    drawn, shift = _shifted(draw)
    after, before = _influence(drawn.weight + shift, drawn), _influence(drawn.weight, drawn)
    closed = change(drawn.weight, shift, drawn.delta, drawn.eps, drawn.damping)
    return jnp.abs(after - before - closed) / (after + before)


def _change_ratio(order: int | None):
    """Return a function that measures the change over its corrected bound."""

    def ratio(draw: Draw) -> Float[Array, ""]:
        drawn, shift = _shifted(draw)
        norms = jnp.linalg.norm(drawn.weight, ord=order), jnp.linalg.norm(shift, ord=order)
        difference = change(drawn.weight, shift, drawn.delta, drawn.eps, drawn.damping)
        return jnp.abs(difference) / change_bound(*norms, drawn.delta, drawn.eps)

    return ratio


def _change_attained(draw: Draw) -> Float[Array, ""]:
    """Check that the corrected bound is reached.

    W = cE of rank one, δ along it and λ = 0 reach it.
    """
    delta = instances.unit(draw, 4)
    weight = 3 * jnp.outer(instances.unit(draw, 3), delta)
    eps, factor = draw.log_uniform(1e-2, 10.0), draw.log_uniform(0.1, 10.0)
    length = 2 + factor
    difference = change(weight, factor * weight, length * delta, eps, 0.0)
    return jnp.abs(difference / change_bound(3.0, 3 * factor, length * delta, eps) - 1)


def _ball(draw: Draw) -> Float[Array, ""]:
    """Return the change over its bound on the ball."""
    drawn, shift = _shifted(draw)
    radius = jnp.maximum(jnp.linalg.norm(drawn.weight), jnp.linalg.norm(drawn.weight + shift))
    difference = change(drawn.weight, shift, drawn.delta, drawn.eps, drawn.damping)
    return jnp.abs(difference) / (lipschitz_constant(radius, drawn.delta, drawn.eps) * jnp.linalg.norm(shift))


def _ball_attained(draw: Draw) -> Float[Array, ""]:
    """Check that a small step at rank one nearly reaches the constant.

    The step goes outwards; the constant is the gradient's norm on the sphere.
    """
    delta = 3 * instances.unit(draw, 4)
    weight = jnp.outer(jnp.asarray([2.0, 0.0]), delta / jnp.linalg.norm(delta))
    difference = change(weight, -1e-6 * weight, delta, 0.5, 0.0)
    return jnp.abs(jnp.abs(difference) / (2e-6 * lipschitz_constant(2.0, delta, 0.5)) - 1)


def _violated(draw: Draw) -> Float[Array, ""]:
    """Return 1 if the change exceeds the stated bound."""
    drawn, shift = _shifted(draw)
    norms = jnp.linalg.norm(drawn.weight), jnp.linalg.norm(shift)
    difference = change(drawn.weight, shift, drawn.delta, drawn.eps, 0.0)
    return (jnp.abs(difference) > stated_change_bound(*norms, drawn.delta, drawn.eps)).astype(float)


_DOUBLED = CounterExample(
    instance=r"$W = E = [1, 0]$, $\delta = e_1$, $\varepsilon = 1$: the change is $6$, the stated bound $4$. With "
    r"$W = 0$ the bound is $0$ and the change is not.",
    stated=lambda: stated_change_bound(1.0, 1.0, jnp.asarray([1.0, 0.0]), 1.0),
    actual=lambda: (
        linear.influence_limit(jnp.asarray([[2.0, 0.0]]), jnp.asarray([1.0, 0.0]), 1.0)
        - linear.influence_limit(jnp.asarray([[1.0, 0.0]]), jnp.asarray([1.0, 0.0]), 1.0)
    ),
    gap=2.0,
)


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
            stated=lambda: gauss_newton.two_layer_influence(_ONE((1, 1)), _ONE((1, 1)), _ONE(1), 1.0, 1.0),
            actual=lambda: gauss_newton.two_layer_influence(2 * _ONE((1, 1)), _ONE((1, 1)) / 2, _ONE(1), 1.0, 1.0),
            gap=18 / 95,
        ),
        checks=(
            Check("hidden layer rescaled, function kept: rel. gap", _hidden_rescaling, AtLeast(0.005)),
            Check("the same as λ → 0: rel. gap", _undamped_rescaling, AtMost(1e-6)),
        ),
    ),
    Item(
        name="claim-3",
        title="Claim 3 (Prop. 1.3) · scaling",
        source="Prop. 1, App. C.2, confidence high",
        statement=r"$I(cW) = c^2 I(W)$ and $I(c\,\varepsilon) = c^2 I(\varepsilon)$.",
        status="true under conditions",
        conditions=r"In $W$ at every $\lambda$; in $\varepsilon$ only at $\lambda = 0$. Neither holds for the cosine "
        r"distance.",
        correction=r"$I_{c^2\lambda}(c\,\varepsilon) = c^2 I_\lambda(\varepsilon)$, and $\frac{d\log I_\lambda}"
        r"{d\log\varepsilon} = 2 + \frac{2\lambda}{\lambda + t}$.",
        counter_example=CounterExample(
            instance=r"$W = \delta = \lambda = 1$: $I(0.2)/I(0.1) = 15.1$, not $4$.",
            stated=lambda: jnp.asarray(4.0),
            actual=lambda: (
                linear.influence(_ONE((1, 1)), _ONE(1), 0.2, 1.0) / linear.influence(_ONE((1, 1)), _ONE(1), 0.1, 1.0)
            ),
            gap=100 / 9,
        ),
        checks=(
            Check("in W; in ε at λ = 0; in ε with λ rescaled: rel. error", _scaling, AtMost(1e-12)),
            Check("local exponent by differentiation: abs. error", _exponent, AtMost(1e-10)),
        ),
    ),
    Item(
        name="claim-4",
        title="Claim 4 (Prop. 1.4) · Lipschitz in W",
        source="Prop. 1, App. C.2, confidence medium",
        statement=r"$|I(W_1) - I(W_2)| \leq 4\varepsilon^2 \|W\|_F\, \|W_1 - W_2\|_F$",
        status="true under conditions",
        conditions=r"$\|W\|_F$ is read as $\max(\|W_1\|_F, \|W_2\|_F)$, and $\|\delta\| = 1$ (else times $\|\delta\|^2$). "
        r"Read as $\|W_1\|_F$ it is false.",
        correction=r"$I(W+E) - I(W) = 2\varepsilon^2 (2\langle W\delta, E\delta\rangle + \|E\delta\|^2)\,"
        r"\frac{t}{t+\lambda}$. $I$ is quadratic: Lipschitz on the ball $\|W\|_F \leq B$, with constant "
        r"$4\varepsilon^2 B \|\delta\|^2$, and nowhere else.",
        counter_example=_DOUBLED,
        checks=(
            Check("the exact change: error relative to I(W) + I(W + E)", _change, AtMost(1e-12)),
            Check("‖W‖ = max(‖W₁‖, ‖W₂‖): |change|/bound", _ball, AtMost(1 + 1e-12)),
            Check("‖W‖ = max(‖W₁‖, ‖W₂‖): |reached/bound − 1|", _ball_attained, AtMost(1e-5)),
            Check("‖W‖ = ‖W₁‖: the bound is violated, fraction of draws", _violated, AtLeast(0.02, "mean")),
        ),
    ),
    Item(
        name="corollary-2",
        title="Corollary 2 · stability",
        source="App. C.2, confidence medium",
        statement=r"$\|E\|_F \leq \tau$ implies $|I(W + E) - I(W)| \leq 4\varepsilon^2 \|W\|_F\, \tau$.",
        status="false as stated",
        correction=r"$|I_\lambda(W + E) - I_\lambda(W)| \leq (4\varepsilon^2 \|W\|\,\|E\| + 2\varepsilon^2 \|E\|^2)\, "
        r"\|\delta\|^2$, with Frobenius or spectral norms. This is stability of one score in $W$; it says nothing "
        r"about two networks that are trained separately.",
        counter_example=_DOUBLED,
        checks=(
            Check("Frobenius norms: |change|/bound", _change_ratio(None), AtMost(1 + 1e-12)),
            Check("spectral norms: |change|/bound", _change_ratio(2), AtMost(1 + 1e-12)),
            Check("W and E parallel: |change/bound − 1|", _change_attained, AtMost(1e-12)),
        ),
    ),
)
