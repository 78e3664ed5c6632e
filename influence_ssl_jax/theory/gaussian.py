"""State the moments of the score under Gaussian perturbations `η ~ N(m, σ²I_p)`.

Also what averages over draws estimate. Linear encoder, `Γ = WᵀW`. It is the noise of arXiv 2412.17170's experiments;
derived for this project. The mean is 0 if not stated otherwise. Every input has the same second moment, so the between
term of Proposition 2 vanishes: whatever ranks examples under isotropic noise comes from the encoder not being linear.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from influence_ssl_jax.theory import background, deviation, instances, oracle
from influence_ssl_jax.theory.instances import Draw
from influence_ssl_jax.theory.item import AtLeast, AtMost, Check, CounterExample, Item, Scalar


def energy_mean(weight: Float[Array, "d p"], mean: Float[Array, " p"], sigma: Scalar) -> Float[Array, ""]:
    """Return `E‖Wη‖² = σ²‖W‖_F² + ‖Wm‖²`; the score `I_0 = 2‖Wη‖²` has twice this mean."""
    moved = weight @ mean
    return sigma**2 * jnp.sum(weight**2) + moved @ moved


def energy_variance(weight: Float[Array, "d p"], mean: Float[Array, " p"], sigma: Scalar) -> Float[Array, ""]:
    """Return `Var‖Wη‖² = 2σ⁴‖Γ‖_F² + 4σ² mᵀΓ²m`; the score has four times this variance."""
    pulled = weight.T @ (weight @ mean)
    return 2 * sigma**4 * jnp.sum((weight.T @ weight) ** 2) + 4 * sigma**2 * (pulled @ pulled)


def effective_rank(weight: Float[Array, "d p"]) -> Float[Array, ""]:
    """Return `r = (tr Γ)²/‖Γ‖_F²`, between 1 and rank W.

    Examples:
        >>> import jax.numpy as jnp
        >>> float(effective_rank(jnp.eye(3)))
        3.0
    """
    return jnp.sum(weight**2) ** 2 / jnp.sum((weight.T @ weight) ** 2)


def relative_spread(weight: Float[Array, "d p"], draws: Scalar) -> Float[Array, ""]:
    """Return the relative standard deviation of a score: `√(2/(K r))`.

    It is that over the mean, for a score averaged over K draws.
    """
    return jnp.sqrt(2 / (draws * effective_rank(weight)))


def single_draw_score(weight: Float[Array, "d p"], curvature: Float[Array, "p p"], sigma: Scalar) -> Float[Array, ""]:
    """Return `E gᵀA⁻¹g` of one draw under a fixed curvature `I_d ⊗ A`: `4σ⁴(tr Γ·tr A⁻¹ + 2 tr ΓA⁻¹)` (Isserlis).

    Args:
        weight: W.
        curvature: A, with its damping, positive definite.
        sigma: σ.
    """
    inverse_trace = jnp.trace(jnp.linalg.solve(curvature, jnp.eye(curvature.shape[0])))
    noise = 4 * sigma**4 * (jnp.sum(weight**2) * inverse_trace)
    return noise + 2 * mean_gradient_score(weight, curvature, sigma)


def mean_gradient_score(weight: Float[Array, "d p"], curvature: Float[Array, "p p"], sigma: Scalar) -> Float[Array, ""]:
    """Return `ḡᵀA⁻¹ḡ` of the gradient of the expected loss, `ḡ = 2σ²W`: `4σ⁴ tr ΓA⁻¹`."""
    return 4 * sigma**4 * jnp.sum(weight.T * jnp.linalg.solve(curvature, weight.T))


def averaged_gradient_score(single: Scalar, mean_gradient: Scalar, draws: Scalar) -> Scalar:
    """Return the expected score of a gradient averaged over K draws: `E_m + (E_s − E_m)/K`.

    It is biased, and the bias falls as 1/K.
    """
    return mean_gradient + (single - mean_gradient) / draws


def isotropic_ratio(inputs: Scalar) -> Scalar:
    """Return `E_s/E_m = p + 2` for `A = aI`.

    Nearly all of a single draw's score is noise of the draw.
    """
    return inputs + 2


def cross_draw_score(gradients: Float[Array, "draws k"], curvature: Float[Array, "k k"]) -> Float[Array, ""]:
    """Return the U-statistic `(1/(K(K−1))) Σ_{k≠l} g_kᵀA⁻¹g_l`.

    It estimates `mean_gradient_score` without bias, and may be negative.
    """
    draws = gradients.shape[0]
    pairs = gradients @ jnp.linalg.solve(curvature, gradients.T)
    return (jnp.sum(pairs) - jnp.trace(pairs)) / (draws * (draws - 1))


def local_distance(jacobian: Float[Array, "d p"], sigma: Scalar) -> Float[Array, ""]:
    """Return the distance of any smooth encoder at small σ: `E‖f(x + η) − f(x)‖² = σ²‖J_f(x)‖_F² + O(σ⁴)`."""
    return sigma**2 * jnp.sum(jacobian**2)


def local_cosine_distance(output: Float[Array, " d"], jacobian: Float[Array, "d p"], sigma: Scalar) -> Float[Array, ""]:
    """Return the cosine distance at small σ: `σ²‖P_⊥ J_f(x)‖_F²/(2‖f(x)‖²) + O(σ⁴)`."""
    direction = output / jnp.linalg.norm(output)
    across = jacobian - jnp.outer(direction, direction @ jacobian)
    return sigma**2 * jnp.sum(across**2) / (2 * (output @ output))


# Checks


def _drawn(draw: Draw, inputs: int) -> tuple[Float[Array, "2 p"], Float[Array, " p"], Float[Array, ""]]:
    """Draw W, the mean of the noise, and σ."""
    weight = draw.normal(2, inputs)
    return weight, draw.normal(inputs), draw.log_uniform(0.1, 3.0)


def _moments(draw: Draw) -> Float[Array, ""]:
    """Compare mean and variance of ‖Wη‖² with quadrature.

    Quadrature is exact for polynomials.
    """
    weight, mean, sigma = _drawn(draw, 3)

    def energy(noise: Float[Array, " p"]) -> Float[Array, ""]:
        return jnp.sum((weight @ (mean + sigma * noise)) ** 2)

    first = oracle.normal_expectation(energy, 3)
    second = oracle.normal_expectation(lambda noise: (energy(noise) - first) ** 2, 3)
    return jnp.maximum(
        oracle.relative(energy_mean(weight, mean, sigma), first),
        oracle.relative(energy_variance(weight, mean, sigma), second),
    )


def _spread(draw: Draw) -> Float[Array, ""]:
    """Compare the relative spread of five draws with mean and variance."""
    weight, _, sigma = _drawn(draw, 3)
    mean = energy_mean(weight, jnp.zeros(3), sigma)
    deviation_of_mean = jnp.sqrt(energy_variance(weight, jnp.zeros(3), sigma) / 5)
    return oracle.relative(relative_spread(weight, 5), deviation_of_mean / mean)


def _effective_rank(draw: Draw) -> Float[Array, ""]:
    """Check that it lies between 1 and the rank, and reaches both."""
    weight, mean, _ = _drawn(draw, 3)
    value = effective_rank(weight)
    ends = (
        jnp.abs(effective_rank(instances.orthogonal(draw, 3, 2)) - 2),
        jnp.abs(effective_rank(mean[None, :]) - 1),
    )
    return jnp.maximum(jnp.maximum(*ends), jnp.maximum(1 - value, value - 2))


def _gradient(weight: Float[Array, "d p"], noise: Float[Array, " p"]) -> Float[Array, " dp"]:
    """Differentiate `‖Wη‖²` in vec W automatically."""
    return jax.grad(lambda w: jnp.sum((w @ noise) ** 2))(weight).ravel()


def _scores(draw: Draw):
    """Draw weight, per-block curvature and σ.

    Two inputs and two draws keep the quadrature small.
    """
    weight, _, sigma = _drawn(draw, 2)
    factor = draw.normal(4, 2)
    return weight, factor.T @ factor + 0.1 * jnp.eye(2), sigma


def _estimators(draw: Draw) -> Float[Array, ""]:
    """Compare four estimators with exact quadrature.

    They are one draw, the expected gradient, two averaged draws and cross draws.
    """
    weight, curvature, sigma = _scores(draw)
    full = jnp.kron(jnp.eye(2), curvature)

    def draws(noise: Float[Array, " 4"]) -> Float[Array, "3"]:
        rows = jnp.stack([_gradient(weight, sigma * noise[:2]), _gradient(weight, sigma * noise[2:])])
        mean = jnp.mean(rows, axis=0)
        return jnp.stack(
            [
                background.score(rows[0], rows[0], full, 0.0),
                background.score(mean, mean, full, 0.0),
                cross_draw_score(rows, full),
            ]
        )

    single, averaged, cross = oracle.normal_expectation(draws, 4)
    expected = oracle.normal_expectation(lambda noise: _gradient(weight, sigma * noise), 2)
    closed_single = single_draw_score(weight, curvature, sigma)
    closed_mean = mean_gradient_score(weight, curvature, sigma)
    closed_averaged = averaged_gradient_score(closed_single, closed_mean, 2)
    target = background.score(expected, expected, full, 0.0)
    errors = [(closed_single, single), (closed_mean, target), (closed_averaged, averaged), (closed_mean, cross)]
    return jnp.max(jnp.stack([oracle.relative(closed, exact) for closed, exact in errors]))


def _cross_draws(draw: Draw) -> Float[Array, ""]:
    """Compare three draws with the mean over ordered pairs of different ones."""
    rows = draw.normal(3, 2)
    _, curvature, _ = _scores(draw)
    pairs = [background.score(rows[k], rows[m], curvature, 0.0) for k in range(3) for m in range(3) if k != m]
    scale = background.score(rows[0], rows[0], curvature, 0.0)
    return jnp.abs(cross_draw_score(rows, curvature) - jnp.mean(jnp.stack(pairs))) / scale


def _isotropic_ratio(draw: Draw) -> Float[Array, ""]:
    """Compare `E_s/E_m` at `A = 2I` with `p + 2`."""
    weight, _, sigma = _drawn(draw, 5)
    single = single_draw_score(weight, 2 * jnp.eye(5), sigma)
    return oracle.relative(single / mean_gradient_score(weight, 2 * jnp.eye(5), sigma), isotropic_ratio(5.0))


def _between(draw: Draw) -> Float[Array, ""]:
    """Check by quadrature that Σ_x is the same at every x.

    So linear scores do not differ between examples.
    """
    weight, sigma = draw.normal(2, 3), draw.log_uniform(0.1, 3.0)
    moment = oracle.normal_expectation(lambda noise: jnp.outer(sigma * noise, sigma * noise), 3)
    left = jnp.abs(deviation.between_term(weight, moment, sigma**2 * jnp.eye(3), 1.0))
    return left / deviation.mean_influence(weight, moment, 1.0)


def _local(draw: Draw) -> Float[Array, ""]:
    """Compare a tanh encoder with the local forms of both distances.

    Here σ = 1e-4.
    """
    weight, x = draw.normal(2, 3), draw.normal(3)

    def encoder(x: Float[Array, " p"]) -> Float[Array, " d"]:
        return jnp.tanh(weight @ x / 3)

    sigma, output, jacobian = 1e-4, encoder(x), jax.jacfwd(encoder)(x)

    def distances(noise: Float[Array, " p"]) -> Float[Array, "2"]:
        moved = encoder(x + sigma * noise)
        chord = moved / jnp.linalg.norm(moved) - output / jnp.linalg.norm(output)
        return jnp.stack([jnp.sum((moved - output) ** 2), jnp.sum(chord**2) / 2])

    euclidean, angular = oracle.normal_expectation(distances, 3)
    return jnp.maximum(
        oracle.relative(local_distance(jacobian, sigma), euclidean),
        oracle.relative(local_cosine_distance(output, jacobian, sigma), angular),
    )


def _signal(draw: Draw) -> Float[Array, ""]:
    """Check that two inputs of one tanh encoder differ in distance.

    It is the expected distance, in which inputs of a linear encoder cannot differ.
    """
    weight, x = draw.normal(2, 3), draw.normal(3)
    jacobian = jax.jacfwd(lambda x: jnp.tanh(weight @ x))
    first, second = local_distance(jacobian(x), 0.2), local_distance(jacobian(-2 * x), 0.2)
    return oracle.relative(second, first)


_EXAMPLES = np.asarray([0.0, 1.0, 2.0, 10.0])


def _expected_scores(examples: np.ndarray) -> Float[Array, " n"]:
    """Return `E gᵀH⁺g` over noise of every example.

    The loss is alignment by its definition at W = 1.
    """

    def score(x: Float[Array, ""], noise: Float[Array, "1"]) -> Float[Array, ""]:
        def loss(weight: Float[Array, "1 1"]) -> Float[Array, ""]:
            return oracle.alignment(weight, x[None], x[None] + noise)

        gradient, hessian = oracle.derivatives(loss, jnp.ones((1, 1)))
        return oracle.pseudo_quadratic(hessian, gradient)

    return jnp.stack([oracle.normal_expectation(lambda z, x=x: score(jnp.asarray(x), z), 1) for x in examples])


def _kendall(left: Float[Array, " n"], right: Float[Array, " n"]) -> Float[Array, ""]:
    """Return Kendall's τ, concordant minus discordant pairs over all pairs.

    Differences of rounding size are ties.
    """

    def order(values: Float[Array, " n"]) -> Float[Array, "n n"]:
        difference = values[:, None] - values[None, :]
        return jnp.where(jnp.abs(difference) > 1e-9, jnp.sign(difference), 0.0)

    pairs = left.size * (left.size - 1)
    return jnp.sum(order(left) * order(right)) / pairs


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
            stated=lambda: mean_gradient_score(jnp.eye(2), jnp.eye(2), 1.0),
            actual=lambda: single_draw_score(jnp.eye(2), jnp.eye(2), 1.0),
            gap=24.0,
        ),
        checks=(
            Check("four estimators by exact quadrature: rel. error", _estimators, AtMost(1e-9)),
            Check("cross draws, K = 3, against all pairs: rel. error", _cross_draws, AtMost(1e-9)),
            Check("A = aI: E_s/E_m = p + 2, rel. error", _isotropic_ratio, AtMost(1e-10)),
        ),
    ),
    Item(
        name="gaussian-ranking",
        title="Gaussian noise · what a score ranks",
        source="Assumption 1 and Sec. 4.4; derived here",
        origin="derived here",
        statement=r"Under isotropic noise the linear theory ranks examples by how atypical they are.",
        status="false as stated",
        correction=r"$\Sigma_x = \Sigma$ for every $x$: the between term of Proposition 2 is $0$, and differences are "
        r"noise of the draw. A non-linear encoder ranks by its local Jacobian: $E\|f(x+\eta) - f(x)\|^2 = "
        r"\sigma^2\|J_f(x)\|_F^2 + O(\sigma^4)$, and $\frac{\sigma^2\|P_\perp J_f(x)\|_F^2}{2\|f(x)\|^2}$ for the cosine "
        r"distance.",
        counter_example=CounterExample(
            instance=r"$f(x) = x$ in one dimension, $\sigma = 1$, examples at $0, 1, 2, 10$: all four have expected score "
            r"$2$, so that scores and distances from the mean have Kendall's rank correlation $0$, not $1$.",
            stated=lambda: _kendall(jnp.abs(_EXAMPLES - _EXAMPLES.mean()), jnp.abs(_EXAMPLES - _EXAMPLES.mean())),
            actual=lambda: _kendall(_expected_scores(_EXAMPLES), jnp.abs(_EXAMPLES - _EXAMPLES.mean())),
            gap=-1.0,
        ),
        checks=(
            Check("linear encoder: between term, relative", _between, AtMost(1e-12)),
            Check("tanh encoder, σ = 1e-4, both distances: rel. error", _local, AtMost(1e-4)),
            Check("tanh encoder: rel. difference between two inputs", _signal, AtLeast(0.1)),
        ),
    ),
)
