"""The data set's Hessian: leverage, and why duplicates score low."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory import instances, leverage, linear, oracle
from influence_ssl_jax.theory.draw import Draw
from influence_ssl_jax.theory.item import AtLeast, AtMost, Check, CounterExample, Item


def _dense(draw: Draw) -> Float[Array, ""]:
    """Gradients and Hessian of the mean loss by automatic differentiation."""
    drawn = instances.population(draw, 6, 2, 3)

    def losses(weight: Float[Array, "d p"]) -> Float[Array, " n"]:
        return jnp.sum((drawn.eps * drawn.deltas @ weight.T) ** 2, axis=1)

    _, hessian = oracle.derivatives(lambda weight: jnp.mean(losses(weight)), drawn.weight)
    rows = jax.jacrev(losses)(drawn.weight).reshape(6, -1)
    scores = jax.vmap(lambda g: oracle.quadratic(hessian, g, drawn.damping))(rows)
    block = oracle.relative(jnp.kron(jnp.eye(2), leverage.hessian(drawn.deltas, drawn.eps)), hessian)
    return jnp.maximum(block, oracle.relative(leverage.influences(*drawn), scores))


def _single(draw: Draw) -> Float[Array, ""]:
    drawn = instances.population(draw, 1, 2, 3)
    expected = linear.influence(drawn.weight, drawn.deltas[0], drawn.eps, drawn.damping)
    return oracle.relative(leverage.influences(*drawn)[0], expected)


def _dimension(draw: Draw) -> Float[Array, ""]:
    drawn = instances.population(draw, 6, 2, 3)
    leverages = leverage.leverages(*drawn[1:])
    dimension = leverage.effective_dimension(*drawn[1:])
    return jnp.maximum(oracle.relative(jnp.sum(leverages), dimension), jnp.max(leverages) - 1)


def _copied(draw: Draw) -> instances.Population:
    """Seven perturbations of which the first three are one."""
    drawn = instances.population(draw, 7, 2, 3)
    return drawn._replace(deltas=drawn.deltas.at[1:3].set(drawn.deltas[0]))


def _copies(draw: Draw) -> Float[Array, ""]:
    """`s/(1 + ks)` with s from the other four, whose 1/n stays 1/7."""
    drawn = _copied(draw)
    rest = drawn.deltas[3:] * jnp.sqrt(4 / 7)
    perturbation = drawn.eps * drawn.deltas[0]
    alone = 2 * oracle.quadratic(leverage.hessian(rest, drawn.eps), perturbation, drawn.damping) / 7
    closed = leverage.duplicate_leverage(alone, 3)
    return oracle.relative(closed, leverage.leverages(*drawn[1:])[0])


def _bound(draw: Draw) -> Float[Array, ""]:
    drawn = _copied(draw)
    loss = linear.loss(drawn.weight, drawn.deltas[0], drawn.eps)
    return leverage.influences(*drawn)[0] / leverage.duplicate_influence_bound(loss, 7, 3)


def _attained(draw: Draw) -> Float[Array, ""]:
    """Copies orthogonal to everything else reach the bound as λ → 0."""
    drawn = _copied(draw)
    deltas = drawn.deltas.at[:3].multiply(jnp.asarray([0.0, 0.0, 1.0])).at[3:, 2].set(0.0)
    bound = leverage.duplicate_influence_bound(linear.loss(drawn.weight, deltas[0], drawn.eps), 7, 3)
    scale = jnp.trace(leverage.hessian(deltas[:3], drawn.eps))
    return jnp.abs(leverage.influences(drawn.weight, deltas, drawn.eps, 1e-9 * scale)[0] / bound - 1)


ITEMS = (
    Item(
        name="leverage",
        title="Leverage · the score with the data set's Hessian",
        source="derived here from Eq. 6",
        origin="derived here",
        statement=r"With $H = 2\varepsilon^2\, I_d \otimes S$, $S = \frac{1}{n}\sum_i \delta_i\delta_i^\top$: $I_i = 2\,n\, "
        r"h_i\, l_i$ with the ridge leverage $h_i = \frac{1}{n}\delta_i^\top (S + \mu I)^{-1}\delta_i$, $\mu = "
        r"\frac{\lambda}{2\varepsilon^2}$.",
        status="true",
        correction=r"Score = how unusual the direction is, times how sensitive the encoder is to it. $0 \leq h_i < 1$ and "
        r"$\sum_i h_i = \mathrm{tr}\, S (S + \mu)^{-1}$, the effective dimension. $n = 1$ is Theorem 1.",
        checks=(
            Check("automatic differentiation and dense solve: rel. error", _dense, AtMost(1e-8)),
            Check("n = 1 is Theorem 1: rel. error", _single, AtMost(1e-9)),
            Check("Σ h = effective dimension, h < 1: rel. error", _dimension, AtMost(1e-9)),
        ),
    ),
    Item(
        name="duplicates",
        title="Duplicates · why they score low",
        source="the paper's finding, Sec. 5; mechanism derived here",
        origin="derived here",
        statement=r"The closed form of Theorem 1 makes duplicates score low.",
        status="false as stated",
        correction=r"It does not see them: a point's own Hessian knows no other point. With the data set's Hessian a "
        r"perturbation present $k$ times has $h_i = \frac{s}{1 + ks} \leq \frac{1}{k}$, so $I_i \leq 2\,\frac{n}{k}\, l_i$.",
        counter_example=CounterExample(
            instance=r"$n = 2$ copies of $W = \delta = \varepsilon = 1$ at $\lambda \to 0$: Theorem 1 gives $2\,l = 2$, as "
            r"for one copy; next to an orthogonal point the same $\delta$ alone has $2\,n\,l = 4$.",
            stated=lambda: leverage.influences(jnp.ones((1, 2)), jnp.asarray([[1.0, 0.0], [1.0, 0.0]]), 1.0, 1e-12)[0],
            actual=lambda: leverage.influences(jnp.ones((1, 2)), jnp.eye(2), 1.0, 1e-12)[0],
            gap=2.0,
        ),
        checks=(
            Check("three copies: h = s/(1 + 3s), rel. error", _copies, AtMost(1e-9)),
            Check("three copies: I/bound", _bound, AtMost(1.0)),
            Check("orthogonal copies, λ → 0: |I/bound − 1|", _attained, AtMost(1e-6)),
            Check("three copies: I/bound, median", _bound, AtLeast(0.05)),
        ),
    ),
)
