"""State Lemmas 3–4 and Theorem 1 for linear encoders under perturbations.

arXiv 2412.17170, Appendix C.1; reconstructed. `f(x) = Wx`, `a(x) = x + εδ`, `l(W) = ‖f(x) − f(a(x))‖²` (no ½). Vectors
of W are row-major. All forms use the whole perturbation `η = εδ` and no powers of ε: in float32 `ε⁴` underflows at ε =
1e-12, where `t` does not.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory import instances, oracle
from influence_ssl_jax.theory.instances import Draw
from influence_ssl_jax.theory.item import AtLeast, AtMost, Check, CounterExample, Item, Scalar


def loss(weight: Float[Array, "d p"], delta: Float[Array, " p"], eps: Scalar) -> Float[Array, ""]:
    """Return the alignment loss `l = ε²‖Wδ‖²` (Lemma 3), the same at every x."""
    moved = weight @ (eps * delta)
    return moved @ moved


def gradient(weight: Float[Array, "d p"], delta: Float[Array, " p"], eps: Scalar) -> Float[Array, "d p"]:
    """Return the gradient `∇l = 2ε² W δδᵀ` (Lemma 4)."""
    perturbation = eps * delta
    return 2 * jnp.outer(weight @ perturbation, perturbation)


def hessian(weight: Float[Array, "d p"], delta: Float[Array, " p"], eps: Scalar) -> Float[Array, "dp dp"]:
    """Return the Hessian `∇²l = 2ε² I_d ⊗ δδᵀ` in row-major vec W (Lemma 4).

    It has rank d and is constant in W.
    """
    perturbation = eps * delta
    return 2 * jnp.kron(jnp.eye(weight.shape[0]), jnp.outer(perturbation, perturbation))


def eigenvalue(delta: Float[Array, " p"], eps: Scalar, scale: Scalar = 1.0) -> Float[Array, ""]:
    """Return the only non-zero eigenvalue of that Hessian, `t = 2sε²‖δ‖²`, of multiplicity d.

    The loss is `s‖f(x) − f(a(x))‖²`.
    """
    perturbation = eps * delta
    return 2 * scale * (perturbation @ perturbation)


def shrinkage(eigenvalue: Float[Array, "*k"], damping: Scalar) -> Float[Array, "*k"]:
    """Return the factor that damping leaves of a direction: `t/(t + λ)`.

    It is 0 if t = λ = 0.

    Examples:
        >>> import jax.numpy as jnp
        >>> float(shrinkage(jnp.asarray(3.0), 1.0))
        0.75
    """
    positive = jnp.maximum(eigenvalue, 0.0)  # eigen-solvers return zeros as small negative numbers
    total = positive + damping
    return positive / jnp.maximum(total, jnp.finfo(total.dtype).tiny)


def influence(
    weight: Float[Array, "d p"], delta: Float[Array, " p"], eps: Scalar, damping: Scalar, scale: Scalar = 1.0
) -> Float[Array, ""]:
    """Return the self-influence with the point's own Hessian (Theorem 1).

    As a magnitude, for any output dimension: `I_λ = gᵀ(H + λI)⁻¹g = 4ε⁴‖Wδ‖²‖δ‖²/(λ + 2ε²‖δ‖²) = 2l·t/(t + λ)`; it is 0
    if δ = 0 or W = 0.

    Args:
        weight: W.
        delta: δ, of any length.
        eps: ε.
        damping: λ ≥ 0; at 0 the value is the limit `gᵀH⁺g = 2l`.
        scale: s of the loss `s‖f(x) − f(a(x))‖²`.
    """
    return influence_limit(weight, delta, eps, scale) * shrinkage(eigenvalue(delta, eps, scale), damping)


def influence_limit(
    weight: Float[Array, "d p"], delta: Float[Array, " p"], eps: Scalar, scale: Scalar = 1.0
) -> Float[Array, ""]:
    """Return Theorem 1's limit λ → 0: `I_0 = 2l`.

    It is twice the point's own loss.
    """
    return 2 * scale * loss(weight, delta, eps)


def limit_gap(delta: Float[Array, " p"], eps: Scalar, damping: Scalar) -> Float[Array, ""]:
    """Return the relative distance of `I_λ` from its limit: `(I_0 − I_λ)/I_0 = λ/(λ + t)`.

    Small λ means λ ≪ 2ε²‖δ‖², not λ ≪ 1.
    """
    total = damping + eigenvalue(delta, eps)
    return damping / jnp.maximum(total, jnp.finfo(total.dtype).tiny)


# Checks


_SHAPES = ((1, 5), (4, 2), (6, 6))
"""(d, p): more inputs than outputs, fewer, as many."""


def _unsimplified(drawn: instances.Linear) -> oracle.Derivatives:
    """Return gradient and Hessian of `‖Wx − W(x + εδ)‖²` by automatic differentiation."""
    perturbed = drawn.x + drawn.eps * drawn.delta
    return oracle.derivatives(lambda weight: oracle.alignment(weight, drawn.x, perturbed), drawn.weight)


def _visible(draw: Draw, outputs: int, inputs: int) -> instances.Linear:
    """Draw a perturbation that the difference of two encodings can resolve."""
    drawn = instances.linear(draw, outputs, inputs)
    return drawn._replace(eps=jnp.maximum(drawn.eps, 0.05), delta=instances.unit(draw, inputs))


def _loss(draw: Draw, outputs: int, inputs: int) -> Float[Array, ""]:
    """Compare the loss with its definition."""
    drawn = _visible(draw, outputs, inputs)
    expected = oracle.alignment(drawn.weight, drawn.x, drawn.x + drawn.eps * drawn.delta)
    return oracle.relative(loss(drawn.weight, drawn.delta, drawn.eps), expected)


def _derivatives(draw: Draw, outputs: int, inputs: int) -> Float[Array, ""]:
    """Compare gradient and Hessian with automatic differentiation."""
    drawn = _visible(draw, outputs, inputs)
    arguments = drawn.weight, drawn.delta, drawn.eps
    expected = _unsimplified(drawn)
    error = oracle.relative(gradient(*arguments).ravel(), expected.gradient)
    return jnp.maximum(error, oracle.relative(hessian(*arguments), expected.hessian))


def _rank(draw: Draw, outputs: int, inputs: int) -> Float[Array, ""]:
    """Return the distance of the Hessian's rank from d."""
    drawn = instances.linear(draw, outputs, inputs)
    values = jnp.linalg.eigvalsh(hessian(drawn.weight, drawn.delta, drawn.eps))
    return jnp.abs(jnp.sum(values > 1e-10 * values[-1]) - outputs).astype(float)


