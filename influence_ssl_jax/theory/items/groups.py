"""Claims 6–7 and Corollary 3: groups of perturbations."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory import groups, instances, linear, oracle
from influence_ssl_jax.theory.draw import Draw
from influence_ssl_jax.theory.item import AtLeast, AtMost, Check, CounterExample, Item


def _pooled(draw: Draw) -> Float[Array, ""]:
    drawn = instances.population(draw, 4, 2, 3)
    arguments = drawn.weight, drawn.deltas, drawn.eps
    pooled = linear.influence_limit(drawn.weight, jnp.sum(drawn.deltas, axis=0), drawn.eps)
    parts = groups.sum_of_influences(*arguments, 0.0) + groups.pooled_remainder(*arguments)
    scale = groups.sum_of_influences(*arguments, 0.0)
    return jnp.maximum(jnp.abs(groups.pooled_influence(*arguments) - pooled), jnp.abs(parts - pooled)) / scale


def _own(draw: Draw) -> Float[Array, ""]:
    """Group loss by automatic differentiation, and additivity at λ = 0."""
    drawn = instances.population(draw, 4, 2, 3)
    arguments = drawn.weight, drawn.deltas, drawn.eps

    def loss(weight: Float[Array, "d p"]) -> Float[Array, ""]:
        return jnp.sum((drawn.eps * drawn.deltas @ weight.T) ** 2)

    gradient, hessian = oracle.derivatives(loss, drawn.weight)
    expected = oracle.quadratic(hessian, gradient, drawn.damping)
    damped = oracle.relative(groups.own_influence(*arguments, drawn.damping), expected)
    return jnp.maximum(
        damped, oracle.relative(groups.own_influence(*arguments, 0.0), groups.sum_of_influences(*arguments, 0.0))
    )


def _own_sign(draw: Draw) -> Float[Array, ""]:
    drawn = instances.population(draw, 2, 2, 3)
    arguments = drawn.weight, drawn.deltas, drawn.eps, drawn.damping
    return (groups.own_influence(*arguments) < groups.sum_of_influences(*arguments)).astype(float)


def _shared(draw: Draw) -> tuple[instances.Population, Float[Array, "p p"], Float[Array, "n n"]]:
    drawn = instances.population(draw, 4, 2, 3)
    factor = draw.normal(5, 3)
    curvature = factor.T @ factor / 5
    return drawn, curvature, groups.kernel(drawn.deltas, curvature, drawn.damping)


def _dense_shared(draw: Draw) -> Float[Array, ""]:
    drawn, curvature, kernel = _shared(draw)
    rows = jax.vmap(lambda delta: linear.gradient(drawn.weight, delta, drawn.eps).ravel())(drawn.deltas)
    full = jnp.kron(jnp.eye(2), curvature)
    expected = oracle.quadratic(full, jnp.sum(rows, axis=0), drawn.damping)
    parts = jnp.sum(jax.vmap(lambda g: oracle.quadratic(full, g, drawn.damping))(rows))
    arguments = drawn.weight, drawn.deltas, drawn.eps, kernel
    errors = (
        jnp.abs(groups.shared_influence(*arguments) - expected),
        jnp.abs(groups.shared_remainder(*arguments) - (expected - parts)),
    )
    return jnp.maximum(*errors) / parts


def _without_kernel(draw: Draw) -> Float[Array, ""]:
    drawn, _, kernel = _shared(draw)
    remainder = groups.shared_remainder(drawn.weight, drawn.deltas, drawn.eps, kernel)
    return oracle.relative(groups.pooled_remainder(drawn.weight, drawn.deltas, drawn.eps), remainder)


def _orthogonal_images(draw: Draw) -> Float[Array, ""]:
    """δ_i along right singular vectors: the Wδ_i are orthogonal, and both remainders vanish."""
    drawn, _, kernel = _shared(draw)
    _, _, vectors = jnp.linalg.svd(drawn.weight, full_matrices=False)
    deltas = vectors * jnp.asarray([1.0, 2.0])[:, None]
    remainders = (
        groups.pooled_remainder(drawn.weight, deltas, drawn.eps),
        groups.shared_remainder(drawn.weight, deltas, drawn.eps, kernel[:2, :2]),
    )
    scale = groups.pooled_influence(drawn.weight, deltas, drawn.eps)
    return jnp.maximum(jnp.abs(remainders[0]), jnp.abs(remainders[1]) / jnp.max(jnp.abs(kernel))) / scale


def _bound(draw: Draw) -> Float[Array, ""]:
    drawn = instances.population(draw, 4, 2, 3)
    arguments = drawn.weight, drawn.deltas, drawn.eps
    return jnp.abs(groups.pooled_remainder(*arguments)) / groups.pooled_remainder_bound(*arguments)


def _duplicates(draw: Draw) -> Float[Array, ""]:
    """Exact duplicates along the top singular vector reach all three upper bounds."""
    drawn, _, _ = _shared(draw)
    _, values, vectors = jnp.linalg.svd(drawn.weight)
    deltas = 3 * jnp.tile(vectors[:1], (4, 1))
    arguments = drawn.weight, deltas, drawn.eps
    remainder = groups.pooled_remainder(*arguments)
    kernel = groups.kernel(deltas, jnp.eye(3), drawn.damping)
    shared = groups.shared_remainder(*arguments, kernel) / groups.shared_remainder_bound(*arguments, kernel)
    stated = 2 * drawn.eps**2 * values[0] ** 2 * 4 * 3 * 9
    ratios = jnp.stack(
        [
            remainder / groups.pooled_remainder_bound(*arguments),
            remainder / groups.pooled_remainder_range(*arguments)[1],
            remainder / stated,
            shared,
        ]
    )
    return jnp.max(jnp.abs(ratios - 1))


def _range(draw: Draw) -> Float[Array, ""]:
    drawn = instances.population(draw, 4, 2, 3)
    arguments = drawn.weight, drawn.deltas, drawn.eps
    lower, upper = groups.pooled_remainder_range(*arguments)
    remainder = groups.pooled_remainder(*arguments)
    return jnp.maximum(lower - remainder, remainder - upper) / upper


def _cancelling(draw: Draw) -> Float[Array, ""]:
    """Perturbations that sum to zero reach the lower end."""
    drawn = instances.population(draw, 4, 2, 3)
    arguments = drawn.weight, drawn.deltas - jnp.mean(drawn.deltas, axis=0, keepdims=True), drawn.eps
    lower, _ = groups.pooled_remainder_range(*arguments)
    return oracle.relative(groups.pooled_remainder(*arguments), lower)


def _shared_bound(draw: Draw) -> Float[Array, ""]:
    drawn, _, kernel = _shared(draw)
    arguments = drawn.weight, drawn.deltas, drawn.eps, kernel
    return jnp.abs(groups.shared_remainder(*arguments)) / groups.shared_remainder_bound(*arguments)


ITEMS = (
    Item(
        name="claim-6",
        title="Claim 6 · additivity over examples",
        source="App. C.3, confidence low: the influence of a group is not defined in the text",
        statement=r"$I(S) = \sum_{i \in S} I(x_i) + R(S)$ with $R(S) = -2\varepsilon^2 \sum_{i \neq j} "
        r"\langle W\delta_i, W\delta_j\rangle$.",
        status="true under conditions",
        conditions=r"If $I(S)$ means one pooled perturbation, $2\varepsilon^2 \|W \sum_i \delta_i\|^2$.",
        correction=r"With one shared curvature $A = C + \lambda I$: $I(S) = 4\varepsilon^4 \sum_{i,j} \langle W\delta_i, "
        r"W\delta_j\rangle\, \kappa_{ij}$, $\kappa_{ij} = \delta_i^\top A^{-1} \delta_j$. With the group's own Hessian: "
        r"additive as $\lambda \to 0$, and a remainder without fixed sign at $\lambda > 0$.",
        counter_example=CounterExample(
            instance=r"Two copies of $W = \delta = \varepsilon = 1$ with a shared curvature $A = 1$: the remainder is "
            r"$8$, and $4$ without the kernel.",
            stated=lambda: groups.pooled_remainder(jnp.ones((1, 1)), jnp.ones((2, 1)), 1.0),
            actual=lambda: groups.shared_remainder(jnp.ones((1, 1)), jnp.ones((2, 1)), 1.0, jnp.ones((2, 2))),
            gap=4.0,
        ),
        checks=(
            Check("pooled reading, an identity: rel. error", _pooled, AtMost(1e-12)),
            Check("own Hessian, λ > 0 and λ = 0: rel. error", _own, AtMost(1e-9)),
            Check("own Hessian, λ > 0: fraction with negative remainder", _own_sign, AtLeast(0.02, "mean")),
            Check("own Hessian, λ > 0: the same fraction", _own_sign, AtMost(0.98, "mean")),
            Check("shared curvature, dense solve: rel. error", _dense_shared, AtMost(1e-9)),
            Check("shared curvature without the kernel: rel. gap", _without_kernel, AtLeast(0.1)),
        ),
    ),
    Item(
        name="corollary-3",
        title="Corollary 3 · orthogonal examples",
        source="App. C.3, confidence low",
        statement=r"Mutually orthogonal examples are additive: $I(S) = \sum_{i \in S} I(x_i)$.",
        status="true under conditions",
        conditions=r"$\langle W\delta_i, W\delta_j\rangle = 0$, or $\kappa_{ij} = 0$ for a shared curvature. Orthogonal "
        r"inputs or perturbations do not suffice.",
        counter_example=CounterExample(
            instance=r"$W = [1, 1]$, $\delta = e_1, e_2$, $\varepsilon = 1$: orthogonal perturbations, and $R = 4$.",
            stated=lambda: jnp.zeros(()),
            actual=lambda: groups.pooled_remainder(jnp.ones((1, 2)), jnp.eye(2), 1.0),
            gap=4.0,
        ),
        checks=(Check("orthogonal images: remainder, relative", _orthogonal_images, AtMost(1e-12)),),
    ),
    Item(
        name="claim-7",
        title="Claim 7 · bound on interactions",
        source="App. C.3, confidence medium",
        statement=r"$|R(S)| \leq 2\varepsilon^2\, \sigma_{\max}(W)^2\, |S|(|S| - 1)$",
        status="true under conditions",
        conditions=r"Pooled reading and unit $\delta_i$; else $\sum_{i \neq j}\|\delta_i\|\|\delta_j\|$ in place of "
        r"$|S|(|S|-1)$. Duplicates along the top singular vector reach it.",
        correction=r"$-\sum_i I_i \leq R(S) \leq (|S| - 1)\sum_i I_i$; for a shared curvature $|R| \leq 4\varepsilon^4 "
        r"\sigma_{\max}^2 \sum_{i \neq j} |\kappa_{ij}|\, \|\delta_i\| \|\delta_j\|$.",
        checks=(
            Check("any δ_i: |R|/bound", _bound, AtMost(1 + 1e-12)),
            Check("duplicates along the top singular vector: |R/bound − 1|", _duplicates, AtMost(1e-12)),
            Check("two-sided range: violation, relative", _range, AtMost(1e-12)),
            Check("Σ δ_i = 0 reaches its lower end: rel. error", _cancelling, AtMost(1e-12)),
            Check("shared curvature: |R|/bound", _shared_bound, AtMost(1 + 1e-12)),
        ),
    ),
)
