"""State the influence of groups of perturbations: Claims 5–7 and Corollary 3.

arXiv 2412.17170; reconstructed. The paper does not define the influence of a group. `pooled_influence` is the reading
that reproduces Claim 6; `own_influence` uses the group's own Hessian; `shared_influence` uses one fixed curvature and
is the influence of a group in the sense of Eq. 2. Rows of `deltas` are δ_1 … δ_n.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory import instances, linear, oracle
from influence_ssl_jax.theory.instances import Draw
from influence_ssl_jax.theory.item import AtLeast, AtMost, Check, CounterExample, Item, Scalar
from influence_ssl_jax.theory.linear import shrinkage


def sum_of_influences(
    weight: Float[Array, "d p"], deltas: Float[Array, "n p"], eps: Scalar, damping: Scalar
) -> Float[Array, ""]:
    """Return `Σ I_λ(δ_i)`, each with its own Hessian: a group's additive score."""
    moved = (eps * deltas) @ weight.T
    eigenvalues = 2 * jnp.sum((eps * deltas) ** 2, axis=1)
    return 2 * jnp.sum(jnp.sum(moved**2, axis=1) * shrinkage(eigenvalues, damping))


def total_over_basis(weight: Float[Array, "d p"], eps: Scalar, damping: Scalar) -> Float[Array, ""]:
    """Return `Σ I_λ` over any orthonormal basis of R^p (Claim 5): `4ε⁴/(λ + 2ε²)·‖W‖_F²`.

    It is `2ε²‖W‖_F²` at λ = 0.
    """
    eigenvalue = 2 * jnp.asarray(eps) ** 2
    return eigenvalue * shrinkage(eigenvalue, damping) * jnp.sum(weight**2)


def ky_fan_bounds(weight: Float[Array, "d p"], eps: Scalar, count: int) -> Float[Array, "2"]:
    """Return bounds of `Σ I_0` for k < p orthonormal directions (Claim 5).

    The sum is conserved only within one span. The bounds are `2ε²` times the sum of the k smallest, and of the k
    largest, eigenvalues of WᵀW (Ky Fan).
    """
    ascending = 2 * eps**2 * jnp.linalg.eigvalsh(weight.T @ weight)
    return jnp.stack([jnp.sum(ascending[:count]), jnp.sum(ascending[-count:])])


def pooled_influence(weight: Float[Array, "d p"], deltas: Float[Array, "n p"], eps: Scalar) -> Float[Array, ""]:
    """Return Claim 6 read as one pooled perturbation: `2ε²‖W Σ δ_i‖²`.

    It is an identity, but not the influence of a group.
    """
    moved = weight @ (eps * jnp.sum(deltas, axis=0))
    return 2 * moved @ moved


def pooled_remainder(weight: Float[Array, "d p"], deltas: Float[Array, "n p"], eps: Scalar) -> Float[Array, ""]:
    """Return the remainder of the pooled reading: `R = 2ε² Σ_{i≠j} ⟨Wδ_i, Wδ_j⟩`.

    It is zero if the Wδ_i are orthogonal (Corollary 3).
    """
    return 2 * jnp.sum(_off_diagonal(_moved_gram(weight, eps * deltas)))


def pooled_remainder_bound(weight: Float[Array, "d p"], deltas: Float[Array, "n p"], eps: Scalar) -> Float[Array, ""]:
    """Return the bound of Claim 7: `|R| ≤ 2ε² σ_max(W)² Σ_{i≠j} ‖δ_i‖‖δ_j‖`.

    It is `2ε² σ_max² n(n − 1)` for unit δ_i.
    """
    lengths = jnp.linalg.norm(eps * deltas, axis=1)
    return 2 * jnp.linalg.norm(weight, ord=2) ** 2 * jnp.sum(_off_diagonal(jnp.outer(lengths, lengths)))


def pooled_remainder_range(weight: Float[Array, "d p"], deltas: Float[Array, "n p"], eps: Scalar) -> Float[Array, "2"]:
    """Return the sharper range of Claim 7: `−Σ I_i ≤ R ≤ (n − 1) Σ I_i` with `I_i = 2ε²‖Wδ_i‖²`."""
    total = 2 * jnp.trace(_moved_gram(weight, eps * deltas))
    return jnp.stack([-total, (deltas.shape[0] - 1) * total])


