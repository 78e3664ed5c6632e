"""State expected influence and deviations from it: Definition 1 and Proposition 2.

arXiv 2412.17170, section 4.4; reconstructed. Linear encoder, λ = 0 if not stated otherwise. `Σ_x = E[δδᵀ | x]` is the
second moment of one input's perturbations, `Σ = E[δδᵀ]` that of the population.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory import instances, linear, oracle
from influence_ssl_jax.theory.instances import Draw
from influence_ssl_jax.theory.item import AtLeast, AtMost, Check, CounterExample, Item, Scalar
from influence_ssl_jax.theory.linear import shrinkage


def mean_distance(weight: Float[Array, "d p"], moment: Float[Array, "p p"], eps: Scalar) -> Float[Array, ""]:
    """Return Definition 1 of the appendix: `D = E‖Wx − Wa(x)‖² = ε² tr(WᵀW Σ)`."""
    return eps**2 * _inner(weight, moment)


def mean_influence(weight: Float[Array, "d p"], moment: Float[Array, "p p"], eps: Scalar) -> Float[Array, ""]:
    """Return Definition 1 of the main text: `Ī = E I_0 = 2ε² tr(WᵀW Σ)`, twice `mean_distance`."""
    return 2 * eps**2 * _inner(weight, moment)


def averaged_loss_influence(
    weight: Float[Array, "d p"], moment: Float[Array, "p p"], eps: Scalar, damping: Scalar
) -> Float[Array, ""]:
    """Return the influence of a loss averaged over draws.

    With its own Hessian it is `4ε⁴ tr(W Σ_x (2ε²Σ_x + λ)⁻¹ Σ_x Wᵀ)`. As λ → 0 it is `mean_influence` at Σ_x.
    """
    values, vectors = jnp.linalg.eigh(2 * eps**2 * moment)
    energy = jnp.sum((weight @ vectors) ** 2, axis=0)
    return jnp.sum(energy * values * shrinkage(values, damping))


def within_term(
    weight: Float[Array, "d p"], delta: Float[Array, " p"], moment: Float[Array, "p p"], eps: Scalar
) -> Float[Array, ""]:
    """Return the deviation of this draw from its input's mean: `2ε²⟨WᵀW, δδᵀ − Σ_x⟩`.

    Its mean given x is zero, so it is noise of the draw.

    Args:
        weight: W.
        delta: The draw δ.
        moment: Σ_x of the same input.
        eps: ε.
    """
    return 2 * eps**2 * _inner(weight, jnp.outer(delta, delta) - moment)


def between_term(
    weight: Float[Array, "d p"], moment: Float[Array, "p p"], population: Float[Array, "p p"], eps: Scalar
) -> Float[Array, ""]:
    """Return the deviation of this input from the population: `2ε²⟨WᵀW, Σ_x − Σ⟩`.

    `within_term + between_term = I − Ī` (Proposition 2 corrected).
    """
    return 2 * eps**2 * _inner(weight, moment - population)


def reliability(between_variance: Scalar, within_variance: Scalar, draws: Scalar) -> Scalar:
    """Return the correlation of two independent scorings with K draws each: `V_b/(V_b + V_w/K)`.

    Examples:
        >>> reliability(1.0, 2.0, 2)
        0.5
    """
    return between_variance / (between_variance + within_variance / draws)


def _inner(weight: Float[Array, "d p"], moment: Float[Array, "p p"]) -> Float[Array, ""]:
    """Return `⟨WᵀW, M⟩_F = tr(W M Wᵀ)`."""
    return jnp.sum((weight @ moment) * weight)


# Checks


_INPUTS, _DRAWS = 5, 3
Augmentation: TypeAlias = Callable[[Array, Array], Array]
"""A function from an input and noise to the augmented input."""


class _Population:
    """Five inputs, each with three equally likely perturbations.

    Every mean is then a finite sum.
    """

    def __init__(self, draw: Draw):
        drawn = instances.population(draw, _INPUTS * _DRAWS, 2, 3)
        self.weight, self.eps, self.damping = drawn.weight, drawn.eps, drawn.damping
        self.deltas = drawn.deltas.reshape(_INPUTS, _DRAWS, 3)
        self.moments = jnp.einsum("xki,xkj->xij", self.deltas, self.deltas) / _DRAWS
        self.moment = jnp.mean(self.moments, axis=0)
        limit = jax.vmap(jax.vmap(lambda delta: linear.influence_limit(drawn.weight, delta, drawn.eps)))
        self.influences = limit(self.deltas)
        over_draws = jax.vmap(lambda delta, moment: within_term(drawn.weight, delta, moment, drawn.eps), (0, None))
        self.within = jax.vmap(over_draws)(self.deltas, self.moments)
        self.between = jax.vmap(lambda moment: between_term(drawn.weight, moment, self.moment, drawn.eps))(self.moments)


def _means(draw: Draw) -> Float[Array, ""]:
    """Compare the closed means of influence and distance with finite sums."""
    drawn = _Population(draw)
    mean = jnp.mean(drawn.influences)
    influence = mean_influence(drawn.weight, drawn.moment, drawn.eps)
    distance = mean_distance(drawn.weight, drawn.moment, drawn.eps)
    return jnp.maximum(oracle.relative(influence, mean), oracle.relative(2 * distance, mean))


def _damped_mean(draw: Draw) -> Float[Array, ""]:
    """Check that damping multiplies the mean by `t/(t + λ)`.

    The perturbations have one length.
    """
    drawn = _Population(draw)
    deltas = drawn.deltas.reshape(-1, 3)
    deltas = 2 * deltas / jnp.linalg.norm(deltas, axis=1, keepdims=True)
    mean = jnp.mean(jax.vmap(lambda delta: linear.influence(drawn.weight, delta, drawn.eps, drawn.damping))(deltas))
    undamped = mean_influence(drawn.weight, deltas.T @ deltas / deltas.shape[0], drawn.eps)
    return oracle.relative(undamped * linear.shrinkage(linear.eigenvalue(deltas[0], drawn.eps), drawn.damping), mean)


def _concentrated(draw: Draw) -> Float[Array, ""]:
    """Return the between term over its bound."""
    drawn = _Population(draw)
    apart = jnp.sum(jnp.abs(jnp.linalg.eigvalsh(drawn.moments - drawn.moment[None])), axis=1)
    bound = 2 * drawn.eps**2 * jnp.linalg.norm(drawn.weight, ord=2) ** 2 * apart
    return jnp.max(jnp.abs(drawn.between) / bound)


def _conditioning(x: Float[Array, " p"], augmentation: Augmentation) -> Float[Array, ""]:
    """Return the smallest over the largest eigenvalue of `Σ_x = E[δδᵀ | x]`.

    δ = a(x, z) − x with z standard normal.
    """

    def outer(noise: Float[Array, " p"]) -> Float[Array, "p p"]:
        delta = augmentation(x, noise) - x
        return jnp.outer(delta, delta)

    values = jnp.linalg.eigvalsh(oracle.normal_expectation(outer, x.size))
    return values[0] / values[-1]


def _averaged_loss(draw: Draw) -> Float[Array, ""]:
    """Compare the averaged loss's influence with automatic differentiation and the mean."""
    drawn = _Population(draw)
    deltas, moment = drawn.deltas[0], drawn.moments[0]

    def loss(weight: Float[Array, "d p"]) -> Float[Array, ""]:
        return jnp.sum((drawn.eps * deltas @ weight.T) ** 2) / _DRAWS

    gradient, hessian = oracle.derivatives(loss, drawn.weight)
    damped = averaged_loss_influence(drawn.weight, moment, drawn.eps, drawn.damping)
    undamped = averaged_loss_influence(drawn.weight, moment, drawn.eps, 0.0)
    return jnp.maximum(
        oracle.relative(damped, oracle.quadratic(hessian, gradient, drawn.damping)),
        oracle.relative(undamped, jnp.mean(drawn.influences[0])),
    )


