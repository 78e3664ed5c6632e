"""Approximate the curvature by a diagonal in a basis of each block.

K-FAC, EK-FAC, LoGra and the diagonal are backends of this kind.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.curvature.blocks import Blocks, MatrixBlock
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.curvature.moments import sample_count, sum_over_samples
from influence_ssl_jax.errors import CurvatureError
from influence_ssl_jax.ihvp.backend import Backend, Form, Resolved, Spectrum, Workspace
from influence_ssl_jax.linalg.lowrank import eigenpairs, eigenpairs_of_rows
from influence_ssl_jax.parallel import spread
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Params

Bases: TypeAlias = dict[str, tuple[Array, ...]]
"""The basis B of each block.

(B_in, B_out) for a weight matrix, [groups, size, rank]; (B,) for a vector; () if entries are their own coordinates.
"""

Coordinates: TypeAlias = dict[str, Float[Array, "n _"]]
Scalars: TypeAlias = dict[str, Float[Array, ""]]


def project(gradients: ExampleGradients, blocks: Blocks, bases: Bases) -> Coordinates:
    """Compute `Bᵀ g` of every block, flattened.

    The gradient of a weight matrix is not formed.
    """

    def of(part: ExampleGradients) -> dict[str, Float[Array, "batch draws _"]]:
        coordinates = {}
        for block in blocks:
            if isinstance(block, MatrixBlock) and bases[block.name]:
                rows = _flat(block.project(part, *bases[block.name]))
            else:
                rows = to_coordinates(block.materialise(part), bases[block.name])
            coordinates[block.name] = jnp.swapaxes(rows.reshape(part.draws, -1, rows.shape[1]), 0, 1)
        return coordinates

    coordinates = gradients.map_examples(of, blocks)
    return {name: jnp.swapaxes(rows, 0, 1).reshape(-1, rows.shape[2]) for name, rows in coordinates.items()}


def project_trees(trees: Params, blocks: Blocks, bases: Bases) -> Coordinates:
    """Compute `Bᵀ g` of every block, from whole gradients with a leading axis."""
    return {block.name: to_coordinates(jax.vmap(block.read)(trees), bases[block.name]) for block in blocks}


def squared_norms(gradients: ExampleGradients, blocks: Blocks) -> Scalars:
    """Compute `Σ_i ‖g_i‖²` of every block."""

    def of(part: ExampleGradients) -> Scalars:
        return {block.name: jnp.sum(block.squared_norms(part)) for block in blocks}

    return gradients.sum_examples(of, blocks)


def squared_norms_of_trees(trees: Params, blocks: Blocks) -> Scalars:
    """Compute `Σ_i ‖g_i‖²` of every block, from whole gradients with a leading axis."""
    return {block.name: jnp.sum(jax.vmap(block.read)(trees) ** 2) for block in blocks}


def to_coordinates(parts: Float[Array, "n *shape"], bases: tuple[Array, ...]) -> Float[Array, "n features"]:
    """Compute `Bᵀ v` of blocks in their own shape.

    Examples:
        The basis of a 2 × 2 matrix is its first row and its second column, so one coordinate remains:

        >>> import jax.numpy as jnp
        >>> from influence_ssl_jax.ihvp.eigenbasis import to_coordinates
        >>> first, second = jnp.asarray([[[1.0], [0.0]]]), jnp.asarray([[[0.0], [1.0]]])
        >>> to_coordinates(jnp.asarray([[[[1.0, 2.0], [3.0, 4.0]]]]), (first, second)).tolist()
        [[2.0]]
    """
    if not bases:
        return _flat(parts)
    if len(bases) == 1:
        return parts @ bases[0]
    return _flat(jnp.einsum("gik,ngio,gol->ngkl", bases[0], parts, bases[1]))


def from_coordinates(
    features: Float[Array, " features"], bases: tuple[Array, ...], like: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Compute `B c` of coordinates, in the block's own shape, that of `like`."""
    if not bases:
        return features.reshape(like.shape)
    if len(bases) == 1:
        return bases[0] @ features
    left, right = bases
    core = features.reshape(left.shape[0], left.shape[2], right.shape[2])
    return jnp.einsum("gik,gkl,gol->gio", left, core, right)


def _flat(parts: Array) -> Float[Array, "n features"]:
    """Flatten all axes but the first."""
    return parts.reshape(parts.shape[0], -1)