def _dense(draw: Draw, outputs: int, inputs: int) -> Float[Array, ""]:
    """Compare the influence with a dense solve."""
    drawn = instances.linear(draw, outputs, inputs)
    arguments = drawn.weight, drawn.delta, drawn.eps
    expected = oracle.quadratic(hessian(*arguments), gradient(*arguments).ravel(), drawn.damping)
    return oracle.relative(influence(*arguments, drawn.damping), expected)


def _autodiff(draw: Draw, outputs: int, inputs: int) -> Float[Array, ""]:
    """Compare at a random loss scale s.

    This covers both readings of the paper's ½.
    """
    drawn = _visible(draw, outputs, inputs)
    scale = draw.log_uniform(0.1, 10.0)
    gradient, hessian = _unsimplified(drawn)
    expected = oracle.quadratic(scale * hessian, scale * gradient, drawn.damping)
    return oracle.relative(influence(*drawn[:2], drawn.eps, drawn.damping, scale), expected)


def _limit(draw: Draw, outputs: int, inputs: int) -> Float[Array, ""]:
    """Compare the undamped limit with the pseudo-inverse and twice the loss."""
    drawn = instances.linear(draw, outputs, inputs)
    arguments = drawn.weight, drawn.delta, drawn.eps
    expected = oracle.pseudo_quadratic(hessian(*arguments), gradient(*arguments).ravel())
    exact = oracle.relative(influence_limit(*arguments), expected)
    undamped = oracle.relative(influence(*arguments, 0.0), expected)
    return jnp.maximum(jnp.maximum(exact, undamped), oracle.relative(2 * loss(*arguments), expected))


def _gap(draw: Draw, outputs: int, inputs: int) -> Float[Array, ""]:
    """Compare the gap to the limit with `λ/(λ + t)`."""
    drawn = instances.linear(draw, outputs, inputs)
    arguments = drawn.weight, drawn.delta, drawn.eps
    measured = 1 - influence(*arguments, drawn.damping) / influence_limit(*arguments)
    return jnp.abs(measured - limit_gap(drawn.delta, drawn.eps, drawn.damping))


def _degenerate(draw: Draw) -> Float[Array, ""]:
    """Check that the score is 0, not NaN, in degenerate cases.

    They are δ = 0, ε = 0 and W = 0, at λ = 0 and λ > 0.
    """
    drawn = instances.linear(draw, 2, 3)
    none = jnp.zeros_like(drawn.delta)
    values = [
        [
            influence(drawn.weight, none, drawn.eps, damping),
            influence(drawn.weight, drawn.delta, jnp.zeros(()), damping),
            influence(0 * drawn.weight, drawn.delta, drawn.eps, damping),
            shrinkage(jnp.asarray(-1e-17), damping),
            limit_gap(none, drawn.eps, 0.0),
        ]
        for damping in (0.0, drawn.damping)
    ]
    return jnp.max(jnp.abs(jnp.asarray(values)))


def _single_precision(draw: Draw) -> Float[Array, ""]:
    """Compare the influence in float32 with float64 at `ε = 1e-12`."""
    drawn = draw.normal(2, 3), instances.unit(draw, 3), jnp.asarray(1e-12), 1e-24 * draw.log_uniform(0.1, 10.0)
    weight, delta, eps, damping = (value.astype(jnp.float32) for value in drawn)
    return oracle.relative(influence(weight, delta, eps, damping).astype(float), influence(*drawn))