def _split(draw: Draw) -> Float[Array, ""]:
    """Check that both terms add up, and the within term averages zero."""
    drawn = _Population(draw)
    deviations = drawn.influences - jnp.mean(drawn.influences)
    whole = oracle.relative(drawn.within + drawn.between[:, None], deviations)
    noise = jnp.max(jnp.abs(jnp.mean(drawn.within, axis=1))) / jnp.max(jnp.abs(deviations))
    return jnp.maximum(whole, noise)


def _within_only(draw: Draw) -> Float[Array, ""]:
    """Measure how far the within term alone is from the deviation."""
    drawn = _Population(draw)
    return oracle.relative(drawn.within, drawn.influences - jnp.mean(drawn.influences))


def _variances(draw: Draw) -> Float[Array, ""]:
    """Check that the variances of both terms add up."""
    drawn = _Population(draw)
    parts = jnp.mean(jnp.var(drawn.within, axis=1)) + jnp.var(drawn.between)
    return oracle.relative(parts, jnp.var(drawn.influences))


def _reliability(draw: Draw) -> Float[Array, ""]:
    """Compare with the correlation of two two-draw scorings.

    It is over all inputs and all pairs of pairs of draws.
    """
    drawn = _Population(draw)
    scorings = (drawn.influences[:, :, None] + drawn.influences[:, None, :]).reshape(_INPUTS, -1) / 2
    centred = scorings - jnp.mean(scorings)
    correlation = jnp.mean(centred[:, :, None] * centred[:, None, :]) / jnp.mean(centred**2)
    closed = reliability(jnp.var(drawn.between), jnp.mean(drawn.within**2), 2)
    return jnp.abs(closed - correlation)


def _deterministic(index: int) -> Float[Array, ""]:
    """Return the within term at x₁ (part 0) or deviation (part 1).

    Here W = [1, 0], δ(x₁) = e₁ and δ(x₂) = e₂.
    """
    weight, moments = jnp.asarray([[1.0, 0.0]]), jnp.asarray([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]])
    part = within_term(weight, jnp.asarray([1.0, 0.0]), moments[0], 1.0)
    return (part, part + between_term(weight, moments[0], jnp.mean(moments, axis=0), 1.0))[index]


