"""State how a minimiser responds to one more example.

These are influence functions in general. arXiv 2412.17170, Eq. 2–6. `F(θ) = (1/n) Σ L(z_i, θ)` has its isolated minimum
at θ*, `H = ∇²F(θ*)`, and `θ(e) = argmin F(θ) + e·L(z, θ)`. Removing a training example is `e = −1/n`, adding it once
more is `e = +1/n`. Away from a stationary point the implicit function theorem does not apply and `−H⁻¹g` is only a
Newton-like direction.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory import oracle
from influence_ssl_jax.theory.instances import Draw
from influence_ssl_jax.theory.item import AtLeast, AtMost, Check, CounterExample, Item, Scalar


def response(hessian: Float[Array, "p p"], gradient: Float[Array, " p"]) -> Float[Array, " p"]:
    """Return `dθ(e)/de|₀ = −H⁻¹ ∇L(z, θ*)`, the minimiser's derivative in an example's weight (Eq. 2).

    Args:
        hessian: H, non-singular, at the minimum.
        gradient: ∇L(z, θ*) of the example that gains weight.
    """
    return -jnp.linalg.solve(hessian, gradient)


def extrapolation(params: Float[Array, " p"], response: Float[Array, " p"], weight: Scalar) -> Float[Array, " p"]:
    """Return the minimiser at weight e to first order: `θ(e) = θ* + e·dθ/de|₀ + O(e²)` (Eq. 3)."""
    return params + weight * response


def function_influence(
    function_gradient: Float[Array, " p"], hessian: Float[Array, "p p"], gradient: Float[Array, " p"]
) -> Float[Array, ""]:
    """Return the derivative of f(θ(e)): `−∇f(θ*)ᵀ H⁻¹ ∇L(z, θ*)` (Eq. 4)."""
    return function_gradient @ response(hessian, gradient)


def score(
    left: Float[Array, " p"], right: Float[Array, " p"], curvature: Float[Array, "p p"], damping: Scalar
) -> Float[Array, ""]:
    """Return the score as a magnitude: `+ left ᵀ (C + λI)⁻¹ right`.

    It is Eq. 6 without its minus sign (reconstructed). With `left = right` and a positive semi-definite C
    (Gauss–Newton, Fisher) it is never negative.

    Args:
        left: Gradient of what is measured.
        right: Gradient of the loss that trained the network; the same vector in the default reading.
        curvature: C, symmetric.
        damping: λ, such that C + λI is not singular.

    Examples:
        >>> import jax.numpy as jnp
        >>> float(score(jnp.ones(2), jnp.ones(2), jnp.diag(jnp.asarray([1.0, 3.0])), 1.0))
        0.75
    """
    return left @ jnp.linalg.solve(curvature + damping * jnp.eye(left.size), right)


def signed_score(
    left: Float[Array, " p"], right: Float[Array, " p"], curvature: Float[Array, "p p"], damping: Scalar
) -> Float[Array, ""]:
    """Return the score with the sign of Eq. 4: `− left ᵀ (C + λI)⁻¹ right`."""
    return -score(left, right, curvature, damping)


# Checks


_RIDGE = 0.1


class _Regression:
    """A regression of twelve examples with four features.

    Example 0 can have more weight.
    """

    def __init__(self, draw: Draw):
        self.features, self.targets = draw.normal(12, 4), draw.normal(12)
        self.signs = jnp.sign(self.targets)

    def _weights(self, extra: Float[Array, ""]) -> Float[Array, " n"]:
        """Return the weights 1/12, with `extra` added to that of example 0."""
        return jnp.zeros(12).at[0].set(extra) + 1 / 12

    def ridge(self, extra: Float[Array, ""]) -> Float[Array, " p"]:
        """Return the minimiser of the ridge objective, by its normal equations."""
        weighted = self._weights(extra)[:, None] * self.features
        return jnp.linalg.solve(weighted.T @ self.features + _RIDGE * jnp.eye(4), weighted.T @ self.targets)

    def ridge_parts(self, params: Float[Array, " p"]) -> tuple[Float[Array, "p p"], Float[Array, " p"]]:
        """Return the ridge objective's Hessian and the gradient of example 0."""
        hessian = self.features.T @ self.features / 12 + _RIDGE * jnp.eye(4)
        return hessian, (self.features[0] @ params - self.targets[0]) * self.features[0]

    def logistic(self, extra: Float[Array, ""]) -> Float[Array, " p"]:
        """Return the minimiser of the ridge-penalised logistic objective.

        It takes eight Newton steps from zero.
        """
        params = jnp.zeros(4)
        for _ in range(8):
            rates = jax.nn.sigmoid(-self.features @ params * self.signs)
            weighted = (rates * (1 - rates) * self._weights(extra))[:, None] * self.features
            gradient = _RIDGE * params - (rates * self.signs * self._weights(extra)) @ self.features
            params = params - jnp.linalg.solve(weighted.T @ self.features + _RIDGE * jnp.eye(4), gradient)
        return params

    def logistic_parts(self, params: Float[Array, " p"]) -> tuple[Float[Array, "p p"], Float[Array, " p"]]:
        """Return the logistic objective's Hessian and the gradient of example 0."""
        rates = jax.nn.sigmoid(-self.features @ params * self.signs)
        weighted = (rates * (1 - rates) / 12)[:, None] * self.features
        return weighted.T @ self.features + _RIDGE * jnp.eye(4), -rates[0] * self.signs[0] * self.features[0]