Project: TypeAlias = Callable[[ExampleGradients], tuple[Coordinates, Scalars]]
ProjectTrees: TypeAlias = Callable[[Params], tuple[Coordinates, Scalars]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EigenbasisState:
    """The fitted curvature, diagonal in a basis of each block.

    `C ≈ B diag(μ) Bᵀ + level · (I − B Bᵀ)` for each block.

    Attributes:
        params: Parameters, which define the structure of vectors.
        bases: B as factors (see `Bases`).
        rotations: Eigenvectors within B, of blocks that have any. There are fewer than B has columns if the μ of the
            others are zero.
        eigenvalues: μ; if there are fewer eigenvectors, without those that are zero.
        level: Mean curvature outside B, of blocks that keep it (their B is orthonormal).
        mean: tr(C)/P of the block itself, independent of B.
        blocks: The blocks.
    """

    params: Params
    bases: Bases
    rotations: dict[str, Array]
    eigenvalues: dict[str, Array]
    level: dict[str, Array]
    mean: dict[str, Array]
    blocks: cut.Blocks = dataclasses.field(metadata={"static": True})


class EigenbasisBackend(Backend[EigenbasisState]):  # abstract: subclasses define `fit`
    """A backend whose curvature is diagonal in a basis of each block.

    `(C + λI)⁻¹ ≈ ⊕_blocks B (μ + λ)⁻¹ Bᵀ + (I − B Bᵀ) / (level + λ)`; the last term only if a level
    is kept. The complement is never formed: its part of a form is the rest of the gradients' inner product,
    `⟨g, g'⟩ − ⟨Bᵀg, Bᵀg'⟩`, from norms that need no gradient either (`Block.gram`). Curvature between blocks is
    left out.
    """

    sums_of_squares: ClassVar[bool] = False
    """Whether μ are sums of squares of coordinates in blocks that have no eigenvectors within B."""

    def mean_eigenvalue(self, state: EigenbasisState) -> Resolved:
        """Return tr(C)/P of every block."""
        return state.mean

    def smallest_eigenvalue(self, state: EigenbasisState) -> Float[Array, ""]:
        """Return zero, because C is a second moment."""
        return jnp.zeros_like(jax.tree.leaves(state.mean)[0])

    def workspace(self, state: EigenbasisState, parameters: int) -> Workspace:
        """Return three times the coordinates in the bases: projected, rotated and weighted."""
        del parameters
        return Workspace(0, 3 * sum(coordinate_eigenvalues(state, block.name).shape[0] for block in state.blocks))

    def spectrum(self, state: EigenbasisState) -> dict[str, Spectrum]:
        """Return every block's μ, and its level per parameter outside its basis."""
        return {block.name: self._spectrum_of(state, block) for block in state.blocks}

    def _spectrum_of(self, state: EigenbasisState, block: cut.Block) -> Spectrum:
        """Return the spectrum of one block.

        Sums of squares are off by the square of what coordinates are off by; ε is 16 times the spacing of their type here.
        """
        values, counts = _points(state, block.name)
        squares = self.sums_of_squares and block.name not in state.rotations
        return Spectrum(values, counts, resolution=(16 * float(jnp.finfo(values.dtype).eps)) ** 2 if squares else None)

    def solve(self, state: EigenbasisState, vector: Params, damping: Resolved) -> Params:
        """Compute `B (μ + λ)⁻¹ Bᵀ v`, block by block.

        If a level is kept, `(v − B Bᵀ v) / (level + λ)` is added.
        """
        cut.check_structure(state.params, vector)
        solved = {}
        for block in state.blocks:
            name, part = block.name, block.read(vector)
            weights, outside = _weights(state, name, damping)
            rotation = state.rotations.get(name)
            coordinates = rotate(to_coordinates(part[None], state.bases[name]), rotation)[0] * weights
            inner = rotate_back(coordinates, rotation)
            solved[name] = from_coordinates(inner, state.bases[name], part) + outside * part
        return cut.assemble(vector, state.blocks, solved)

    def draw_gram(self, state: EigenbasisState, gradients: ExampleGradients, damping: Resolved) -> Form:
        """Compute weighted inner products of coordinates.

        If a level is kept, those of the gradients are added.
        """
        total = jnp.zeros((), gradients.cotangents.dtype)
        coordinates = project(gradients, state.blocks, state.bases)
        for block in state.blocks:
            weights, outside = _weights(state, block.name, damping)
            rows = rotate(coordinates[block.name], state.rotations.get(block.name))
            drawn = rows.reshape(gradients.draws, -1, rows.shape[-1])
            total = total + jnp.einsum("kbf,f,lbf->bkl", drawn, weights, drawn)
            if block.name in state.level:
                total = total + outside * block.gram(gradients)
        return Form(total, jnp.zeros(total.shape[0], total.dtype))

    def bilinear_form(
        self, state: EigenbasisState, left: ExampleGradients, right: ExampleGradients, damping: Resolved
    ) -> Float[Array, "left right"]:
        """Compute the form of `draw_gram` between two batches."""
        total = jnp.zeros((), left.cotangents.dtype)
        sides = [project(gradients, state.blocks, state.bases) for gradients in (left, right)]
        for block in state.blocks:
            weights, outside = _weights(state, block.name, damping)
            a, b = (rotate(side[block.name], state.rotations.get(block.name)) for side in sides)
            total = total + (a * weights[None]) @ b.T
            if block.name in state.level:
                total = total + outside * block.cross_products(left, right)
        return total


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factor:
    """A second moment of few vectors, `M = Σ r rᵀ`, as these vectors.

    Attributes:
        rows: The rows.
        rank: An upper bound of the number of rows that are not zero.
    """

    rows: Float[Array, "rows features"]
    rank: int = dataclasses.field(metadata={"static": True})


Moments: TypeAlias = dict[str, Array | Factor]
"""The second moments of blocks' coordinates: whole, as a `Factor`, or their diagonals."""


def second_moments(
    problem: Problem,
    samples: int,
    dense: frozenset[str],
    project: Project,
    project_trees: ProjectTrees,
) -> tuple[Moments, Scalars]:
    """Sum `c cᵀ` or `c²` over curvature samples, and `‖g‖²`.

    `c cᵀ` is summed for blocks in `dense`, `c²` for the others. This is the eigenvalue correction, for the
    coordinates of any gradients. With complete orthonormal bases, the corrected eigenvalues of a block sum to its
    tr(C). Where a block has at least twice as many coordinates as there are samples, the samples themselves are
    kept in place of their second moment: they are fewer numbers, and need no products.

    Args:
        problem: The problem.
        samples: Draws for each example, or for each batch of a coupled loss.
        dense: Names of the blocks whose whole second moment is computed.
        project: Coordinates `c` and `Σ_i ‖g_i‖²` of per-example gradients, by block.
        project_trees: The same for whole gradients with a leading axis.
    """
    count = sample_count(problem, samples)

    def moments(coordinates: Coordinates, norms: Scalars) -> tuple[tuple[dict[str, Array], Scalars], Coordinates]:
        wide = {name: rows for name, rows in coordinates.items() if name in dense and rows.shape[1] >= 2 * count}
        sums = {
            name: rows.T @ rows if name in dense else jnp.sum(rows**2, axis=0)
            for name, rows in coordinates.items()
            if name not in wide
        }
        return (sums, norms), wide

    (sums, norms), wide = sum_over_samples(
        problem, samples, lambda g: moments(*project(g)), lambda g: moments(*project_trees(g))
    )
    return sums | {name: Factor(rows, count) for name, rows in wide.items()}, norms


def projections_onto(blocks: cut.Blocks, bases: Bases) -> tuple[Project, ProjectTrees]:
    """Return the functions for coordinates in `bases` and for squared norms.

    They are arguments of `second_moments`.
    """
    return (
        lambda g: (project(g, blocks, bases), squared_norms(g, blocks)),
        lambda g: (project_trees(g, blocks, bases), squared_norms_of_trees(g, blocks)),
    )


def eigendecompose(
    problem: Problem,
    blocks: cut.Blocks,
    bases: Bases,
    moments: Moments,
    totals: Scalars,
    traces: Scalars,
) -> EigenbasisState:
    """Return the fitted state of second moments in `bases`.

    A whole moment becomes eigenpairs; a diagonal one is already μ.

    Args:
        problem: The problem.
        blocks: The blocks.
        bases: The bases, orthonormal if they leave something out.
        moments: Second moments.
        totals: Sum of a block's eigenvalues inside and outside its basis.
        traces: tr(C) of every block.
    """
    eigenvalues, rotations, level = dict[str, Array](), dict[str, Array](), dict[str, Array]()
    whole = dict[str, Array | Factor]()
    for name, moment in moments.items():
        if isinstance(moment, Factor) or moment.ndim == 2:
            whole[name] = moment
        else:
            eigenvalues[name] = moment
    pairs = spread(_eigenpairs, list(whole.values()), [_cost(moment) for moment in whole.values()])
    for name, (values, vectors) in zip(whole, pairs, strict=True):
        eigenvalues[name], rotations[name] = values, vectors
    for block in blocks:
        name = block.name
        features = rotations[name].shape[0] if name in rotations else eigenvalues[name].shape[0]
        if features < block.size:
            rest = jnp.maximum(totals[name] - jnp.sum(eigenvalues[name]), 0.0)
            level[name] = rest / (block.size - features)
    mean = {block.name: traces[block.name] / block.size for block in blocks}
    return EigenbasisState(problem.params, bases, rotations, eigenvalues, level, mean, blocks)


def _eigenpairs(moment: Array | Factor) -> tuple[Float[Array, " rank"], Float[Array, "features rank"]]:
    """Compute the eigenpairs of a second moment, largest first."""
    return eigenpairs_of_rows(moment.rows, moment.rank) if isinstance(moment, Factor) else eigenpairs(moment)


def _cost(moment: Array | Factor) -> int:
    """Estimate the cost of a moment's eigenpairs, in arbitrary units."""
    return moment.rows.size * moment.rows.shape[0] if isinstance(moment, Factor) else moment.shape[0] ** 3


def refuse_hessian(problem: Problem, backend: Backend) -> None:
    """Refuse a curvature that is not a second moment.

    Raises:
        CurvatureError: If it is the Hessian, which is indefinite away from a minimum.
    """
    if problem.curvature == "hessian":
        raise CurvatureError(
            f"{type(backend).__name__} averages outer products of gradients, which are positive semi-definite: it "
            "approximates 'ggn', 'fisher' or 'empirical_fisher', got curvature='hessian'; use CG or Exact for that."
        )


def _points(state: EigenbasisState, name: str) -> tuple[Float[Array, " points"], Float[Array, " points"]]:
    """Return a block's μ and level, and how often each occurs."""
    values = state.eigenvalues[name]
    counts = jnp.ones_like(values)
    rotation = state.rotations.get(name)
    if rotation is not None and rotation.shape[1] < rotation.shape[0]:
        values = jnp.append(values, 0.0)
        counts = jnp.append(counts, rotation.shape[0] - rotation.shape[1])
    if name in state.level:
        size = next(block.size for block in state.blocks if block.name == name)
        values = jnp.append(values, state.level[name])
        counts = jnp.append(counts, size - jnp.sum(counts))
    return values, counts


def _weights(state: EigenbasisState, name: str, damping: Resolved) -> tuple[Float[Array, " coordinates"], Array]:
    """Return the weights of the coordinates and of the vector itself.

    They are `1/(μ + λ) − 1/(level + λ)` and `1/(level + λ)`; without a level, `1/(μ + λ)` and zero.
    """
    value = damping[name] if isinstance(damping, dict) else damping
    inside = 1 / (coordinate_eigenvalues(state, name) + value)
    if name not in state.level:
        return inside, jnp.zeros_like(value)
    outside = 1 / (state.level[name] + value)
    return inside - outside, outside


def coordinate_eigenvalues(state: EigenbasisState, name: str) -> Float[Array, " coordinates"]:
    """Return μ of each coordinate that `rotate` makes."""
    values, rotation = state.eigenvalues[name], state.rotations.get(name)
    if rotation is None or rotation.shape[1] == rotation.shape[0]:
        return values
    return jnp.concatenate([values, jnp.zeros(rotation.shape[0], values.dtype)])


def rotate(rows: Float[Array, "n features"], rotation: Array | None) -> Float[Array, "n coordinates"]:
    """Compute coordinates along the eigenvectors V.

    If V is not complete, the rest `c − V Vᵀ c` is appended.
    """
    if rotation is None:
        return rows
    along = rows @ rotation
    if rotation.shape[1] == rotation.shape[0]:
        return along
    return jnp.concatenate([along, rows - along @ rotation.T], axis=1)


def rotate_back(coordinates: Float[Array, "*n coordinates"], rotation: Array | None) -> Float[Array, "*n features"]:
    """Invert `rotate`."""
    if rotation is None:
        return coordinates
    count = rotation.shape[1]
    along = coordinates[..., :count] @ rotation.T
    return along if count == rotation.shape[0] else along + coordinates[..., count:]