ITEMS = (
    Item(
        name="definition-1",
        title="Definition 1 · expected influence, expected distance",
        source="Sec. 4.4 and App. C.4, confidence medium: two quantities under one name",
        statement=r"$\bar I = E\, I = -2\varepsilon^2\,\mathrm{tr}(W^\top W\, \Sigma)$ (main text) and $D = "
        r"E\|Wx - Wa(x)\|^2 = \varepsilon^2\,\mathrm{tr}(W^\top W\, \Sigma)$ (appendix), $\Sigma = E[\delta\delta^\top]$.",
        status="true under conditions",
        conditions=r"Linear encoder and $\lambda = 0$. At $\lambda > 0$ the mean is a function of $\Sigma$ only where "
        r"all $\|\delta\|$ are equal.",
        correction=r"$|\bar I| = 2D$. A loss averaged over draws, with its own Hessian, has $4\varepsilon^4\,"
        r"\mathrm{tr}(W \Sigma_x (2\varepsilon^2\Sigma_x + \lambda)^{-1} \Sigma_x W^\top)$.",
        checks=(
            Check("means over a finite population: rel. error", _means, AtMost(1e-10)),
            Check("δ of one length, λ > 0: factor t/(t + λ), rel. error", _damped_mean, AtMost(1e-10)),
            Check("averaged loss, λ > 0 and λ = 0: rel. error", _averaged_loss, AtMost(1e-9)),
        ),
    ),
    Item(
        name="proposition-2",
        title="Proposition 2 · deviation from the mean",
        source="Sec. 4.4 and App. C.4, confidence low: two incompatible versions",
        statement=r"$I(x) - \bar I = -2\varepsilon^2 \langle W^\top W,\ \delta\delta^\top - \Sigma_x \rangle$ with "
        r"$\Sigma_x = E[\delta\delta^\top | x]$.",
        status="false as stated",
        correction=r"As a magnitude $I - \bar I = 2\varepsilon^2\langle W^\top W, \delta\delta^\top - \Sigma_x\rangle + "
        r"2\varepsilon^2\langle W^\top W, \Sigma_x - \Sigma\rangle$: noise of the draw, plus the difference of the "
        r"example from the population. The variances add.",
        counter_example=CounterExample(
            instance=r"One fixed perturbation per input, $W = [1, 0]$, $\delta(x_1) = e_1$, $\delta(x_2) = e_2$: the "
            r"right-hand side is $0$, the deviations are $\pm 1$.",
            stated=lambda: _deterministic(0),
            actual=lambda: _deterministic(1),
            gap=1.0,
        ),
        checks=(
            Check("within + between, and E[within | x] = 0: rel. error", _split, AtMost(1e-10)),
            Check("variances add: rel. error", _variances, AtMost(1e-10)),
            Check("the within term alone: rel. gap", _within_only, AtLeast(0.1)),
        ),
    ),
    Item(
        name="assumption-1",
        title="Assumption 1 · properties of augmentations",
        source="Sec. 4.4, confidence high as prose",
        statement=r"(i) $\Sigma_x$ is well conditioned; (ii) it concentrates near $\Sigma$; (iii) meaning is preserved.",
        status="true under conditions",
        conditions=r"An assumption, not a theorem. (i) needs a perturbation that is random given $x$.",
        correction=r"(ii) bounds what a score can say about an example: the between term of Proposition 2 is at most "
        r"$2\varepsilon^2\,\sigma_{\max}(W)^2\,\|\Sigma_x - \Sigma\|_*$ (sum of absolute eigenvalues). If it were true "
        r"for every $x$, there would be nothing to detect.",
        counter_example=CounterExample(
            instance=r"(i) at $x = (1, 3)$ whose augmentation swaps the two pixels: $\delta = (2, -2)$ in every draw, "
            r"$\Sigma_x = \delta\delta^\top$ has rank one, and its smallest eigenvalue over its largest is $0$. Of the same "
            r"$x$ with noise in place of the swap it is $1$, as (i) says.",
            stated=lambda: _conditioning(jnp.asarray([1.0, 3.0]), lambda x, noise: x + noise),
            actual=lambda: _conditioning(jnp.asarray([1.0, 3.0]), lambda x, noise: x[::-1] + 0 * noise),
            gap=-1.0,
        ),
        checks=(Check("between term over its bound", _concentrated, AtMost(1 + 1e-12)),),
    ),
    Item(
        name="reliability",
        title="Reliability · the share of a score that belongs to the example",
        source="derived here",
        origin="derived here",
        statement=r"Two independent scorings with $K$ draws each correlate as $\frac{V_b}{V_b + V_w / K}$, with the "
        r"variances $V_b$ between and $V_w$ within examples.",
        status="true",
        checks=(Check("all pairs of scorings of a finite population: abs. error", _reliability, AtMost(1e-10)),),
    ),
)
