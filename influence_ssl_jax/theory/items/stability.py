"""Proposition 1, second half: Claims 3–4 and Corollary 2."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory import instances, linear, oracle, properties
from influence_ssl_jax.theory.draw import Draw
from influence_ssl_jax.theory.item import AtLeast, AtMost, Check, CounterExample, Item

_ONE = jnp.ones


def _influence(weight: Float[Array, "d p"], drawn: instances.Linear) -> Float[Array, ""]:
    return linear.influence(weight, drawn.delta, drawn.eps, drawn.damping)


def _scaling(draw: Draw) -> Float[Array, ""]:
    """In W at any λ; in ε at λ = 0; in ε at any λ if λ follows."""
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
    drawn = instances.linear(draw, 3, 4)

    def logarithm(log_eps: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.log(linear.influence(*drawn[:2], jnp.exp(log_eps), drawn.damping))

    slope = jax.grad(logarithm)(jnp.log(drawn.eps))
    return jnp.abs(slope - properties.exponent(drawn.delta, drawn.eps, drawn.damping))


def _shifted(draw: Draw) -> tuple[instances.Linear, Float[Array, "d p"]]:
    drawn = instances.linear(draw, 3, 4)
    size = draw.log_uniform(1e-2, 1e2) * jnp.linalg.norm(drawn.weight)
    return drawn, size * draw.normal(3, 4)


def _change(draw: Draw) -> Float[Array, ""]:
    drawn, shift = _shifted(draw)
    after, before = _influence(drawn.weight + shift, drawn), _influence(drawn.weight, drawn)
    closed = properties.change(drawn.weight, shift, drawn.delta, drawn.eps, drawn.damping)
    return jnp.abs(after - before - closed) / (after + before)


def _change_ratio(order: int | None):
    def ratio(draw: Draw) -> Float[Array, ""]:
        drawn, shift = _shifted(draw)
        norms = jnp.linalg.norm(drawn.weight, ord=order), jnp.linalg.norm(shift, ord=order)
        change = properties.change(drawn.weight, shift, drawn.delta, drawn.eps, drawn.damping)
        return jnp.abs(change) / properties.change_bound(*norms, drawn.delta, drawn.eps)

    return ratio


def _change_attained(draw: Draw) -> Float[Array, ""]:
    """W = cE of rank one, δ along it and λ = 0: the corrected bound is reached."""
    delta = instances.unit(draw, 4)
    weight = 3 * jnp.outer(instances.unit(draw, 3), delta)
    eps, factor = draw.log_uniform(1e-2, 10.0), draw.log_uniform(0.1, 10.0)
    length = 2 + factor
    change = properties.change(weight, factor * weight, length * delta, eps, 0.0)
    return jnp.abs(change / properties.change_bound(3.0, 3 * factor, length * delta, eps) - 1)


def _ball(draw: Draw) -> Float[Array, ""]:
    drawn, shift = _shifted(draw)
    radius = jnp.maximum(jnp.linalg.norm(drawn.weight), jnp.linalg.norm(drawn.weight + shift))
    change = properties.change(drawn.weight, shift, drawn.delta, drawn.eps, drawn.damping)
    return jnp.abs(change) / (properties.lipschitz_constant(radius, drawn.delta, drawn.eps) * jnp.linalg.norm(shift))


def _ball_attained(draw: Draw) -> Float[Array, ""]:
    """The constant is the gradient's norm on the sphere: a small step outwards at rank one comes close."""
    delta = 3 * instances.unit(draw, 4)
    weight = jnp.outer(jnp.asarray([2.0, 0.0]), delta / jnp.linalg.norm(delta))
    change = properties.change(weight, -1e-6 * weight, delta, 0.5, 0.0)
    return jnp.abs(jnp.abs(change) / (2e-6 * properties.lipschitz_constant(2.0, delta, 0.5)) - 1)


def _violated(draw: Draw) -> Float[Array, ""]:
    drawn, shift = _shifted(draw)
    norms = jnp.linalg.norm(drawn.weight), jnp.linalg.norm(shift)
    change = properties.change(drawn.weight, shift, drawn.delta, drawn.eps, 0.0)
    return (jnp.abs(change) > properties.stated_change_bound(*norms, drawn.delta, drawn.eps)).astype(float)


_DOUBLED = CounterExample(
    instance=r"$W = E = [1, 0]$, $\delta = e_1$, $\varepsilon = 1$: the change is $6$, the stated bound $4$. With "
    r"$W = 0$ the bound is $0$ and the change is not.",
    stated=lambda: properties.stated_change_bound(1.0, 1.0, jnp.asarray([1.0, 0.0]), 1.0),
    actual=lambda: (
        linear.influence_limit(jnp.asarray([[2.0, 0.0]]), jnp.asarray([1.0, 0.0]), 1.0)
        - linear.influence_limit(jnp.asarray([[1.0, 0.0]]), jnp.asarray([1.0, 0.0]), 1.0)
    ),
    gap=2.0,
)


ITEMS = (
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
        r"\|\delta\|^2$, with Frobenius or spectral norms. This is stability of one score in $W$; it says nothing of "
        r"two networks trained apart.",
        counter_example=_DOUBLED,
        checks=(
            Check("Frobenius norms: |change|/bound", _change_ratio(None), AtMost(1 + 1e-12)),
            Check("spectral norms: |change|/bound", _change_ratio(2), AtMost(1 + 1e-12)),
            Check("W and E parallel: |change/bound − 1|", _change_attained, AtMost(1e-12)),
        ),
    ),
)
