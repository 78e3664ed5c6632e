"""Groups of perturbations: Claims 5–7 and Corollary 3 (arXiv 2412.17170; reconstructed).

The paper's text does not define the influence of a group. `pooled_influence` is the reading that reproduces Claim 6;
`own_influence` uses the group's own Hessian; `shared_influence` uses one fixed curvature and is the influence of a
group in the sense of Eq. 2. Rows of `deltas` are δ_1 … δ_n.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory.linear import shrinkage
from influence_ssl_jax.theory.scalars import Scalar


def sum_of_influences(
    weight: Float[Array, "d p"], deltas: Float[Array, "n p"], eps: Scalar, damping: Scalar
) -> Float[Array, ""]:
    """`Σ I_λ(δ_i)`, each with its own Hessian: what an additive group would score."""
    moved = (eps * deltas) @ weight.T
    eigenvalues = 2 * jnp.sum((eps * deltas) ** 2, axis=1)
    return 2 * jnp.sum(jnp.sum(moved**2, axis=1) * shrinkage(eigenvalues, damping))


def total_over_basis(weight: Float[Array, "d p"], eps: Scalar, damping: Scalar) -> Float[Array, ""]:
    """Claim 5: `Σ I_λ` over any orthonormal basis of R^p, `4ε⁴/(λ + 2ε²)·‖W‖_F²`; `2ε²‖W‖_F²` at λ = 0."""
    eigenvalue = 2 * jnp.asarray(eps) ** 2
    return eigenvalue * shrinkage(eigenvalue, damping) * jnp.sum(weight**2)


def ky_fan_bounds(weight: Float[Array, "d p"], eps: Scalar, count: int) -> Float[Array, "2"]:
    """Claim 5 for k < p orthonormal directions: bounds on `Σ I_0`, which is conserved only inside one span.

    `2ε²` times the sum of the k smallest, and of the k largest, eigenvalues of WᵀW (Ky Fan).
    """
    ascending = 2 * eps**2 * jnp.linalg.eigvalsh(weight.T @ weight)
    return jnp.stack([jnp.sum(ascending[:count]), jnp.sum(ascending[-count:])])


def pooled_influence(weight: Float[Array, "d p"], deltas: Float[Array, "n p"], eps: Scalar) -> Float[Array, ""]:
    """Claim 6 read as one pooled perturbation: `2ε²‖W Σ δ_i‖²`. An identity, but not the influence of a group."""
    moved = weight @ (eps * jnp.sum(deltas, axis=0))
    return 2 * moved @ moved


def pooled_remainder(weight: Float[Array, "d p"], deltas: Float[Array, "n p"], eps: Scalar) -> Float[Array, ""]:
    """Its remainder: `R = 2ε² Σ_{i≠j} ⟨Wδ_i, Wδ_j⟩`; zero where the Wδ_i are orthogonal (Corollary 3)."""
    return 2 * jnp.sum(_off_diagonal(_moved_gram(weight, eps * deltas)))


def pooled_remainder_bound(weight: Float[Array, "d p"], deltas: Float[Array, "n p"], eps: Scalar) -> Float[Array, ""]:
    """Claim 7: `|R| ≤ 2ε² σ_max(W)² Σ_{i≠j} ‖δ_i‖‖δ_j‖`, which is `2ε² σ_max² n(n − 1)` for unit δ_i."""
    lengths = jnp.linalg.norm(eps * deltas, axis=1)
    return 2 * jnp.linalg.norm(weight, ord=2) ** 2 * jnp.sum(_off_diagonal(jnp.outer(lengths, lengths)))


def pooled_remainder_range(weight: Float[Array, "d p"], deltas: Float[Array, "n p"], eps: Scalar) -> Float[Array, "2"]:
    """Claim 7 sharpened: `−Σ I_i ≤ R ≤ (n − 1) Σ I_i` with `I_i = 2ε²‖Wδ_i‖²`."""
    total = 2 * jnp.trace(_moved_gram(weight, eps * deltas))
    return jnp.stack([-total, (deltas.shape[0] - 1) * total])


def own_influence(
    weight: Float[Array, "d p"], deltas: Float[Array, "n p"], eps: Scalar, damping: Scalar
) -> Float[Array, ""]:
    """Group loss with its own Hessian: `4ε⁴ tr(W O (2ε²O + λ)⁻¹ O Wᵀ)`, `O = Σ δ_iδ_iᵀ`; additive as λ → 0.

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
    """`κ_ij = δ_iᵀ A⁻¹ δ_j` with `A = C + λI` for one shared curvature `I_d ⊗ C`."""
    return deltas @ jnp.linalg.solve(curvature + damping * jnp.eye(deltas.shape[1]), deltas.T)


def shared_influence(
    weight: Float[Array, "d p"], deltas: Float[Array, "n p"], eps: Scalar, kernel: Float[Array, "n n"]
) -> Float[Array, ""]:
    """Group influence with one shared curvature: `I(S) = 4ε⁴ Σ_ij ⟨Wδ_i, Wδ_j⟩ κ_ij` (Claim 6 corrected)."""
    return 4 * eps**2 * jnp.sum(_moved_gram(weight, eps * deltas) * kernel)


def shared_remainder(
    weight: Float[Array, "d p"], deltas: Float[Array, "n p"], eps: Scalar, kernel: Float[Array, "n n"]
) -> Float[Array, ""]:
    """Its remainder over the single influences: the terms i ≠ j; the stated one lacks the factor `2ε²κ_ij`."""
    return shared_influence(weight, deltas, eps, _off_diagonal(kernel))


def shared_remainder_bound(
    weight: Float[Array, "d p"], deltas: Float[Array, "n p"], eps: Scalar, kernel: Float[Array, "n n"]
) -> Float[Array, ""]:
    """Claim 7 for a shared curvature: `|R| ≤ 4ε⁴ σ_max(W)² Σ_{i≠j} |κ_ij|‖δ_i‖‖δ_j‖`."""
    lengths = jnp.linalg.norm(eps * deltas, axis=1)
    weighted = jnp.outer(lengths, lengths) * jnp.abs(_off_diagonal(kernel))
    return 4 * eps**2 * jnp.linalg.norm(weight, ord=2) ** 2 * jnp.sum(weighted)


def _moved_gram(weight: Float[Array, "d p"], perturbations: Float[Array, "n p"]) -> Float[Array, "n n"]:
    moved = perturbations @ weight.T
    return moved @ moved.T


def _off_diagonal(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    return matrix - jnp.diag(jnp.diag(matrix))
