"""Write scores with the data's own Hessian as leverage times sensitivity.

It shows why duplicates score low. Linear encoder, `l_i = ε²‖Wδ_i‖²`, `S = (1/n) Σ δ_iδ_iᵀ`, `H = 2ε² I_d ⊗ S`,
`μ = λ/(2ε²)`. Derived for this project from Eq. 6 of arXiv 2412.17170. Rows of `deltas` are δ_1 … δ_n.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory import instances, linear, oracle
from influence_ssl_jax.theory.instances import Draw
from influence_ssl_jax.theory.item import AtLeast, AtMost, Check, CounterExample, Item, Scalar
from influence_ssl_jax.theory.linear import shrinkage


def hessian(deltas: Float[Array, "n p"], eps: Scalar) -> Float[Array, "p p"]:
    """Return the block `2ε²S` of the mean alignment loss's Hessian.

    The whole Hessian is `2ε² I_d ⊗ S`.
    """
    perturbations = eps * deltas
    return 2 * perturbations.T @ perturbations / deltas.shape[0]


def leverages(deltas: Float[Array, "n p"], eps: Scalar, damping: Scalar) -> Float[Array, " n"]:
    """Return the ridge leverages `h_i = (1/n) δ_iᵀ(S + μI)⁻¹δ_i`, which lie in [0, 1).

    They equal `(2ε²/n) δ_iᵀ(2ε²S + λI)⁻¹δ_i`.

    Args:
        deltas: One perturbation in each row.
        eps: ε.
        damping: λ > 0.
    """
    return jnp.diagonal(gram(deltas, eps, damping))


def gram(deltas: Float[Array, "n p"], eps: Scalar, damping: Scalar) -> Float[Array, "n n"]:
    """Return the hat matrix `(2ε²/n) δ_iᵀ(2ε²S + λI)⁻¹δ_j`; the leverages are its diagonal."""
    perturbations = eps * deltas
    damped = hessian(deltas, eps) + damping * jnp.eye(deltas.shape[1])
    return 2 * perturbations @ jnp.linalg.solve(damped, perturbations.T) / deltas.shape[0]


def influences(
    weight: Float[Array, "d p"], deltas: Float[Array, "n p"], eps: Scalar, damping: Scalar
) -> Float[Array, " n"]:
    """Return the self-influence of every point with the data set's Hessian: `I_i = 2n h_i l_i`.

    Theorem 1 is the case n = 1.
    """
    moved = (eps * deltas) @ weight.T
    return 2 * deltas.shape[0] * leverages(deltas, eps, damping) * jnp.sum(moved**2, axis=1)


def effective_dimension(deltas: Float[Array, "n p"], eps: Scalar, damping: Scalar) -> Float[Array, ""]:
    """Return `Σ h_i = tr S(S + μI)⁻¹ = Σ t/(t + λ)` over the eigenvalues t of 2ε²S.

    It is at most rank S.
    """
    return jnp.sum(shrinkage(jnp.linalg.eigvalsh(hessian(deltas, eps)), damping))


def duplicate_leverage(alone: Scalar, copies: Scalar) -> Scalar:
    """Return the leverage of each of k copies: `s/(1 + ks)`.

    `s = (2ε²/n) δᵀ(2ε²S_rest + λI)⁻¹δ`, where S_rest leaves all k copies out.

    Examples:
        >>> duplicate_leverage(1.0, 3)
        0.25
    """
    return alone / (1 + copies * alone)


def duplicate_influence_bound(loss: Scalar, examples: Scalar, copies: Scalar) -> Scalar:
    """Bound the score of a point that is present k times.

    `I_i ≤ 2(n/k) l_i`, because `h_i ≤ 1/k`.
    """
    return 2 * examples / copies * loss


# Checks


def _dense(draw: Draw) -> Float[Array, ""]:
    """Compare with gradients and Hessian of the mean loss by automatic differentiation."""
    drawn = instances.population(draw, 6, 2, 3)

    def losses(weight: Float[Array, "d p"]) -> Float[Array, " n"]:
        return jnp.sum((drawn.eps * drawn.deltas @ weight.T) ** 2, axis=1)

    _, dense = oracle.derivatives(lambda weight: jnp.mean(losses(weight)), drawn.weight)
    rows = jax.jacrev(losses)(drawn.weight).reshape(6, -1)
    scores = jax.vmap(lambda g: oracle.quadratic(dense, g, drawn.damping))(rows)
    block = oracle.relative(jnp.kron(jnp.eye(2), hessian(drawn.deltas, drawn.eps)), dense)
    return jnp.maximum(block, oracle.relative(influences(*drawn), scores))


def _single(draw: Draw) -> Float[Array, ""]:
    """Compare the influence of a single point with Theorem 1."""
    drawn = instances.population(draw, 1, 2, 3)
    expected = linear.influence(drawn.weight, drawn.deltas[0], drawn.eps, drawn.damping)
    return oracle.relative(influences(*drawn)[0], expected)


def _dimension(draw: Draw) -> Float[Array, ""]:
    """Check that leverages sum to the effective dimension, each below 1."""
    drawn = instances.population(draw, 6, 2, 3)
    shares = leverages(*drawn[1:])
    dimension = effective_dimension(*drawn[1:])
    return jnp.maximum(oracle.relative(jnp.sum(shares), dimension), jnp.max(shares) - 1)


def _copied(draw: Draw) -> instances.Population:
    """Draw seven perturbations of which the first three are equal."""
    drawn = instances.population(draw, 7, 2, 3)
    return drawn._replace(deltas=drawn.deltas.at[1:3].set(drawn.deltas[0]))


def _copies(draw: Draw) -> Float[Array, ""]:
    """Compare `s/(1 + ks)`, with s from the other four, whose weight stays 1/7."""
    drawn = _copied(draw)
    rest = drawn.deltas[3:] * jnp.sqrt(4 / 7)
    perturbation = drawn.eps * drawn.deltas[0]
    alone = 2 * oracle.quadratic(hessian(rest, drawn.eps), perturbation, drawn.damping) / 7
    closed = duplicate_leverage(alone, 3)
    return oracle.relative(closed, leverages(*drawn[1:])[0])


def _bound(draw: Draw) -> Float[Array, ""]:
    """Return the influence of one of three copies over its bound."""
    drawn = _copied(draw)
    loss = linear.loss(drawn.weight, drawn.deltas[0], drawn.eps)
    return influences(*drawn)[0] / duplicate_influence_bound(loss, 7, 3)


def _attained(draw: Draw) -> Float[Array, ""]:
    """Check that copies orthogonal to everything else reach the bound.

    They reach it as λ → 0.
    """
    drawn = _copied(draw)
    deltas = drawn.deltas.at[:3].multiply(jnp.asarray([0.0, 0.0, 1.0])).at[3:, 2].set(0.0)
    bound = duplicate_influence_bound(linear.loss(drawn.weight, deltas[0], drawn.eps), 7, 3)
    scale = jnp.trace(hessian(deltas[:3], drawn.eps))
    return jnp.abs(influences(drawn.weight, deltas, drawn.eps, 1e-9 * scale)[0] / bound - 1)


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
        correction=r"It does not: a point's own Hessian does not depend on other points. With the data set's Hessian a "
        r"perturbation present $k$ times has $h_i = \frac{s}{1 + ks} \leq \frac{1}{k}$, so $I_i \leq 2\,\frac{n}{k}\, l_i$.",
        counter_example=CounterExample(
            instance=r"$n = 2$ copies of $W = \delta = \varepsilon = 1$ at $\lambda \to 0$: Theorem 1 gives $2\,l = 2$, as "
            r"for one copy; next to an orthogonal point the same $\delta$ alone has $2\,n\,l = 4$.",
            stated=lambda: influences(jnp.ones((1, 2)), jnp.asarray([[1.0, 0.0], [1.0, 0.0]]), 1.0, 1e-12)[0],
            actual=lambda: influences(jnp.ones((1, 2)), jnp.eye(2), 1.0, 1e-12)[0],
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