def own_influence(
    weight: Float[Array, "d p"], deltas: Float[Array, "n p"], eps: Scalar, damping: Scalar
) -> Float[Array, ""]:
    """Return the influence of the group's loss with its own Hessian.

    It is `4ε⁴ tr(W O (2ε²O + λ)⁻¹ O Wᵀ)` with `O = Σ δ_iδ_iᵀ`. It is additive as λ → 0.

    Args:
        weight: W.
        deltas: The perturbations.
        eps: ε.
        damping: λ ≥ 0.
    """
    values, vectors = jnp.linalg.eigh(2 * (eps * deltas).T @ (eps * deltas))
    energy = jnp.sum((weight @ vectors) ** 2, axis=0)
    return jnp.sum(energy * values * shrinkage(values, damping))


def kernel(deltas: Float[Array, "n p"], curvature: Float[Array, "p p"], damping: Scalar) -> Float[Array, "n n"]:
    """Return `κ_ij = δ_iᵀ A⁻¹ δ_j` with `A = C + λI`, for one shared curvature `I_d ⊗ C`."""
    return deltas @ jnp.linalg.solve(curvature + damping * jnp.eye(deltas.shape[1]), deltas.T)


def shared_influence(
    weight: Float[Array, "d p"], deltas: Float[Array, "n p"], eps: Scalar, kernel: Float[Array, "n n"]
) -> Float[Array, ""]:
    """Return a group's influence with one shared curvature (Claim 6 corrected).

    It is `I(S) = 4ε⁴ Σ_ij ⟨Wδ_i, Wδ_j⟩ κ_ij`.
    """
    return 4 * eps**2 * jnp.sum(_moved_gram(weight, eps * deltas) * kernel)


def shared_remainder(
    weight: Float[Array, "d p"], deltas: Float[Array, "n p"], eps: Scalar, kernel: Float[Array, "n n"]
) -> Float[Array, ""]:
    """Return the remainder over the single influences: the terms i ≠ j.

    The stated remainder lacks the factor `2ε²κ_ij`.
    """
    return shared_influence(weight, deltas, eps, _off_diagonal(kernel))


def shared_remainder_bound(
    weight: Float[Array, "d p"], deltas: Float[Array, "n p"], eps: Scalar, kernel: Float[Array, "n n"]
) -> Float[Array, ""]:
    """Return the bound of Claim 7 for a shared curvature: `|R| ≤ 4ε⁴ σ_max(W)² Σ_{i≠j} |κ_ij|‖δ_i‖‖δ_j‖`."""
    lengths = jnp.linalg.norm(eps * deltas, axis=1)
    weighted = jnp.outer(lengths, lengths) * jnp.abs(_off_diagonal(kernel))
    return 4 * eps**2 * jnp.linalg.norm(weight, ord=2) ** 2 * jnp.sum(weighted)


def _moved_gram(weight: Float[Array, "d p"], perturbations: Float[Array, "n p"]) -> Float[Array, "n n"]:
    """Return the inner products `⟨Wη_i, Wη_j⟩`."""
    moved = perturbations @ weight.T
    return moved @ moved.T