def _response(draw: Draw) -> Float[Array, ""]:
    """Compare Eq. 2 with the derivative of the ridge regression's minimiser."""
    problem, none = _Regression(draw), jnp.zeros(())
    exact = jax.jacfwd(problem.ridge)(none)
    return oracle.relative(response(*problem.ridge_parts(problem.ridge(none))), exact)


def _not_stationary(draw: Draw) -> Float[Array, ""]:
    """Measure how far Eq. 2 is off away from the minimum."""
    problem = _Regression(draw)
    exact = jax.jacfwd(problem.ridge)(jnp.zeros(()))
    return oracle.relative(response(*problem.ridge_parts(draw.normal(4))), exact)


def _logistic(draw: Draw) -> Float[Array, ""]:
    """Compare Eq. 2 with refits of a logistic regression at ±1e-4."""
    problem, step = _Regression(draw), jnp.asarray(1e-4)
    closed = response(*problem.logistic_parts(problem.logistic(jnp.zeros(()))))
    return oracle.relative(closed, (problem.logistic(step) - problem.logistic(-step)) / (2 * step))


def _order(draw: Draw) -> Float[Array, ""]:
    """Measure how far the remainder of Eq. 3 is from order 2."""
    problem = _Regression(draw)
    params = problem.ridge(jnp.zeros(()))
    first_order = response(*problem.ridge_parts(params))
    remainders = [
        jnp.linalg.norm(problem.ridge(jnp.asarray(e)) - extrapolation(params, first_order, e)) for e in (1e-3, 1e-4)
    ]
    return jnp.abs(jnp.log10(remainders[0] / remainders[1]) - 2)


def _function(draw: Draw) -> Float[Array, ""]:
    """Compare Eq. 4 with the derivative through the ridge solution."""

    def value(params: Float[Array, " p"]) -> Float[Array, ""]:
        return jnp.sum(jnp.sin(params))

    problem, none = _Regression(draw), jnp.zeros(())
    params = problem.ridge(none)
    exact = jax.jacfwd(lambda extra: value(problem.ridge(extra)))(none)
    closed = function_influence(jax.grad(value)(params), *problem.ridge_parts(params))
    return oracle.relative(closed, exact)


def _scores(draw: Draw) -> tuple[Float[Array, "3 p"], Float[Array, "p p"], Float[Array, ""]]:
    """Draw three gradients, a positive semi-definite curvature, and damping."""
    factor = draw.normal(3, 5)
    return draw.normal(3, 5), factor.T @ factor, draw.log_uniform(1e-3, 1e3)


def _dense_score(draw: Draw) -> Float[Array, ""]:
    """Compare both signs of the score with the eigendecomposition."""
    (left, right, _), curvature, damping = _scores(draw)
    values, vectors = jnp.linalg.eigh(curvature)
    expected = jnp.sum((left @ vectors) * (right @ vectors) / (values + damping))
    scale = jnp.sqrt(oracle.quadratic(curvature, left, damping) * oracle.quadratic(curvature, right, damping))
    signed = signed_score(left, right, curvature, damping)
    return jnp.maximum(jnp.abs(score(left, right, curvature, damping) - expected), jnp.abs(signed + expected)) / scale


