"""State self-influence with a point's own Gauss–Newton matrix, for any differentiable encoder.

`l(θ) = ½‖r(θ)‖²`, `J = ∂r/∂θ`, `g = Jᵀr`, `K = JJᵀ`: one solve of the size of r, for any number of parameters.
Theorem 1 of arXiv 2412.17170 is this statement for a linear encoder.
"""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from influence_ssl_jax.theory import instances, linear, oracle
from influence_ssl_jax.theory.instances import Draw
from influence_ssl_jax.theory.item import AtLeast, AtMost, Check, CounterExample, Item, Scalar
from influence_ssl_jax.theory.linear import shrinkage


def influence(residual: Float[Array, " d"], gram: Float[Array, "d d"], damping: Scalar) -> Float[Array, ""]:
    """Return `gᵀ(JᵀJ + λI)⁻¹g = rᵀK(K + λI)⁻¹r` (push-through identity, exact for λ > 0)."""
    return residual @ gram @ jnp.linalg.solve(gram + damping * jnp.eye(residual.size), residual)


def influence_limit(
    residual: Float[Array, " d"], jacobian: Float[Array, "d k"], cut: float = 1e-10
) -> Float[Array, ""]:
    """Return the limit λ → 0: `‖P_range(J) r‖²`.

    It is `2l` if J has full row rank.

    Args:
        residual: r.
        jacobian: J.
        cut: Singular values below `cut` times the largest count as zero.
    """
    basis, values, _ = jnp.linalg.svd(jacobian, full_matrices=False)
    inside = (residual @ basis) * (values > cut * values[0])
    return inside @ inside


def euclidean_residual(output: Float[Array, " d"], perturbed: Float[Array, " d"]) -> Float[Array, " d"]:
    """Return `r = √2 (f − f′)`, so that `½‖r‖² = ‖f − f′‖²`."""
    return jnp.sqrt(2.0) * (output - perturbed)


def cosine_residual(output: Float[Array, " d"], perturbed: Float[Array, " d"]) -> Float[Array, " d"]:
    """Return `r = f/‖f‖ − f′/‖f′‖`, so that `½‖r‖² = 1 − cos(f, f′)` exactly, in full precision at small angles."""
    return output / jnp.linalg.norm(output) - perturbed / jnp.linalg.norm(perturbed)


def own_influence(gradient: Float[Array, " k"], damping: Scalar) -> Float[Array, ""]:
    """Return the influence of one point alone: `gᵀ(ggᵀ + λI)⁻¹g = ‖g‖²/(‖g‖² + λ)`.

    As λ → 0 it tends to 1 for every point.
    """
    return shrinkage(gradient @ gradient, damping)


