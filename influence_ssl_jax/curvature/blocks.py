"""The parameters of a network cut into blocks: what projections, factors and norms work on."""

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.matrices import Layout, natural_layout, outer_products
from influence_ssl_jax.curvature.sites import Embed, Program, Site, leaf_paths, places, program_of
from influence_ssl_jax.errors import StructureError
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Frozen, Params, PyTree

Path: TypeAlias = tuple[str, ...]
Beside = TypeVar("Beside")
Computed = TypeVar("Computed")

Unexplained: TypeAlias = Literal["error", "materialise"]
"""What to do with parameters that no site explains: refuse, or form their per-example gradients whole."""

ENTRIES = 2**24
"""Entries of patches or of whole gradients that are in memory together."""

SLOWER = 3
"""What a multiplication takes where gradients are formed, in those of a projection (1.5 to 4 on two CPU cores): small
products, one an image, against one convolution."""

VECTOR = 2048
"""Parameters of several axes and more entries than this are seen as a matrix although no operation multiplies by it."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tap:
    """What one site read, and the gradient with respect to what it wrote.

    Attributes:
        operands: The recorded operands.
        gradients: Gradient with respect to the site's result.
        site: Which site, static.
    """

    operands: tuple[Array, ...]
    gradients: Float[Array, "views n *written"]
    site: Site = dataclasses.field(metadata={"static": True})


class Captured(abc.ABC):
    """The per-example gradients of a batch, as far as blocks read them (`gradients.ExampleGradients`).

    They may be of another network than the blocks are cut for: gradients are zero on parameters that it does not read.
    """

    cotangents: Float[Array, "views n embedding"]
    draws: int

    @property
    @abc.abstractmethod
    def program(self) -> Program:
        """The network's operations, and the sites among them."""

    @abc.abstractmethod
    def taps(self, leaf: int) -> list[Tap]:
        """Every use of a parameter, leading axes [views, n]; none if it is unread or loose."""

    @abc.abstractmethod
    def leaf(self, leaf: int) -> Float[Array, "n *shape"]:
        """Every example's gradient of one parameter, whole."""


class Block(abc.ABC):
    """A group of parameters, seen as `shape`; subclasses are frozen dataclasses, static under `jit`.

    Attributes:
        name: Path of the block, joined by slashes.
        leaves: Numbers of its parameters among the leaves of the tree.
        paths: Their paths.
    """

    name: str
    leaves: tuple[int, ...]
    paths: tuple[Path, ...]

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """Number of scalar parameters."""

    @abc.abstractmethod
    def read(self, tree: Params) -> Float[Array, "*shape"]:
        """The block of a tree of the parameters' structure."""

    @abc.abstractmethod
    def write(self, array: Float[Array, "*shape"]) -> dict[Path, Array]:
        """The inverse of `read`: values by path."""

    @abc.abstractmethod
    def materialise(self, gradients: Captured) -> Float[Array, "n *shape"]:
        """Every example's gradient of the block, whole."""

    @abc.abstractmethod
    def inner_products(self, gradients: Captured, draws: int) -> Float[Array, "examples {draws} {draws}"]:
        """⟨g_k, g_l⟩ over all pairs of `draws` gradients of each example, that stand draw-major."""

    @abc.abstractmethod
    def is_formed_whole(self, program: Program) -> bool:
        """Whether the network's gradients of this block have to be formed whole."""

    def map_examples(
        self,
        gradients: Captured,
        compute: Callable[[Float[Array, "some draws size"], Beside], Computed],
        beside: Beside,
    ) -> Computed:
        """Compute something from every example's gradients of the block, never holding those of a large batch.

        Args:
            gradients: The gradients of a batch.
            compute: From the gradients of some examples, in all their draws, and the same examples' part of `beside`,
                to arrays whose leading axis is those examples. It may be traced for one example under `vmap`.
            beside: A tree of arrays with a leading axis of examples.
        """
        return compute(group_by_example(self.materialise(gradients), gradients.draws), beside)

    def gram(self, gradients: Captured) -> Float[Array, "batch draws draws"]:
        """⟨g_k, g_l⟩ over all pairs of draws of each example."""
        return self.inner_products(gradients, gradients.draws)

    def squared_norms(self, gradients: Captured) -> Float[Array, " n"]:
        """‖g_n‖² of every draw, without the pairs."""
        return self.inner_products(gradients, 1)[:, 0, 0]

    def cross_products(self, left: Captured, right: Captured) -> Float[Array, "left right"]:
        """`⟨g_i, g_j⟩` between two batches' gradients of the block."""
        sides = [self.materialise(gradients) for gradients in (left, right)]
        rows, columns = (side.reshape(side.shape[0], -1) for side in sides)
        return rows @ columns.T