def _off_diagonal(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Return a matrix with a diagonal of zeros."""
    return matrix - jnp.diag(jnp.diag(matrix))


# Checks


def _conserved(draw: Draw) -> Float[Array, ""]:
    """Compare the sum over an orthonormal basis with its closed form."""
    drawn = instances.linear(draw, 3, 5)
    total = sum_of_influences(drawn.weight, instances.orthogonal(draw, 5, 5), drawn.eps, drawn.damping)
    return oracle.relative(total_over_basis(drawn.weight, drawn.eps, drawn.damping), total)


def _inside_span(draw: Draw) -> Float[Array, ""]:
    """Check that a rotation inside the span keeps the sum."""
    drawn = instances.linear(draw, 3, 5)
    basis = instances.orthogonal(draw, 5, 2).T
    total = sum_of_influences(drawn.weight, basis, drawn.eps, drawn.damping)
    return oracle.relative(
        sum_of_influences(drawn.weight, instances.orthogonal(draw, 2, 2) @ basis, drawn.eps, drawn.damping),
        total,
    )


def _ky_fan(draw: Draw) -> Float[Array, ""]:
    """Return the violation of the bounds, and singular vectors' distance from them.

    Singular vectors reach the bounds.
    """
    drawn = instances.linear(draw, 3, 5)
    lower, upper = ky_fan_bounds(drawn.weight, drawn.eps, 4)
    total = sum_of_influences(drawn.weight, instances.orthogonal(draw, 5, 4).T, drawn.eps, 0.0)
    _, _, vectors = jnp.linalg.svd(drawn.weight, full_matrices=True)
    reached = [sum_of_influences(drawn.weight, rows, drawn.eps, 0.0) for rows in (vectors[1:], vectors[:4])]
    missed = jnp.maximum(jnp.abs(reached[0] - lower), jnp.abs(reached[1] - upper))
    return jnp.maximum(missed, jnp.maximum(lower - total, total - upper)) / upper


def _pooled(draw: Draw) -> Float[Array, ""]:
    """Compare the pooled influence, and its parts, with Theorem 1's limit."""
    drawn = instances.population(draw, 4, 2, 3)
    arguments = drawn.weight, drawn.deltas, drawn.eps
    pooled = linear.influence_limit(drawn.weight, jnp.sum(drawn.deltas, axis=0), drawn.eps)
    parts = sum_of_influences(*arguments, 0.0) + pooled_remainder(*arguments)
    scale = sum_of_influences(*arguments, 0.0)
    return jnp.maximum(jnp.abs(pooled_influence(*arguments) - pooled), jnp.abs(parts - pooled)) / scale


def _own(draw: Draw) -> Float[Array, ""]:
    """Compare with the group loss by automatic differentiation.

    Check also additivity at λ = 0.
    """
    drawn = instances.population(draw, 4, 2, 3)
    arguments = drawn.weight, drawn.deltas, drawn.eps

    def loss(weight: Float[Array, "d p"]) -> Float[Array, ""]:
        return jnp.sum((drawn.eps * drawn.deltas @ weight.T) ** 2)

    gradient, hessian = oracle.derivatives(loss, drawn.weight)
    expected = oracle.quadratic(hessian, gradient, drawn.damping)
    damped = oracle.relative(own_influence(*arguments, drawn.damping), expected)
    return jnp.maximum(damped, oracle.relative(own_influence(*arguments, 0.0), sum_of_influences(*arguments, 0.0)))


def _own_sign(draw: Draw) -> Float[Array, ""]:
    """Return 1 if the group's own influence is below the sum."""
    drawn = instances.population(draw, 2, 2, 3)
    arguments = drawn.weight, drawn.deltas, drawn.eps, drawn.damping
    return (own_influence(*arguments) < sum_of_influences(*arguments)).astype(float)


def _shared(draw: Draw) -> tuple[instances.Population, Float[Array, "p p"], Float[Array, "n n"]]:
    """Draw a population, one curvature that it shares, and the kernel."""
    drawn = instances.population(draw, 4, 2, 3)
    factor = draw.normal(5, 3)
    curvature = factor.T @ factor / 5
    return drawn, curvature, kernel(drawn.deltas, curvature, drawn.damping)


def _dense_shared(draw: Draw) -> Float[Array, ""]:
    """Compare the shared influence and remainder with dense solves."""
    drawn, curvature, kernel = _shared(draw)
    rows = jax.vmap(lambda delta: linear.gradient(drawn.weight, delta, drawn.eps).ravel())(drawn.deltas)
    full = jnp.kron(jnp.eye(2), curvature)
    expected = oracle.quadratic(full, jnp.sum(rows, axis=0), drawn.damping)
    parts = jnp.sum(jax.vmap(lambda g: oracle.quadratic(full, g, drawn.damping))(rows))
    arguments = drawn.weight, drawn.deltas, drawn.eps, kernel
    errors = (
        jnp.abs(shared_influence(*arguments) - expected),
        jnp.abs(shared_remainder(*arguments) - (expected - parts)),
    )
    return jnp.maximum(*errors) / parts


def _without_kernel(draw: Draw) -> Float[Array, ""]:
    """Measure how far the remainder is off without the kernel."""
    drawn, _, kernel = _shared(draw)
    remainder = shared_remainder(drawn.weight, drawn.deltas, drawn.eps, kernel)
    return oracle.relative(pooled_remainder(drawn.weight, drawn.deltas, drawn.eps), remainder)


def _orthogonal_images(draw: Draw) -> Float[Array, ""]:
    """Check δ_i along right singular vectors.

    The Wδ_i are orthogonal, and both remainders vanish.
    """
    drawn, _, kernel = _shared(draw)
    _, _, vectors = jnp.linalg.svd(drawn.weight, full_matrices=False)
    deltas = vectors * jnp.asarray([1.0, 2.0])[:, None]
    remainders = (
        pooled_remainder(drawn.weight, deltas, drawn.eps),
        shared_remainder(drawn.weight, deltas, drawn.eps, kernel[:2, :2]),
    )
    scale = pooled_influence(drawn.weight, deltas, drawn.eps)
    return jnp.maximum(jnp.abs(remainders[0]), jnp.abs(remainders[1]) / jnp.max(jnp.abs(kernel))) / scale


def _bound(draw: Draw) -> Float[Array, ""]:
    """Return the pooled remainder over its bound."""
    drawn = instances.population(draw, 4, 2, 3)
    arguments = drawn.weight, drawn.deltas, drawn.eps
    return jnp.abs(pooled_remainder(*arguments)) / pooled_remainder_bound(*arguments)


def _duplicates(draw: Draw) -> Float[Array, ""]:
    """Check that duplicates along the top singular vector reach the bounds.

    The duplicates are exact, for the shared curvature of alternating sign; the bounds are all three upper ones.
    """
    drawn, _, _ = _shared(draw)
    _, values, vectors = jnp.linalg.svd(drawn.weight)
    deltas = 3 * jnp.tile(vectors[:1], (4, 1))
    arguments = drawn.weight, deltas, drawn.eps
    remainder = pooled_remainder(*arguments)
    signed = drawn.weight, deltas * jnp.asarray([[1.0], [-1.0], [1.0], [-1.0]]), drawn.eps
    between = kernel(signed[1], jnp.eye(3), drawn.damping)
    shared = shared_remainder(*signed, between) / shared_remainder_bound(*signed, between)
    stated = 2 * drawn.eps**2 * values[0] ** 2 * 4 * 3 * 9
    ratios = jnp.stack(
        [
            remainder / pooled_remainder_bound(*arguments),
            remainder / pooled_remainder_range(*arguments)[1],
            remainder / stated,
            shared,
        ]
    )
    return jnp.max(jnp.abs(ratios - 1))


def _range(draw: Draw) -> Float[Array, ""]:
    """Return by how much the pooled remainder leaves its range."""
    drawn = instances.population(draw, 4, 2, 3)
    arguments = drawn.weight, drawn.deltas, drawn.eps
    lower, upper = pooled_remainder_range(*arguments)
    remainder = pooled_remainder(*arguments)
    return jnp.maximum(lower - remainder, remainder - upper) / upper


def _cancelling(draw: Draw) -> Float[Array, ""]:
    """Check that perturbations that sum to zero reach the lower end."""
    drawn = instances.population(draw, 4, 2, 3)
    arguments = drawn.weight, drawn.deltas - jnp.mean(drawn.deltas, axis=0, keepdims=True), drawn.eps
    lower, _ = pooled_remainder_range(*arguments)
    return oracle.relative(pooled_remainder(*arguments), lower)


def _shared_bound(draw: Draw) -> Float[Array, ""]:
    """Return the shared remainder over its bound."""
    drawn, _, kernel = _shared(draw)
    arguments = drawn.weight, drawn.deltas, drawn.eps, kernel
    return jnp.abs(shared_remainder(*arguments)) / shared_remainder_bound(*arguments)


ITEMS = (
    Item(
        name="claim-5",
        title="Claim 5 · conservation",
        source="App. C.3, confidence medium",
        statement=r"For orthonormal $\delta_1 \ldots \delta_k$, $\sum_i I(\delta_i) = -2\varepsilon^2\,"
        r"\mathrm{tr}(W^\top W P)$ is invariant under orthogonal transformations.",
        status="true under conditions",
        conditions=r"$k = p$, or transformations inside the span, or $W \to QW$.",
        correction=r"$k = p$: $\sum_i I_\lambda = \frac{4\varepsilon^4}{\lambda + 2\varepsilon^2}\|W\|_F^2$. $k < p$: "
        r"the sum lies between $2\varepsilon^2$ times the $k$ smallest and the $k$ largest eigenvalues of $W^\top W$.",
        counter_example=CounterExample(
            instance=r"$W = [1, 0]$, $\varepsilon = 1$, $k = 1$: $\delta = e_1$ gives $2$, $\delta = e_2$ gives $0$.",
            stated=lambda: linear.influence_limit(jnp.asarray([[1.0, 0.0]]), jnp.asarray([1.0, 0.0]), 1.0),
            actual=lambda: linear.influence_limit(jnp.asarray([[1.0, 0.0]]), jnp.asarray([0.0, 1.0]), 1.0),
            gap=-2.0,
        ),
        checks=(
            Check("complete basis, any λ: rel. error", _conserved, AtMost(1e-12)),
            Check("rotation inside the span: rel. error", _inside_span, AtMost(1e-11)),
            Check("Ky Fan bounds: violation, or distance where reached, relative", _ky_fan, AtMost(1e-12)),
        ),
    ),
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
            stated=lambda: pooled_remainder(jnp.ones((1, 1)), jnp.ones((2, 1)), 1.0),
            actual=lambda: shared_remainder(jnp.ones((1, 1)), jnp.ones((2, 1)), 1.0, jnp.ones((2, 2))),
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
            actual=lambda: pooled_remainder(jnp.ones((1, 2)), jnp.eye(2), 1.0),
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