def _bilinear(draw: Draw) -> Float[Array, ""]:
    """Check that the score is bilinear and symmetric."""
    (a, b, c), curvature, damping = _scores(draw)
    joint = score(a + 2 * b, c, curvature, damping)
    apart = score(c, a, curvature, damping) + 2 * score(c, b, curvature, damping)
    return jnp.abs(joint - apart) * damping / (jnp.linalg.norm(c) * (jnp.linalg.norm(a) + jnp.linalg.norm(b)))


def _negative_part(draw: Draw) -> Float[Array, ""]:
    """Return minus the score of a gradient, which is never positive."""
    (left, _, _), curvature, damping = _scores(draw)
    return -score(left, left, curvature, damping)


def _indefinite() -> Float[Array, ""]:
    """Return the score at `C = −1`, `λ = 1/2`, `g = 1`: it is −2."""
    return score(jnp.ones(1), jnp.ones(1), -jnp.ones((1, 1)), 0.5)


ITEMS = (
    Item(
        name="eq-2",
        title="Eq. 2 · response of the minimiser",
        source="Eq. 1–2, confidence high",
        statement=r"Up-weighting an example $z$ by $e$ moves the minimiser by "
        r"$\frac{d\theta(e)}{de}|_{0} = -H^{-1}\nabla L(z,\theta^*)$.",
        status="true under conditions",
        conditions=r"$\theta^*$ is stationary and $H$ is not singular. Away from a stationary point, which is where "
        r"Theorem 1 evaluates it, $-H^{-1}g$ is only a Newton-like direction.",
        checks=(
            Check("ridge regression, derivative of the exact solution: rel. error", _response, AtMost(1e-10)),
            Check("logistic regression refitted at ±1e-4: rel. error", _logistic, AtMost(1e-5)),
            Check("not at the minimum: the formula is not the response, rel. gap", _not_stationary, AtLeast(0.1)),
        ),
    ),
    Item(
        name="eq-3",
        title="Eq. 3 · first order",
        source="Eq. 3, confidence high",
        statement=r"$\theta(e) - \theta^* = e\,\frac{d\theta}{de}|_{0} + O(e^2)$",
        status="true under conditions",
        conditions="As Eq. 2; removing one of $n$ examples is $e = -1/n$.",
        checks=(Check("|order of the remainder − 2|", _order, AtMost(0.15)),),
    ),
    Item(
        name="eq-4",
        title="Eq. 4 · influence on a function",
        source="Eq. 4, confidence high",
        statement=r"$I_f(z) = \frac{d f(\theta(e))}{de}|_{0} = -\nabla f(\theta^*)^\top H^{-1}\nabla L(z,\theta^*)$",
        status="true under conditions",
        conditions="As Eq. 2.",
        checks=(Check("derivative through the exact solution: rel. error", _function, AtMost(1e-10)),),
    ),
    Item(
        name="eq-6",
        title="Eq. 6 · the score",
        source="Eq. 5–6, confidence medium: which gradients and which Hessian is left open",
        statement=r"$I(x) = -g^\top H^{-1} g$ with $g = \nabla_\theta\, d(x, a(x))$; shipped as the magnitude "
        r"$+\,g^\top (C + \lambda I)^{-1} g$.",
        status="true under conditions",
        conditions=r"A definition. It has a sign only where $C + \lambda I$ is positive definite, as it is for "
        r"Gauss–Newton and Fisher matrices and $\lambda > 0$.",
        counter_example=CounterExample(
            instance=r"$C = -1$, $\lambda = 1/2$, $g = 1$: the magnitude is $-2$; a magnitude would be at least $0$.",
            stated=lambda: jnp.zeros(()),
            actual=_indefinite,
            gap=-2.0,
        ),
        checks=(
            Check("against the eigen-decomposition, both signs: rel. error", _dense_score, AtMost(1e-9)),
            Check("bilinear and symmetric: rel. error", _bilinear, AtMost(1e-9)),
            Check("left = right, C ⪰ 0: largest −score", _negative_part, AtMost(0.0)),
        ),
    ),
)