@dataclasses.dataclass(frozen=True)
class VectorBlock(Block):
    """Parameters seen as one vector: scales, biases, tokens, and others without a weight matrix.

    Attributes:
        name: Path of the block.
        leaves: Numbers of its parameters.
        paths: Their paths.
        shapes: Their shapes.
    """

    name: str
    leaves: tuple[int, ...]
    paths: tuple[Path, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """Sum of the leaves' sizes."""
        return sum(math.prod(shape) for shape in self.shapes)

    def read(self, tree: Params) -> Float[Array, " size"]:
        """The leaves, one after the other."""
        flat = jax.tree.leaves(tree)
        return jnp.concatenate([flat[leaf].reshape(-1) for leaf in self.leaves])

    def write(self, array: Float[Array, " size"]) -> dict[Path, Array]:
        """The vector cut into its leaves."""
        found, start = {}, 0
        for path, shape in zip(self.paths, self.shapes, strict=True):
            length = math.prod(shape)
            found[path] = array[start : start + length].reshape(shape)
            start += length
        return found

    def materialise(self, gradients: Captured) -> Float[Array, "n size"]:
        """The gradient vectors."""
        parts = [gradients.leaf(leaf) for leaf in self.leaves]
        return jnp.concatenate([part.reshape(part.shape[0], -1) for part in parts], axis=1)

    def inner_products(self, gradients: Captured, draws: int) -> Float[Array, "examples {draws} {draws}"]:
        """Inner products of the gradient vectors."""
        if not any(leaf in gradients.program.read for leaf in self.leaves):  # nothing to form
            like = gradients.cotangents
            return jnp.zeros((like.shape[1] // draws, draws, draws), like.dtype)
        return draw_gram(self.materialise(gradients), draws)

    def is_formed_whole(self, program: Program) -> bool:
        """Yes, where the network reads it."""
        return any(leaf in program.read for leaf in self.leaves)


Calls: TypeAlias = list[Tap]
"""The uses of one matrix."""


@dataclasses.dataclass(frozen=True)
class MatrixBlock(Block):
    """A weight matrix with its bias as last row, [groups, inputs, outputs].

    Where loops go over leading axes of the kernel, each of their steps has groups of its own. Of a kernel that is used
    in this layout alone, gradients need never be formed; otherwise they are, a few examples at a time.

    Attributes:
        name: Path of the block.
        leaves: Numbers of the kernel and, where there is one, of the bias.
        paths: Their paths.
        layout: How the kernel becomes a matrix.
        groups: Groups of every step of the loops together.
        inputs: Rows of a group, the bias included.
        outputs: Columns of a group.
        bias: Shape of the bias, None where there is none.
    """

    name: str
    leaves: tuple[int, ...]
    paths: tuple[Path, ...]
    layout: Layout
    groups: int
    inputs: int
    outputs: int
    bias: tuple[int, ...] | None

    @property
    def size(self) -> int:
        """Number of entries of the matrix."""
        return self.groups * self.inputs * self.outputs

    def read(self, tree: Params) -> Float[Array, "groups inputs outputs"]:
        """The matrix."""
        flat = jax.tree.leaves(tree)
        return self._join([flat[leaf] for leaf in self.leaves])

    def write(self, array: Float[Array, "groups inputs outputs"]) -> dict[Path, Array]:
        """Kernel and bias of a matrix."""
        if self.bias is None:
            return {self.paths[0]: self.layout.from_matrix(array)}
        kernel, bias = array[:, :-1], array[:, -1]
        return {self.paths[0]: self.layout.from_matrix(kernel), self.paths[1]: bias.reshape(self.bias)}

    def rows(
        self, gradients: Captured
    ) -> tuple[Float[Array, "n positions groups inputs"], Float[Array, "n positions groups outputs"]]:
        """Inputs `ā` and output-gradients `s` at every position of every call and view.

        Raises:
            StructureError: The network uses the kernel in another way too, so that its gradient is no sum over rows.
        """
        calls = self.calls(gradients)
        if calls is None:
            raise StructureError(
                f"The gradient of {self.name} is no sum over rows of this matrix: the network transforms or shares it. "
                "Form it whole (`materialised`)."
            )
        n = gradients.cotangents.shape[1]
        parts = [self._rows(taps, n, gradients.cotangents.dtype) for taps in calls]
        return jnp.concatenate([a for a, _ in parts], axis=2), jnp.concatenate([s for _, s in parts], axis=2)

    def project(
        self, gradients: Captured, left: Float[Array, "groups inputs k"], right: Float[Array, "groups outputs l"]
    ) -> Float[Array, "n groups k l"]:
        """`leftᵀ G right` per example, `G = Σ_t ā_t s_tᵀ` formed only where that is less work.

        It is with a large basis and many positions: then G goes through the bases once, instead of every position.
        """
        calls = self.calls(gradients)
        if calls is None:
            return jnp.einsum("gik,ngio,gol->ngkl", left, self.materialise(gradients), right)
        each, like = self.groups // len(calls), gradients.cotangents
        parts = []
        for place, taps in enumerate(calls):
            own = slice(place * each, (place + 1) * each)
            if taps:
                parts.append(self._project(taps, left[own], right[own]))
            else:
                parts.append(jnp.zeros((like.shape[1], each, left.shape[2], right.shape[2]), like.dtype))
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)

    def materialise(self, gradients: Captured) -> Float[Array, "n groups inputs outputs"]:
        """`Σ_t ā_t s_tᵀ` per example; zero where the network does not use the matrix."""
        calls = self.calls(gradients)
        if calls is None:
            return jax.vmap(lambda *leaves: self._join(leaves))(*[gradients.leaf(leaf) for leaf in self.leaves])
        n, each, dtype = gradients.cotangents.shape[1], self.groups // len(calls), gradients.cotangents.dtype
        nothing = (n, each, self.inputs, self.outputs)
        parts = [self._gradient(taps) if taps else jnp.zeros(nothing, dtype) for taps in calls]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)

    def inner_products(self, gradients: Captured, draws: int) -> Float[Array, "examples {draws} {draws}"]:
        """By the gradients themselves, or by the rows' inner products (ghost norms), whichever is less work.

        Either exists for a few examples at a time: about ENTRIES numbers, however large the batch.
        """
        calls, batch = self.calls(gradients), gradients.cotangents.shape[1] // draws
        if calls is None:
            return draw_gram(self.materialise(gradients), draws)
        found = [self._inner_products(taps, draws, batch) for taps in calls if taps]
        if not found:  # the network does not use the matrix
            return jnp.zeros((batch, draws, draws), gradients.cotangents.dtype)
        return functools.reduce(jnp.add, found)

    def map_examples(
        self,
        gradients: Captured,
        compute: Callable[[Float[Array, "some draws size"], Beside], Computed],
        beside: Beside,
    ) -> Computed:
        """As `Block.of_examples`, with about ENTRIES numbers of patches and gradients in memory together."""
        calls, draws = self.calls(gradients), gradients.draws
        if calls is None or len(calls) != 1 or not calls[0]:
            return compute(group_by_example(self.materialise(gradients), draws), beside)
        taps, batch = calls[0], gradients.cotangents.shape[1] // draws
        formed = draws * taps[0].gradients.shape[0] * self.inputs * self.outputs
        entries = self.groups * (draws * _positions_of(taps) * self.inputs + formed)
        if entries * batch <= ENTRIES:
            return compute(group_by_example(self._gradient(taps), draws), beside)

        def of_one(one: tuple[Calls, Beside]) -> Computed:
            taps, beside = one
            computed = compute(
                group_by_example(self._gradient(taps), draws), jax.tree.map(lambda leaf: leaf[None], beside)
            )
            return jax.tree.map(lambda leaf: leaf[0], computed)

        return jax.lax.map(of_one, (_split_examples(taps, draws), beside), batch_size=max(1, ENTRIES // entries))

    def is_formed_whole(self, program: Program) -> bool:
        """Whether the kernel is loose, or used in another layout or without its bias."""
        return self._places(program) is None

    def calls(self, gradients: Captured) -> list[Calls] | None:
        """The uses of the matrix of each step of the loops; None where the gradient has to be formed whole."""
        if self._places(gradients.program) is None:
            return None
        found: list[Calls] = [[] for _ in range(math.prod(self.layout.lead))]
        for tap in gradients.taps(self.leaves[0]):
            found[_place(tap.site, self.layout)].append(tap)
        return found

    def _places(self, program: Program) -> list[Site] | None:
        """The sites of the kernel, None where not all of them are rows times this matrix."""
        kernel, *bias = self.leaves
        if any(leaf in program.loose for leaf in self.leaves):
            return None
        sites = [site for site in program.sites if site.leaf == kernel]
        biases = [site for site in program.sites if bias and site.leaf == bias[0]]
        wanted = bias[0] if bias else None
        if any(site.layout != self.layout or (bias and site.bias != wanted) for site in sites):
            return None
        return None if bias and len(biases) != len(sites) else sites

    def _project(self, taps: Calls, left: Array, right: Array) -> Float[Array, "n groups k l"]:
        rank, other, positions = left.shape[-1], right.shape[-1], _positions_of(taps)
        by_position = positions * (self.inputs * rank + self.outputs * other + rank * other)
        formed = SLOWER * positions * self.inputs * self.outputs + (self.inputs + other) * rank * self.outputs
        if formed < by_position:
            return jnp.einsum("gik,ngio,gol->ngkl", left, self._gradient(taps), right)
        return _total([self._project_call(tap, left, right) for tap in taps], taps)

    def _project_call(self, tap: Tap, left: Array, right: Array) -> Float[Array, "images groups k l"]:
        matrix, (read,) = tap.site.matrix, tap.operands
        assert matrix is not None
        rows = matrix.project_inputs(merge_views(read), left if self.bias is None else left[:, :-1])
        if self.bias is not None:
            rows = rows + left[:, -1][None, None]
        return outer_products(rows, matrix.project_outputs(merge_views(tap.gradients), right))

    def _inner_products(self, taps: Calls, draws: int, batch: int) -> Float[Array, "examples {draws} {draws}"]:
        positions = draws * _positions_of(taps)
        ghost = positions * (self.inputs + self.outputs) < self.inputs * self.outputs
        formed = 0 if ghost else draws * taps[0].gradients.shape[0] * self.inputs * self.outputs
        entries = (self.groups // math.prod(self.layout.lead)) * (positions * self.inputs + formed)

        def compute(taps: Calls) -> Float[Array, "examples draws draws"]:
            return self._ghost_gram(taps, draws) if ghost else draw_gram(self._gradient(taps), draws)

        if entries * batch <= ENTRIES:
            return compute(taps)

        return jax.lax.map(
            lambda one: compute(one)[0], _split_examples(taps, draws), batch_size=max(1, ENTRIES // entries)
        )

    def _ghost_gram(self, taps: Calls, draws: int) -> Float[Array, "examples {draws} {draws}"]:
        pairs = [_sums_and_differences(self._call_rows(tap), tap.gradients.shape[0]) for tap in taps]
        sides = (jnp.concatenate(rows, axis=1) for rows in zip(*pairs, strict=True))
        a, s = (x.reshape(draws, x.shape[0] // draws, *x.shape[1:]) for x in sides)
        like_inputs = jnp.einsum("kbtgi,lbugi->bklgtu", a, a)
        like_outputs = jnp.einsum("kbtgo,lbugo->bklgtu", s, s)
        return jnp.sum(like_inputs * like_outputs, axis=(3, 4, 5))

    def _gradient(self, taps: Calls) -> Float[Array, "n groups inputs outputs"]:
        """`Σ_t ā_t s_tᵀ` over all calls and views."""
        return _total([self._call_gradient(tap) for tap in taps], taps)

    def _call_gradient(self, tap: Tap) -> Float[Array, "images groups inputs outputs"]:
        matrix, (read,), gradients = tap.site.matrix, tap.operands, merge_views(tap.gradients)
        assert matrix is not None
        found = matrix.gradient(merge_views(read), gradients)
        if self.bias is None:
            return found
        return jnp.concatenate([found, jnp.sum(matrix.output_rows(gradients), axis=1)[:, :, None]], axis=2)

    def _rows(self, taps: Calls, n: int, dtype: Any) -> tuple[Array, Array]:
        """The rows of all calls; no position at all, hence gradients of zero, where there is none."""
        each = self.groups // math.prod(self.layout.lead)
        none = (jnp.zeros((n, 0, each, size), dtype) for size in (self.inputs, self.outputs))
        a, s = zip(tuple(none), *[self._call_rows(tap) for tap in taps], strict=True)
        return jnp.concatenate(a, axis=1), jnp.concatenate(s, axis=1)

    def _call_rows(self, tap: Tap) -> tuple[Array, Array]:
        """Rows of one call, views and positions merged."""
        matrix, (read,) = tap.site.matrix, tap.operands
        assert matrix is not None
        rows = matrix.input_rows(merge_views(read))
        if self.bias is not None:
            rows = jnp.concatenate([rows, jnp.ones_like(rows[..., :1])], axis=-1)
        return _by_example(rows, read), _by_example(matrix.output_rows(merge_views(tap.gradients)), tap.gradients)

    def _join(self, leaves: Sequence[Array]) -> Float[Array, "groups inputs outputs"]:
        """Kernel and bias as one matrix."""
        kernel = self.layout.to_matrix(leaves[0])
        if self.bias is None:
            return kernel
        return jnp.concatenate([kernel, leaves[1].reshape(self.groups, 1, self.outputs)], axis=1)


Blocks: TypeAlias = tuple[MatrixBlock | VectorBlock, ...]


def discover(
    network: Embed, params: Params, frozen: Frozen, image_shape: tuple[int, ...], unexplained: Unexplained = "error"
) -> Blocks:
    """Cut the parameters into blocks, in the order in which `network` uses them.

    A matrix that rows are multiplied by is a block, with the bias that is added right after it. A scale and the bias
    added after it are one vector. What no site explains comes last: loose parameters and those that are not read.

    Raises:
        StructureError: A parameter is loose or unread and `unexplained` is "error"; or JAX cannot differentiate its use.
    """
    program, paths = program_of(network, params, frozen, image_shape), leaf_paths(params)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    _refuse(program, paths, unexplained)
    found: dict[int, MatrixBlock | VectorBlock] = {}
    taken: set[int] = set()
    order = list(dict.fromkeys(site.leaf for site in program.sites))
    kernels = {leaf: _matrix(leaf, program, shapes) for leaf in order}
    for leaf, matrix in kernels.items():
        if matrix is None:
            continue
        layout, (groups, inputs, outputs), bias = matrix
        bias = None if bias in taken else bias
        leaves = (leaf,) if bias is None else (leaf, bias)
        taken.update(leaves)
        own = tuple(paths[k] for k in leaves)
        rows, shape = inputs + len(leaves) - 1, None if bias is None else shapes[bias]
        found[leaf] = MatrixBlock(_name(own, paths), leaves, own, layout, groups, rows, outputs, shape)
    for leaf in order:
        if leaf not in taken:
            leaves = _with_bias(leaf, program, paths, taken)
            taken.update(leaves)
            found[leaf] = _plain(leaves, paths, shapes)
    rest = [leaf for leaf in range(len(paths)) if leaf not in taken]
    blocks = [found[leaf] for leaf in order if leaf in found]
    return (*blocks, *(_plain((leaf,), paths, shapes) for leaf in rest))


def discover_blocks(problem: Problem, unexplained: Unexplained) -> Blocks:
    """The layers of the problem's network."""
    shape = problem.batches.image.shape[2:]
    return discover(problem.objective.network, problem.params, problem.frozen, shape, unexplained)


def _refuse(program: Program, paths: list[Path], unexplained: Unexplained) -> None:
    undifferentiable = ["/".join(paths[leaf]) for leaf, reason in program.loose.items() if reason == "while"]
    if undifferentiable:
        raise StructureError(
            f"The parameters {', '.join(undifferentiable)} are used inside a `while` loop, which JAX cannot differentiate "
            "backwards. Use a loop with a fixed number of steps (`scan`, or `fori_loop` with constant bounds)."
        )
    if unexplained == "materialise":
        return
    loose = [f"{'/'.join(paths[leaf])} (used by `{reason}`)" for leaf, reason in sorted(program.loose.items())]
    unread = ["/".join(path) for leaf, path in enumerate(paths) if leaf not in program.read]
    words = []
    if loose:
        words.append(
            f"No layer explains the gradients of the parameters {', '.join(loose)}: the operation is not linear in them, or "
            "its derivative cannot be read from the trace."
        )
    if unread:
        words.append(f"The network does not read the parameters {', '.join(unread)}: leave them out.")
    if words:
        raise StructureError(
            f"{' '.join(words)} With unexplained='materialise', per-example gradients of these parameters are formed whole, "
            "a few examples at a time."
        )


def _matrix(
    leaf: int, program: Program, shapes: list[tuple[int, ...]]
) -> tuple[Layout, tuple[int, int, int], int | None] | None:
    """How a parameter is a matrix: its layout, (groups, inputs, outputs), and the bias that goes with it."""
    sites = [site for site in program.sites if site.leaf == leaf]
    known = [site for site in sites if site.layout is not None]
    if not known or known[0].layout is None:
        return None
    layout = known[0].layout
    alike = [site for site in sites if site.layout == layout]
    if len({_place(site, layout) for site in alike}) != math.prod(layout.lead):
        return None
    sizes = jax.eval_shape(layout.to_matrix, jax.ShapeDtypeStruct(shapes[leaf], jnp.float32)).shape
    bias = known[0].bias
    if bias is not None:
        users = [site for site in program.sites if site.leaf == bias]
        if any(site.bias != bias for site in sites) or len(users) != len(sites):
            bias = None
    return layout, (sizes[0], sizes[1], sizes[2]), bias


def _with_bias(leaf: int, program: Program, paths: list[Path], taken: set[int]) -> tuple[int, ...]:
    """A scale with the bias of its module; otherwise the parameter alone."""

    def uses(leaf: int) -> set[str]:
        return {program.instructions[site.instruction].name for site in program.sites if site.leaf == leaf}

    if uses(leaf) == {"mul"}:
        for other in dict.fromkeys(site.leaf for site in program.sites):
            together = other != leaf and other not in taken and paths[other][:-1] == paths[leaf][:-1]
            if together and uses(other) == {"add"}:
                return leaf, other
    return (leaf,)


def _plain(leaves: tuple[int, ...], paths: list[Path], shapes: list[tuple[int, ...]]) -> MatrixBlock | VectorBlock:
    """A block of parameters that no operation multiplies rows by: a vector, or a matrix where that is too long."""
    own = tuple(paths[leaf] for leaf in leaves)
    name, shape = _name(own, paths), shapes[leaves[0]]
    if len(leaves) == 1 and len(shape) > 1 and math.prod(shape) > VECTOR and 1 < shape[-1] < math.prod(shape):
        rows = math.prod(shape[:-1])
        return MatrixBlock(name, leaves, own, natural_layout(shape), 1, rows, shape[-1], None)
    return VectorBlock(name, leaves, own, tuple(shapes[leaf] for leaf in leaves))


def _name(own: tuple[Path, ...], paths: list[Path]) -> str:
    """Path of the module whose parameters these are, or of the one parameter."""
    parent = own[0][:-1]
    every = {path for path in paths if path[: len(parent)] == parent}
    return "/".join(parent if parent and every == set(own) else own[0])


def _place(site: Site, layout: Layout) -> int:
    """The step of the loops that a site belongs to."""
    return int(np.ravel_multi_index(places(site), layout.lead)) if layout.lead else 0


def assemble(like: Params, blocks: Blocks, arrays: dict[str, Array]) -> Params:
    """The tree whose blocks are `arrays`, by block name."""
    values = {path: value for block in blocks for path, value in block.write(arrays[block.name]).items()}
    flat = [values[path] for path in leaf_paths(like)]
    return jax.tree.unflatten(jax.tree.structure(like), flat)


def check_structure(like: Params, vector: PyTree) -> None:
    """Refuse a vector that has not the structure and shapes of the parameters.

    Raises:
        StructureError: Another structure, or another shape at some leaf.
    """
    wanted, got = jax.tree.structure(like), jax.tree.structure(vector)
    shapes = [leaf.shape for leaf in jax.tree.leaves(like)], [jnp.shape(leaf) for leaf in jax.tree.leaves(vector)]
    if wanted != got or shapes[0] != shapes[1]:
        raise StructureError(
            f"A vector must have the structure and shapes of the parameters ({trees.size(like)} scalars in {wanted}), "
            f"got {got} with shapes {shapes[1]}."
        )


def group_by_example(gradients: Float[Array, "n *shape"], draws: int) -> Float[Array, "examples draws size"]:
    """Return gradients that stand draw-major, flattened, example by example."""
    return jnp.swapaxes(gradients.reshape(draws, gradients.shape[0] // draws, -1), 0, 1)


def draw_gram(gradients: Float[Array, "n *shape"], draws: int) -> Float[Array, "batch draws draws"]:
    """Inner products of the draws of each example, from vectors that stand draw-major."""
    vectors = gradients.reshape(draws, gradients.shape[0] // draws, -1)
    return jnp.einsum("kbf,lbf->bkl", vectors, vectors)


def merge_views(array: Array) -> Array:
    """[views, n, …] → [views · n, …]."""
    return array.reshape(-1, *array.shape[2:])


def _split_examples(taps: Calls, draws: int) -> Calls:
    """Return arrays [views, draws · batch, …] of all calls as [batch, views, draws, …]."""

    def one(array: Array) -> Array:
        views, n, *rest = array.shape
        return jnp.moveaxis(array.reshape(views, draws, n // draws, *rest), 2, 0)

    return jax.tree.map(one, taps)


def _sums_and_differences(sides: tuple[Array, Array], views: int) -> tuple[Array, Array]:
    """Return sums and differences over √2 of two views' rows [n, positions, groups, width], in the place of the rows.

    `a₁s₁ᵀ + a₂s₂ᵀ = a₊s₊ᵀ + a₋s₋ᵀ` exactly. Of nearly equal views `a₁s₁ᵀ` and `a₂s₂ᵀ` are large and cancel, and in their
    inner products in float32 so do all digits; `a₊s₊ᵀ` and `a₋s₋ᵀ` are both as small as what is left.
    """
    if views != 2:
        return sides

    def turned(rows: Array) -> Array:
        first, second = jnp.split(rows, 2, axis=1)
        return jnp.concatenate([first + second, first - second], axis=1) / 2**0.5

    return turned(sides[0]), turned(sides[1])


def _positions_of(taps: Calls) -> int:
    """Of one example, in all calls and views."""
    found = 0
    for tap in taps:
        matrix = tap.site.matrix
        assert matrix is not None
        found += tap.gradients.shape[0] * math.prod(tap.gradients.shape[2:]) // (matrix.groups * matrix.outputs)
    return found


def _by_example(rows: Array, like: Array) -> Array:
    """[views · n, positions, …] → [n, views · positions, …]."""
    views, n = like.shape[:2]
    split = jnp.moveaxis(rows.reshape(views, n, *rows.shape[1:]), 0, 1)
    return split.reshape(n, -1, *rows.shape[2:])


def _total(calls: list[Array], taps: Calls) -> Float[Array, "n groups inputs outputs"]:
    """The sum over calls and views of what is computed image by image."""
    split = [one.reshape(*tap.gradients.shape[:2], *one.shape[1:]) for one, tap in zip(calls, taps, strict=True)]
    return functools.reduce(jnp.add, [jnp.sum(one, axis=0) for one in split])
