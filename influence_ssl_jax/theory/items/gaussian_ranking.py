"""Gaussian perturbations: what is left to rank."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from influence_ssl_jax.theory import deviation, gaussian, oracle
from influence_ssl_jax.theory.draw import Draw
from influence_ssl_jax.theory.item import AtLeast, AtMost, Check, CounterExample, Item


def _between(draw: Draw) -> Float[Array, ""]:
    """Σ_x by quadrature is the same at every x, so nothing of a linear score is left between examples."""
    weight, sigma = draw.normal(2, 3), draw.log_uniform(0.1, 3.0)
    moment = oracle.normal_expectation(lambda noise: jnp.outer(sigma * noise, sigma * noise), 3)
    left = jnp.abs(deviation.between(weight, moment, sigma**2 * jnp.eye(3), 1.0))
    return left / deviation.mean_influence(weight, moment, 1.0)


def _local(draw: Draw) -> Float[Array, ""]:
    """A tanh encoder at σ = 1e-4: both distances against their local forms."""
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
        oracle.relative(gaussian.local_distance(jacobian, sigma), euclidean),
        oracle.relative(gaussian.local_cosine_distance(output, jacobian, sigma), angular),
    )


def _signal(draw: Draw) -> Float[Array, ""]:
    """Two inputs of one tanh encoder differ in expected distance: the signal that a linear encoder lacks."""
    weight, x = draw.normal(2, 3), draw.normal(3)
    jacobian = jax.jacfwd(lambda x: jnp.tanh(weight @ x))
    first, second = gaussian.local_distance(jacobian(x), 0.2), gaussian.local_distance(jacobian(-2 * x), 0.2)
    return oracle.relative(second, first)


_EXAMPLES = np.asarray([0.0, 1.0, 2.0, 10.0])


def _expected_scores(examples: np.ndarray) -> Float[Array, " n"]:
    """`E gᵀH⁺g` over noise of every example, of the alignment loss as it is written at W = 1, by differentiation."""

    def score(x: Float[Array, ""], noise: Float[Array, "1"]) -> Float[Array, ""]:
        def loss(weight: Float[Array, "1 1"]) -> Float[Array, ""]:
            return oracle.alignment(weight, x[None], x[None] + noise)

        gradient, hessian = oracle.derivatives(loss, jnp.ones((1, 1)))
        return oracle.pseudo_quadratic(hessian, gradient)

    return jnp.stack([oracle.normal_expectation(lambda z, x=x: score(jnp.asarray(x), z), 1) for x in examples])


def _kendall(left: Float[Array, " n"], right: Float[Array, " n"]) -> Float[Array, ""]:
    """Kendall's τ: concordant less discordant pairs over all pairs; what differs by rounding alone is tied."""

    def order(values: Float[Array, " n"]) -> Float[Array, "n n"]:
        difference = values[:, None] - values[None, :]
        return jnp.where(jnp.abs(difference) > 1e-9, jnp.sign(difference), 0.0)

    pairs = left.size * (left.size - 1)
    return jnp.sum(order(left) * order(right)) / pairs


ITEMS = (
    Item(
        name="gaussian-ranking",
        title="Gaussian noise · what is left to rank",
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