def _direct_solve(draw: Draw) -> Float[Array, ""]:
    """Return a direct solve's distance from `2l = 242` at λ = 0.

    The system is singular. NaN and infinity are read as 0.
    """
    del draw
    weight, delta = jnp.asarray([[1.0, 2.0]]), jnp.asarray([3.0, 4.0])
    vector = gradient(weight, delta, 1.0).ravel()
    direct = oracle.quadratic(hessian(weight, delta, 1.0), vector, 0.0)
    return jnp.abs(jnp.nan_to_num(direct, posinf=0, neginf=0) - 242.0)


def _over_shapes(measure, name: str, tolerance: float) -> tuple[Check, ...]:
    """Return one check of the worst error over all shapes."""

    def worst(draw: Draw) -> Float[Array, ""]:
        return jnp.max(jnp.stack([measure(draw, *shape) for shape in _SHAPES]))

    return (Check(name, worst, AtMost(tolerance)),)


ITEMS = (
    Item(
        name="lemma-3",
        title="Lemma 3 · alignment loss",
        source="App. C.1, confidence high",
        statement=r"$\|f(x) - f(x + \varepsilon\delta)\|^2 = \varepsilon^2 \|W\delta\|^2$ for $f(x) = Wx$.",
        status="true",
        correction=r"Exact at every $x$ and for every $\delta$. Evaluate the right-hand side: a difference of two "
        r"encodings loses $\|Wx\|/(\varepsilon\|W\delta\|)$ relative digits.",
        checks=_over_shapes(_loss, "loss as written: rel. error", 1e-8),
    ),
    Item(
        name="lemma-4",
        title="Lemma 4 · gradient and Hessian in W",
        source="App. C.1, confidence high up to the factor",
        statement=r"$\nabla_W\, l = 2\varepsilon^2\, W\delta\delta^\top$, "
        r"$\nabla_W^2\, l = 2\varepsilon^2\, I_d \otimes \delta\delta^\top$",
        status="true",
        correction=r"The rank of the Hessian is $d$, the output dimension; rank one is the case $d = 1$.",
        checks=(
            *_over_shapes(_derivatives, "automatic differentiation of the loss as written: rel. error", 1e-8),
            *_over_shapes(_rank, "|rank − d|", 0.0),
        ),
    ),
    Item(
        name="theorem-1",
        title="Theorem 1 · closed form in W",
        source="Theorem 1 and App. C.1, shape sure, factor and sign inferred",
        statement=r"For $d = 1$ and $\|\delta\| = 1$: $I_\lambda = -\frac{4\varepsilon^4 \|W\delta\|^2}"
        r"{\lambda + 2\varepsilon^2}$, and $I_\lambda \to {-}2\varepsilon^2\|W\delta\|^2$ as $\lambda \to 0$.",
        status="true under conditions",
        conditions=r"In the matrix $W$, with the point's own Hessian. $\lambda \to 0$ means $\lambda \ll "
        r"2\varepsilon^2\|\delta\|^2$: the limit is not uniform. No $W$ with $W\delta \neq 0$ is stationary for the "
        r"alignment loss.",
        correction=r"$I_\lambda = 2\,l\,\frac{t}{t + \lambda}$ with $t = 2\varepsilon^2\|\delta\|^2$, as a magnitude, "
        r"for every $d$ and $\delta$; the relative gap to $I_0 = 2\,l$ is $\frac{\lambda}{t + \lambda}$.",
        counter_example=CounterExample(
            instance=r"The limit is not uniform: $\varepsilon = 0.1$, $\lambda = 0.01$, $W = \delta = 1$ gives a third "
            r"less than the limit.",
            stated=lambda: jnp.ones(()),
            actual=lambda: (
                influence(jnp.ones((1, 1)), jnp.ones(1), 0.1, 0.01)
                / influence_limit(jnp.ones((1, 1)), jnp.ones(1), 0.1)
            ),
            gap=-1 / 3,
        ),
        checks=(
            *_over_shapes(_dense, "dense solve, six decades of λ: rel. error", 1e-9),
            *_over_shapes(_autodiff, "loss as written, any scale s, differentiated: rel. error", 1e-8),
            *_over_shapes(_limit, "λ → 0: gᵀH⁺g = 2l, rel. error", 1e-9),
            *_over_shapes(_gap, "gap to the limit λ/(λ + t): abs. error", 1e-12),
            Check("δ = 0, ε = 0 or W = 0, λ = 0 included: |I|", _degenerate, AtMost(0.0)),
            Check("float32 at ε near 1e-12: rel. error", _single_precision, AtMost(1e-5)),
            Check("a direct solve at λ = 0 misses 2l = 242 by", _direct_solve, AtLeast(1.0, "worst"), most=1),
        ),
    ),
)
