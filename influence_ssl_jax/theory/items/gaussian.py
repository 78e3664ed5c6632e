"""Gaussian perturbations: moments and estimators."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory import background, gaussian, instances, oracle
from influence_ssl_jax.theory.draw import Draw
from influence_ssl_jax.theory.item import AtMost, Check, CounterExample, Item


def _drawn(draw: Draw, inputs: int) -> tuple[Float[Array, "2 p"], Float[Array, " p"], Float[Array, ""]]:
    weight = draw.normal(2, inputs)
    return weight, draw.normal(inputs), draw.log_uniform(0.1, 3.0)


def _moments(draw: Draw) -> Float[Array, ""]:
    """Mean and variance of ‖Wη‖² by quadrature, which is exact for polynomials."""
    weight, mean, sigma = _drawn(draw, 3)

    def energy(noise: Float[Array, " p"]) -> Float[Array, ""]:
        return jnp.sum((weight @ (mean + sigma * noise)) ** 2)

    first = oracle.normal_expectation(energy, 3)
    second = oracle.normal_expectation(lambda noise: (energy(noise) - first) ** 2, 3)
    return jnp.maximum(
        oracle.relative(gaussian.energy_mean(weight, mean, sigma), first),
        oracle.relative(gaussian.energy_variance(weight, mean, sigma), second),
    )


def _spread(draw: Draw) -> Float[Array, ""]:
    weight, _, sigma = _drawn(draw, 3)
    mean = gaussian.energy_mean(weight, jnp.zeros(3), sigma)
    deviation_of_mean = jnp.sqrt(gaussian.energy_variance(weight, jnp.zeros(3), sigma) / 5)
    return oracle.relative(gaussian.relative_spread(weight, 5), deviation_of_mean / mean)


def _effective_rank(draw: Draw) -> Float[Array, ""]:
    """Between 1 and the rank, and both are reached."""
    weight, mean, _ = _drawn(draw, 3)
    value = gaussian.effective_rank(weight)
    ends = (
        jnp.abs(gaussian.effective_rank(instances.orthogonal(draw, 3, 2)) - 2),
        jnp.abs(gaussian.effective_rank(mean[None, :]) - 1),
    )
    return jnp.maximum(jnp.maximum(*ends), jnp.maximum(1 - value, value - 2))


def _gradient(weight: Float[Array, "d p"], noise: Float[Array, " p"]) -> Float[Array, " dp"]:
    return jax.grad(lambda w: jnp.sum((w @ noise) ** 2))(weight).ravel()


def _scores(draw: Draw):
    """Weight, per-block curvature, σ; two inputs and two draws keep the quadrature small."""
    weight, _, sigma = _drawn(draw, 2)
    factor = draw.normal(4, 2)
    return weight, factor.T @ factor + 0.1 * jnp.eye(2), sigma


def _estimators(draw: Draw) -> Float[Array, ""]:
    """One draw, the expected gradient, two draws averaged, and cross draws, each by exact quadrature."""
    weight, curvature, sigma = _scores(draw)
    full = jnp.kron(jnp.eye(2), curvature)

    def draws(noise: Float[Array, " 4"]) -> Float[Array, "3"]:
        rows = jnp.stack([_gradient(weight, sigma * noise[:2]), _gradient(weight, sigma * noise[2:])])
        mean = jnp.mean(rows, axis=0)
        return jnp.stack(
            [
                background.score(rows[0], rows[0], full, 0.0),
                background.score(mean, mean, full, 0.0),
                gaussian.cross_draw_score(rows, full),
            ]
        )

    single, averaged, cross = oracle.normal_expectation(draws, 4)
    expected = oracle.normal_expectation(lambda noise: _gradient(weight, sigma * noise), 2)
    closed_single = gaussian.single_draw_score(weight, curvature, sigma)
    closed_mean = gaussian.mean_gradient_score(weight, curvature, sigma)
    closed_averaged = gaussian.averaged_gradient_score(closed_single, closed_mean, 2)
    target = background.score(expected, expected, full, 0.0)
    errors = [(closed_single, single), (closed_mean, target), (closed_averaged, averaged), (closed_mean, cross)]
    return jnp.max(jnp.stack([oracle.relative(closed, exact) for closed, exact in errors]))


def _cross_draws(draw: Draw) -> Float[Array, ""]:
    """Three draws: the mean over all ordered pairs of different draws."""
    rows = draw.normal(3, 2)
    _, curvature, _ = _scores(draw)
    pairs = [background.score(rows[k], rows[m], curvature, 0.0) for k in range(3) for m in range(3) if k != m]
    scale = background.score(rows[0], rows[0], curvature, 0.0)
    return jnp.abs(gaussian.cross_draw_score(rows, curvature) - jnp.mean(jnp.stack(pairs))) / scale


def _isotropic_ratio(draw: Draw) -> Float[Array, ""]:
    weight, _, sigma = _drawn(draw, 5)
    single = gaussian.single_draw_score(weight, 2 * jnp.eye(5), sigma)
    return oracle.relative(
        single / gaussian.mean_gradient_score(weight, 2 * jnp.eye(5), sigma), gaussian.isotropic_ratio(5.0)
    )


ITEMS = (
    Item(
        name="gaussian-moments",
        title="Gaussian noise · moments of the score",
        source="the experiments' perturbation; derived here",
        origin="derived here",
        statement=r"For $\eta \sim N(m, \sigma^2 I)$, $\Gamma = W^\top W$: $E\|W\eta\|^2 = \sigma^2\|W\|_F^2 + \|Wm\|^2$ "
        r"and $\mathrm{Var}\|W\eta\|^2 = 2\sigma^4\|\Gamma\|_F^2 + 4\sigma^2\, m^\top\Gamma^2 m$.",
        status="true",
        correction=r"At $m = 0$ a score averaged over $K$ draws has relative spread $\sqrt{2/(K r)}$, $r = "
        r"(\mathrm{tr}\,\Gamma)^2/\|\Gamma\|_F^2$.",
        checks=(
            Check("mean and variance by exact quadrature: rel. error", _moments, AtMost(1e-10)),
            Check("relative spread of five draws: rel. error", _spread, AtMost(1e-10)),
            Check("1 ≤ effective rank ≤ rank, ends reached: violation", _effective_rank, AtMost(1e-10)),
        ),
    ),
    Item(
        name="gaussian-estimators",
        title="Gaussian noise · what averaging estimates",
        source="derived here",
        origin="derived here",
        statement=r"With a fixed curvature $A$, averaging scores over draws and scoring the averaged gradient estimate the "
        r"same quantity.",
        status="false as stated",
        correction=r"One draw: $E_s = 4\sigma^4(\mathrm{tr}\,\Gamma\,\mathrm{tr}\,A^{-1} + 2\,\mathrm{tr}\,\Gamma A^{-1})$. "
        r"The expected gradient: $E_m = 4\sigma^4\,\mathrm{tr}\,\Gamma A^{-1}$. A gradient averaged over $K$ draws: $E_m + "
        r"(E_s - E_m)/K$. Cross draws $k \neq l$ alone are unbiased for $E_m$. For $A = aI$, $E_s/E_m = p + 2$.",
        counter_example=CounterExample(
            instance=r"$W = I$, $A = I$, $p = 2$, $\sigma = 1$: $E_s = 32$, $E_m = 8$.",
            stated=lambda: gaussian.mean_gradient_score(jnp.eye(2), jnp.eye(2), 1.0),
            actual=lambda: gaussian.single_draw_score(jnp.eye(2), jnp.eye(2), 1.0),
            gap=24.0,
        ),
        checks=(
            Check("four estimators by exact quadrature: rel. error", _estimators, AtMost(1e-9)),
            Check("cross draws, K = 3, against all pairs: rel. error", _cross_draws, AtMost(1e-9)),
            Check("A = aI: E_s/E_m = p + 2, rel. error", _isotropic_ratio, AtMost(1e-10)),
        ),
    ),
)