def rank(examples: int, inputs: int, encoder_rank: int) -> int:
    """Return the rank of C for a linear encoder and generic perturbations.

    It is `min(n, rp − r(r−1)/2)` with `r = rank W`. The gradients `2ε²Wδδᵀ` span `{WS : S symmetric}`: rotation
    invariance removes r(r−1)/2 of the rp directions.

    Examples:
        >>> rank(100, 5, 2)
        9
    """
    return min(examples, encoder_rank * inputs - encoder_rank * (encoder_rank - 1) // 2)


def total_influence(examples: int, rank: int) -> int:
    """Return `Σ_i g_iᵀC⁺g_i = n·rank C`; no single score exceeds n."""
    return examples * rank


def two_layer_gram(
    first: Float[Array, "h p"], second: Float[Array, "d h"], delta: Float[Array, " p"], eps: Scalar
) -> Float[Array, "d d"]:
    """Return `K = JJᵀ = 2ε²(‖W₁δ‖² I_d + ‖δ‖² W₂W₂ᵀ)` of the residual `r = √2 ε W₂W₁δ`."""
    perturbation = eps * delta
    hidden = first @ perturbation
    return 2 * ((hidden @ hidden) * jnp.eye(second.shape[0]) + (perturbation @ perturbation) * (second @ second.T))


def two_layer_influence(
    first: Float[Array, "h p"], second: Float[Array, "d h"], delta: Float[Array, " p"], eps: Scalar, damping: Scalar
) -> Float[Array, ""]:
    """Return Theorem 1 in (W₁, W₂) with the Gauss–Newton matrix: `rᵀK(K + λI)⁻¹r → 2l`.

    It differs from `I_λ` of the product W.
    """
    residual = jnp.sqrt(2.0) * (second @ (first @ (eps * delta)))
    return influence(residual, two_layer_gram(first, second, delta, eps), damping)


# Checks


class _Point:
    """A network's residual, its Jacobian in all parameters, and the loss.

    The loss is computed by its definition.
    """

    def __init__(self, residual, loss, params):
        vector, unravel = ravel_pytree(params)
        self.residual = residual(params)
        self.loss = loss(params)
        self.jacobian = jax.jacrev(lambda flat: residual(unravel(flat)))(vector)
        self.gram = self.jacobian @ self.jacobian.T
        self.gradient = jax.grad(lambda flat: loss(unravel(flat)))(vector)
        self.matrix = self.jacobian.T @ self.jacobian


def _tanh(params, x: Float[Array, " p"]) -> Float[Array, " d"]:
    """Embed x by a network with one hidden tanh layer."""
    return params[1] @ jnp.tanh(params[0] @ x)


def _points(draw: Draw) -> tuple[_Point, _Point]:
    """Draw a tanh network, with squared Euclidean and with cosine distance."""
    params = [draw.normal(4, 3), draw.normal(2, 4)]
    x = draw.normal(3)
    perturbed = x + 0.5 * instances.unit(draw, 3)

    def outputs(params):
        return _tanh(params, x), _tanh(params, perturbed)

    euclidean = _Point(
        lambda params: euclidean_residual(*outputs(params)),
        lambda params: jnp.sum((outputs(params)[0] - outputs(params)[1]) ** 2),
        params,
    )
    angular = _Point(
        lambda params: cosine_residual(*outputs(params)),
        lambda params: oracle.cosine(*outputs(params)),
        params,
    )
    return euclidean, angular


def _push_through(draw: Draw) -> Float[Array, ""]:
    """Compare both tanh scores at `λ = 0.3` with dense solves."""
    errors = []
    for point in _points(draw):
        expected = oracle.quadratic(point.matrix, point.gradient, 0.3)
        errors.append(oracle.relative(influence(point.residual, point.gram, 0.3), expected))
    return jnp.max(jnp.stack(errors))


def _limit(draw: Draw) -> Float[Array, ""]:
    """Compare both tanh limits with twice the loss."""
    limits = [(influence_limit(p.residual, p.jacobian), 2 * p.loss) for p in _points(draw)]
    return jnp.max(jnp.stack([oracle.relative(actual, expected) for actual, expected in limits]))


def _deficient(draw: Draw) -> Float[Array, ""]:
    """Check that directions reached only by rounding do not count.

    J reaches them; this holds at any scale of J.
    """
    jacobian = draw.normal(3, 5) * jnp.asarray([1.0, 1e-3, 1e-12])[:, None]
    residual = draw.normal(3)
    limits = [influence_limit(residual, scale * jacobian) for scale in (1e-6, 1e6)]
    return jnp.max(jnp.stack([oracle.relative(limit, jnp.sum(residual[:2] ** 2)) for limit in limits]))


def _two_layer(draw: Draw) -> Float[Array, ""]:
    """Compare the two-layer K and influence with automatic differentiation."""
    drawn = instances.two_layer(draw, 2, 3, 4)
    zero = jnp.zeros(2)
    point = _Point(
        lambda layers: euclidean_residual(oracle.deep(layers, drawn.eps * drawn.delta), zero),
        lambda layers: jnp.sum(oracle.deep(layers, drawn.eps * drawn.delta) ** 2),
        [drawn.first, drawn.second],
    )
    gram = two_layer_gram(drawn.first, drawn.second, drawn.delta, drawn.eps)
    influence = two_layer_influence(drawn.first, drawn.second, drawn.delta, drawn.eps, drawn.damping)
    expected = oracle.quadratic(point.matrix, point.gradient, drawn.damping)
    return jnp.maximum(oracle.relative(gram, point.gram), oracle.relative(influence, expected))


def _deep_limit(draw: Draw) -> Float[Array, ""]:
    """Check one to three linear layers.

    The limit is twice the loss of their product.
    """
    errors = []
    for widths in ((4, 2), (4, 3, 2), (3, 3, 2, 2)):
        layers = [draw.normal(rows, columns) for rows, columns in zip(widths[1:], widths[:-1], strict=True)]
        delta, zero = instances.unit(draw, widths[0]), jnp.zeros(widths[-1])
        point = _Point(
            lambda layers, delta=delta, zero=zero: euclidean_residual(oracle.deep(layers, delta), zero),
            lambda layers, delta=delta: jnp.sum(oracle.deep(layers, delta) ** 2),
            layers,
        )
        limit = influence_limit(point.residual, point.jacobian)
        errors.append(oracle.relative(limit, 2 * point.loss))
    return jnp.max(jnp.stack(errors))


def _damped_parametrisation(draw: Draw) -> Float[Array, ""]:
    """Check that at λ > 0 the two-layer and product scores differ."""
    drawn = instances.two_layer(draw, 2, 3, 4)
    product = linear.influence(drawn.second @ drawn.first, drawn.delta, drawn.eps, drawn.damping)
    layered = two_layer_influence(drawn.first, drawn.second, drawn.delta, drawn.eps, drawn.damping)
    return oracle.relative(layered, product)


def _fisher_total(draw: Draw) -> Float[Array, ""]:
    """Check that the scores sum to `n·rank C`, and none exceeds n."""
    errors = []
    for outputs, inputs, examples in ((2, 4, 9), (3, 2, 9), (2, 4, 5), (3, 4, 12)):
        drawn = instances.population(draw, examples, outputs, inputs)
        rows = jax.vmap(lambda delta, drawn=drawn: linear.gradient(drawn.weight, delta, 1.0).ravel())(drawn.deltas)
        spanned = rank(examples, inputs, min(outputs, inputs))
        scores = jax.vmap(lambda g, rows=rows: oracle.pseudo_quadratic(rows.T @ rows / rows.shape[0], g))(rows)
        total = float(total_influence(examples, spanned))
        errors += [oracle.relative(jnp.sum(scores), total), jnp.max(scores) / examples - 1]
    return jnp.max(jnp.stack(errors))


def _fisher_degree(draw: Draw) -> Float[Array, ""]:
    """Check that ε and W's scale change no score without damping."""
    drawn = instances.population(draw, 9, 2, 4)
    scores = []
    for factor, eps in ((1.0, 1.0), (2.0, 3.0)):
        rows = jax.vmap(lambda delta, f=factor, e=eps: linear.gradient(f * drawn.weight, delta, e).ravel())(
            drawn.deltas
        )
        scores.append(jax.vmap(lambda g, rows=rows: oracle.pseudo_quadratic(rows.T @ rows / 9, g))(rows))
    return oracle.relative(*scores)


def _fisher_alone(draw: Draw) -> Float[Array, ""]:
    """Compare a single point's own influence with a dense solve."""
    drawn = instances.linear(draw, 2, 3)
    gradient = linear.gradient(drawn.weight, drawn.delta, drawn.eps).ravel()
    gradient = gradient / jnp.linalg.norm(gradient)
    expected = oracle.quadratic(jnp.outer(gradient, gradient), gradient, drawn.damping)
    closed = own_influence(gradient, drawn.damping)
    undamped = jnp.abs(own_influence(gradient, 0.0) - 1)
    return jnp.maximum(oracle.relative(closed, expected), undamped)


ITEMS = (
    Item(
        name="gauss-newton",
        title="Gauss–Newton identity · Theorem 1 for any encoder",
        source="derived here",
        origin="derived here",
        statement=r"For any differentiable encoder and $l = \frac{1}{2}\|r(\theta)\|^2$, $g = J^\top r$, "
        r"$K = JJ^\top$: $g^\top (J^\top J + \lambda I)^{-1} g = r^\top K (K + \lambda I)^{-1} r$, which tends to "
        r"$\|P_J\, r\|^2$ as $\lambda \to 0$, with $P_J$ the projector on the range of $J$.",
        status="true",
        correction=r"The limit is $2\,l$ wherever $J$ has full row rank: at small $\lambda$ a point's own curvature "
        r"adds nothing to its loss. Further information in a score comes from $\lambda$ or from other points.",
        checks=(
            Check("tanh network, both distances, λ = 0.3: rel. error", _push_through, AtMost(1e-9)),
            Check("tanh network, both distances: limit = 2l, rel. error", _limit, AtMost(1e-4)),
            Check("J of deficient rank: ‖P r‖², rel. error", _deficient, AtMost(1e-5)),
        ),
    ),
    Item(
        name="theorem-1-gauss-newton",
        title="Theorem 1 in (W₁, W₂) with the Gauss–Newton matrix",
        source="derived here",
        origin="derived here",
        statement=r"With the Gauss–Newton matrix in $(W_1, W_2)$ the score of Theorem 1 is that of the product "
        r"$W = W_2 W_1$.",
        status="true under conditions",
        conditions=r"Only in the limit $\lambda \to 0$, where both are $2\,l$.",
        correction=r"$I_\lambda = r^\top K (K + \lambda)^{-1} r$, $K = 2\varepsilon^2 (\|W_1\delta\|^2 I_d + "
        r"\|\delta\|^2 W_2 W_2^\top)$, $r = \sqrt{2}\,\varepsilon\, W_2 W_1 \delta$.",
        counter_example=CounterExample(
            instance=r"$w_1 = w_2 = \delta = \varepsilon = \lambda = 1$: $8/5$ in the two layers, $4/3$ in their product.",
            stated=lambda: linear.influence(jnp.ones((1, 1)), jnp.ones(1), 1.0, 1.0),
            actual=lambda: two_layer_influence(jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.ones(1), 1.0, 1.0),
            gap=4 / 15,
        ),
        checks=(
            Check("K and I_λ against the dense Jacobian: rel. error", _two_layer, AtMost(1e-9)),
            Check("one to three layers: limit = 2l, rel. error", _deep_limit, AtMost(1e-9)),
            Check("gap to the score of the product at λ > 0", _damped_parametrisation, AtLeast(0.01)),
        ),
    ),
    Item(
        name="empirical-fisher",
        title="Empirical Fisher · scores that do not depend on the loss",
        source="derived here",
        origin="derived here",
        statement=r"With $C = \frac{1}{n}\sum_i g_i g_i^\top$ and $\lambda \to 0$: $I_i \leq n$ and $\sum_i I_i = n\, "
        r"\mathrm{rank}\, C$, which for a linear encoder of rank $r$ and generic $\delta_i$ is $n \min(n,\ rp - "
        r"\frac{r(r-1)}{2})$. A single point has $I = 1$ whatever it is.",
        status="true",
        correction=r"Scores have degree $0$ in $\varepsilon$ and in $W$; $r(r-1)/2$ directions are lost to rotations.",
        checks=(
            Check("Σ I = n rank C and max I ≤ n, four shapes: rel. error", _fisher_total, AtMost(1e-6)),
            Check("three times ε and twice W: rel. change", _fisher_degree, AtMost(1e-6)),
            Check("a single point: ‖g‖²/(‖g‖² + λ), rel. error", _fisher_alone, AtMost(1e-9)),
        ),
    ),
)
