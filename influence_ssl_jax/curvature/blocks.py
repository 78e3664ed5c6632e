"""Divide the parameters of a network into blocks.

Projections, Kronecker factors and norms work block by block.
"""

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
"""How to treat parameters that no site explains: refuse them, or form their per-example gradients whole."""

ENTRIES = 2**24
"""The number of entries of patches or of whole gradients that are in memory together, on a CPU."""
WIDER = 16
"""How many times as many are in the memory of an accelerator."""

SLOWER = 3
"""The cost of a multiplication in forming gradients, relative to one in a projection.

It is 1.5 to 4 on two CPU cores: many small products, one for each image, against one convolution.
"""

VECTOR = 2048
"""The largest number of entries of a parameter with several axes that is seen as a vector.

A larger one is seen as a matrix, also if no operation multiplies rows by it.
"""


def entries_at_once() -> int:
    """Return the number of entries to hold in memory.

    They are those of patches, or of whole gradients.
    """
    return ENTRIES if jax.default_backend() == "cpu" else WIDER * ENTRIES


def examples_at_once(batch: int, entries: int, room: int = 0) -> int:
    """Return the number of a batch's examples to hold in memory together.

    Each takes `entries` numbers; there is room for `entries_at_once()`, or for `room` if that is more. If possible the
    result divides the batch: a smaller rest would be compiled as a second program.
    """
    most = min(batch, max(1, max(room, entries_at_once()) // entries))
    return next((size for size in range(most, most // 2, -1) if batch % size == 0), most)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tap:
    """The values that a site read, and its result's gradient.

    Attributes:
        operands: The recorded operands.
        gradients: Gradient with respect to the site's result.
        site: The site, static.
    """

    operands: tuple[Array, ...]
    gradients: Float[Array, "views n *written"]
    site: Site = dataclasses.field(metadata={"static": True})


class Captured(abc.ABC):
    """The interface by which blocks read the per-example gradients of a batch.

    `gradients.ExampleGradients` implements it. The gradients may be of another network than the one that was divided
    into blocks: they are zero for parameters that this network does not read.
    """

    cotangents: Float[Array, "views n embedding"]
    draws: int

    @property
    @abc.abstractmethod
    def program(self) -> Program:
        """The network's operations, and the sites among them."""

    @abc.abstractmethod
    def taps(self, leaf: int) -> list[Tap]:
        """Return every use of a parameter, with leading axes [views, n].

        The list is empty if the parameter is unread or loose.
        """

    @abc.abstractmethod
    def leaf(self, leaf: int) -> Float[Array, "n *shape"]:
        """Compute every example's gradient of one parameter, whole."""


class Block(abc.ABC):
    """A group of parameters, seen as one array.

    Subclasses are frozen dataclasses, static under `jit`.

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
        """The number of scalar parameters."""

    @abc.abstractmethod
    def read(self, tree: Params) -> Float[Array, "*shape"]:
        """Read the block from a tree of the parameters' structure."""

    @abc.abstractmethod
    def write(self, array: Float[Array, "*shape"]) -> dict[Path, Array]:
        """Return the values of a block by path; it inverts `read`."""

    @abc.abstractmethod
    def materialise(self, gradients: Captured) -> Float[Array, "n *shape"]:
        """Compute every example's gradient of the block, whole."""

    @abc.abstractmethod
    def inner_products(self, gradients: Captured, draws: int) -> Float[Array, "examples {draws} {draws}"]:
        """Compute ⟨g_k, g_l⟩ for all pairs of `draws` gradients of each example.

        The gradients are in draw-major order.
        """

    @abc.abstractmethod
    def is_formed_whole(self, program: Program) -> bool:
        """Test whether the gradients of this block have to be formed whole."""

    def map_examples(
        self,
        gradients: Captured,
        compute: Callable[[Float[Array, "some draws size"], Beside], Computed],
        beside: Beside,
        room: int = 0,  # noqa: ARG002 - vectors are small and formed at once
    ) -> Computed:
        """Compute something from every example's gradients of the block.

        The gradients of a large batch are never in memory together.

        Args:
            gradients: The gradients of a batch.
            compute: A function from the gradients of some examples in all their draws, and the same examples' part of
                `beside`, to arrays with a leading axis of those examples. It may be traced for one example under `vmap`.
            beside: A tree of arrays with a leading axis of examples.
            room: How many numbers may be in memory together, if these are more than `entries_at_once()`.
        """
        return compute(group_by_example(self.materialise(gradients), gradients.draws), beside)

    def gram(self, gradients: Captured) -> Float[Array, "batch draws draws"]:
        """Compute ⟨g_k, g_l⟩ for all pairs of draws of each example."""
        return self.inner_products(gradients, gradients.draws)

    def squared_norms(self, gradients: Captured) -> Float[Array, " n"]:
        """Compute ‖g_n‖² of every draw, without the pairs."""
        return self.inner_products(gradients, 1)[:, 0, 0]

    def cross_products(self, left: Captured, right: Captured) -> Float[Array, "left right"]:
        """Compute `⟨g_i, g_j⟩` between the gradients of two batches."""
        sides = [self.materialise(gradients) for gradients in (left, right)]
        rows, columns = (side.reshape(side.shape[0], -1) for side in sides)
        return rows @ columns.T


@dataclasses.dataclass(frozen=True)
class VectorBlock(Block):
    """Parameters seen as one vector: all that have no weight matrix.

    They are scales, biases, tokens and others.

    Attributes:
        name: Path of the block.
        leaves: Numbers of its parameters.
        paths: Their paths.
        shapes: Their shapes.

    Examples:
        >>> import jax.numpy as jnp
        >>> from influence_ssl_jax.curvature.blocks import VectorBlock
        >>> block = VectorBlock("norm", (0, 1), (("bias",), ("scale",)), ((2,), (2,)))
        >>> block.read({"bias": jnp.asarray([1.0, 2.0]), "scale": jnp.asarray([3.0, 4.0])}).tolist()
        [1.0, 2.0, 3.0, 4.0]
        >>> block.write(jnp.asarray([1.0, 2.0, 3.0, 4.0]))["scale",].tolist()
        [3.0, 4.0]
    """

    name: str
    leaves: tuple[int, ...]
    paths: tuple[Path, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """The sum of the leaves' sizes."""
        return sum(math.prod(shape) for shape in self.shapes)

    def read(self, tree: Params) -> Float[Array, " size"]:
        """Join the leaves, one after the other."""
        flat = jax.tree.leaves(tree)
        return jnp.concatenate([flat[leaf].reshape(-1) for leaf in self.leaves])

    def write(self, array: Float[Array, " size"]) -> dict[Path, Array]:
        """Split the vector into its leaves."""
        values, start = {}, 0
        for path, shape in zip(self.paths, self.shapes, strict=True):
            length = math.prod(shape)
            values[path] = array[start : start + length].reshape(shape)
            start += length
        return values

    def materialise(self, gradients: Captured) -> Float[Array, "n size"]:
        """Compute the gradient vectors."""
        parts = [gradients.leaf(leaf) for leaf in self.leaves]
        return jnp.concatenate([part.reshape(part.shape[0], -1) for part in parts], axis=1)

    def inner_products(self, gradients: Captured, draws: int) -> Float[Array, "examples {draws} {draws}"]:
        """Compute the inner products of the gradient vectors."""
        if not any(leaf in gradients.program.read for leaf in self.leaves):  # there is no gradient
            like = gradients.cotangents
            return jnp.zeros((like.shape[1] // draws, draws, draws), like.dtype)
        return draw_gram(self.materialise(gradients), draws)

    def is_formed_whole(self, program: Program) -> bool:
        """Test whether the network reads the block."""
        return any(leaf in program.read for leaf in self.leaves)


Calls: TypeAlias = list[Tap]
"""The uses of one matrix."""


@dataclasses.dataclass(frozen=True)
class MatrixBlock(Block):
    """A weight matrix with its bias as last row, [groups, inputs, outputs].

    If loops iterate over leading axes of the kernel, each of their steps has groups of its own. If the kernel is used
    in this layout only, its gradients need never be formed; otherwise they are formed, a few examples at a time.

    Attributes:
        name: Path of the block.
        leaves: Numbers of the kernel and, if there is one, of the bias.
        paths: Their paths.
        layout: How the kernel becomes a matrix.
        groups: Number of groups of all steps of the loops together.
        inputs: Number of rows of a group, with the bias.
        outputs: Number of columns of a group.
        bias: Shape of the bias; None if there is none.
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
        """The number of entries of the matrix."""
        return self.groups * self.inputs * self.outputs

    def read(self, tree: Params) -> Float[Array, "groups inputs outputs"]:
        """Read the matrix from a tree."""
        flat = jax.tree.leaves(tree)
        return self._join([flat[leaf] for leaf in self.leaves])

    def write(self, array: Float[Array, "groups inputs outputs"]) -> dict[Path, Array]:
        """Split a matrix into kernel and bias."""
        if self.bias is None:
            return {self.paths[0]: self.layout.from_matrix(array)}
        kernel, bias = array[:, :-1], array[:, -1]
        return {self.paths[0]: self.layout.from_matrix(kernel), self.paths[1]: bias.reshape(self.bias)}

    def rows(
        self, gradients: Captured
    ) -> tuple[Float[Array, "n positions groups inputs"], Float[Array, "n positions groups outputs"]]:
        """Return the rows of all positions, calls and views.

        Raises:
            StructureError: If the network uses the kernel in another way too, so that its gradient is not a sum over
                rows.

        Returns:
            The inputs `ā` and the output-gradients `s`.
        """
        calls = self.calls(gradients)
        if calls is None:
            raise StructureError(
                f"The gradient of {self.name} is not a sum over rows of this matrix: the network transforms or shares it. "
                "Form it whole (`materialise`)."
            )
        n = gradients.cotangents.shape[1]
        parts = [self._rows(taps, n, gradients.cotangents.dtype) for taps in calls]
        return jnp.concatenate([a for a, _ in parts], axis=2), jnp.concatenate([s for _, s in parts], axis=2)

    def project(
        self, gradients: Captured, left: Float[Array, "groups inputs k"], right: Float[Array, "groups outputs l"]
    ) -> Float[Array, "n groups k l"]:
        """Compute `leftᵀ G right` for each example.

        `G = Σ_t ā_t s_tᵀ` is formed only if that is less work: with a large basis and many positions, G is multiplied
        by the bases once, instead of every position.
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
        """Compute `Σ_t ā_t s_tᵀ` for each example.

        It is zero if the network does not use the matrix.
        """
        calls = self.calls(gradients)
        if calls is None:
            return jax.vmap(lambda *leaves: self._join(leaves))(*[gradients.leaf(leaf) for leaf in self.leaves])
        n, each, dtype = gradients.cotangents.shape[1], self.groups // len(calls), gradients.cotangents.dtype
        nothing = (n, each, self.inputs, self.outputs)
        parts = [self._gradient(taps) if taps else jnp.zeros(nothing, dtype) for taps in calls]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)

    def inner_products(self, gradients: Captured, draws: int) -> Float[Array, "examples {draws} {draws}"]:
        """Compute inner products from the gradients or from rows (ghost norms).

        The way with less work is used. Either holds about `entries_at_once()` numbers in memory, however large the batch is.
        """
        calls, batch = self.calls(gradients), gradients.cotangents.shape[1] // draws
        if calls is None:
            return draw_gram(self.materialise(gradients), draws)
        products = [self._inner_products(taps, draws, batch) for taps in calls if taps]
        if not products:  # the network does not use the matrix
            return jnp.zeros((batch, draws, draws), gradients.cotangents.dtype)
        return functools.reduce(jnp.add, products)

    def map_examples(
        self,
        gradients: Captured,
        compute: Callable[[Float[Array, "some draws size"], Beside], Computed],
        beside: Beside,
        room: int = 0,
    ) -> Computed:
        """Compute something from every example's gradients, see `Block.map_examples`.

        About `entries_at_once()` numbers of patches and gradients are in memory together, or `room` if these are more.
        """
        calls, draws = self.calls(gradients), gradients.draws
        if calls is None or len(calls) != 1 or not calls[0]:
            return compute(group_by_example(self.materialise(gradients), draws), beside)
        taps, batch = calls[0], gradients.cotangents.shape[1] // draws
        entries = self.groups * draws * self.inputs * (_positions_of(taps) + self.outputs)
        if entries * batch <= max(room, entries_at_once()):
            return compute(group_by_example(self._gradient(taps), draws), beside)

        def of_one(one: tuple[Calls, Beside]) -> Computed:
            taps, beside = one
            computed = compute(
                group_by_example(self._gradient(taps), draws), jax.tree.map(lambda leaf: leaf[None], beside)
            )
            return jax.tree.map(lambda leaf: leaf[0], computed)

        size = examples_at_once(batch, entries, room)
        return jax.lax.map(of_one, (_split_examples(taps, draws), beside), batch_size=size)

    def is_formed_whole(self, program: Program) -> bool:
        """Test whether the gradients have to be formed whole.

        They do if the kernel is loose, or is used in another layout or without its bias.
        """
        return self._places(program) is None

    def calls(self, gradients: Captured) -> list[Calls] | None:
        """Return the uses of the matrix of each step of the loops.

        It is None if the gradient has to be formed whole.
        """
        if self._places(gradients.program) is None:
            return None
        calls: list[Calls] = [[] for _ in range(math.prod(self.layout.lead))]
        for tap in gradients.taps(self.leaves[0]):
            calls[_place(tap.site, self.layout)].append(tap)
        return calls

    def _places(self, program: Program) -> list[Site] | None:
        """Return the sites of the kernel.

        It is None if some site is not rows times this matrix.
        """
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
        """Project the gradients of several calls."""
        rank, other, positions = left.shape[-1], right.shape[-1], _positions_of(taps)
        by_position = positions * (self.inputs * rank + self.outputs * other + rank * other)
        formed = SLOWER * positions * self.inputs * self.outputs + (self.inputs + other) * rank * self.outputs
        if formed < by_position:
            return jnp.einsum("gik,ngio,gol->ngkl", left, self._gradient(taps), right)
        return _total([self._project_call(tap, left, right) for tap in taps], taps)

    def _project_call(self, tap: Tap, left: Array, right: Array) -> Float[Array, "images groups k l"]:
        """Project the gradients of one call, image by image."""
        matrix, (read,) = tap.site.matrix, tap.operands
        assert matrix is not None
        rows = matrix.project_inputs(merge_views(read), left if self.bias is None else left[:, :-1])
        if self.bias is not None:
            rows = rows + left[:, -1][None, None]
        return outer_products(rows, matrix.project_outputs(merge_views(tap.gradients), right))

    def _inner_products(self, taps: Calls, draws: int, batch: int) -> Float[Array, "examples {draws} {draws}"]:
        """Compute inner products over several calls, a few examples at a time."""
        positions = draws * _positions_of(taps)
        ghost = positions * (self.inputs + self.outputs) < self.inputs * self.outputs
        formed = 0 if ghost else draws * self.inputs * self.outputs
        entries = (self.groups // math.prod(self.layout.lead)) * (positions * self.inputs + formed)

        def compute(taps: Calls) -> Float[Array, "examples draws draws"]:
            return self._ghost_gram(taps, draws) if ghost else draw_gram(self._gradient(taps), draws)

        if entries * batch <= entries_at_once():
            return compute(taps)

        size = examples_at_once(batch, entries)
        return jax.lax.map(lambda one: compute(one)[0], _split_examples(taps, draws), batch_size=size)

    def _ghost_gram(self, taps: Calls, draws: int) -> Float[Array, "examples {draws} {draws}"]:
        """Compute the inner products from those of rows: `Σ_tu ⟨ā_t, ā_u⟩ ⟨s_t, s_u⟩`."""
        pairs = [_sums_and_differences(self._call_rows(tap), tap.gradients.shape[0]) for tap in taps]
        sides = (jnp.concatenate(rows, axis=1) for rows in zip(*pairs, strict=True))
        a, s = (x.reshape(draws, x.shape[0] // draws, *x.shape[1:]) for x in sides)
        like_inputs = jnp.einsum("kbtgi,lbugi->bklgtu", a, a)
        like_outputs = jnp.einsum("kbtgo,lbugo->bklgtu", s, s)
        return jnp.sum(like_inputs * like_outputs, axis=(3, 4, 5))

    def _gradient(self, taps: Calls) -> Float[Array, "n groups inputs outputs"]:
        """Compute `Σ_t ā_t s_tᵀ` over all calls and views."""
        return functools.reduce(jnp.add, map(self._call_gradient, taps))

    def _call_gradient(self, tap: Tap) -> Float[Array, "n groups inputs outputs"]:
        """Compute `Σ_t ā_t s_tᵀ` of one call, over its views."""
        matrix, (read,) = tap.site.matrix, tap.operands
        assert matrix is not None
        kernel = matrix.gradient(read, tap.gradients)
        if self.bias is None:
            return kernel
        rows = _by_example(matrix.output_rows(merge_views(tap.gradients)), tap.gradients)
        return jnp.concatenate([kernel, jnp.sum(rows, axis=1)[:, :, None]], axis=2)

    def _rows(self, taps: Calls, n: int, dtype: Any) -> tuple[Array, Array]:
        """Return the rows of all calls.

        Without a call there is no position, so gradients are zero.
        """
        each = self.groups // math.prod(self.layout.lead)
        none = (jnp.zeros((n, 0, each, size), dtype) for size in (self.inputs, self.outputs))
        a, s = zip(tuple(none), *[self._call_rows(tap) for tap in taps], strict=True)
        return jnp.concatenate(a, axis=1), jnp.concatenate(s, axis=1)

    def _call_rows(self, tap: Tap) -> tuple[Array, Array]:
        """Return the rows of one call, with views and positions merged."""
        matrix, (read,) = tap.site.matrix, tap.operands
        assert matrix is not None
        rows = matrix.input_rows(merge_views(read))
        if self.bias is not None:
            rows = jnp.concatenate([rows, jnp.ones_like(rows[..., :1])], axis=-1)
        return _by_example(rows, read), _by_example(matrix.output_rows(merge_views(tap.gradients)), tap.gradients)

    def _join(self, leaves: Sequence[Array]) -> Float[Array, "groups inputs outputs"]:
        """Join kernel and bias to one matrix."""
        kernel = self.layout.to_matrix(leaves[0])
        if self.bias is None:
            return kernel
        return jnp.concatenate([kernel, leaves[1].reshape(self.groups, 1, self.outputs)], axis=1)


Blocks: TypeAlias = tuple[MatrixBlock | VectorBlock, ...]


def discover(
    network: Embed, params: Params, frozen: Frozen, image_shape: tuple[int, ...], unexplained: Unexplained = "error"
) -> Blocks:
    """Divide the parameters into blocks, in the order `network` uses them.

    A matrix that multiplies rows is a block, together with the bias that is added right after it. A scale and the
    bias added after it are one vector. Parameters that no site explains come last: loose ones and those that are not
    read.

    Args:
        network: The network.
        params: The parameters, or their shapes.
        frozen: The other variables that the network reads, or their shapes.
        image_shape: [height, width, channels].
        unexplained: How to treat parameters that no site explains.

    Raises:
        StructureError: If a parameter is loose or unread and `unexplained` is "error"; or if JAX cannot differentiate
            its use.

    Examples:
        A linear network without bias is one block:

        >>> import jax.numpy as jnp
        >>> import influence_ssl_jax as isj
        >>> from influence_ssl_jax.curvature.blocks import discover
        >>> from influence_ssl_jax.nets.linear import Linear
        >>> blocks = discover(isj.Network(Linear(3)), {"dense": {"kernel": jnp.zeros((2, 3))}}, {}, (1, 2, 1))
        >>> [(block.name, block.groups, block.inputs, block.outputs) for block in blocks]
        [('dense', 1, 2, 3)]
    """
    program, paths = program_of(network, params, frozen, image_shape), leaf_paths(params)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    _refuse(program, paths, unexplained)
    by_leaf: dict[int, MatrixBlock | VectorBlock] = {}
    used: set[int] = set()
    order = list(dict.fromkeys(site.leaf for site in program.sites))
    kernels = {leaf: _matrix(leaf, program, shapes) for leaf in order}
    for leaf, matrix in kernels.items():
        if matrix is None:
            continue
        layout, (groups, inputs, outputs), bias = matrix
        bias = None if bias in used else bias
        leaves = (leaf,) if bias is None else (leaf, bias)
        used.update(leaves)
        own = tuple(paths[k] for k in leaves)
        rows, shape = inputs + len(leaves) - 1, None if bias is None else shapes[bias]
        by_leaf[leaf] = MatrixBlock(_name(own, paths), leaves, own, layout, groups, rows, outputs, shape)
    for leaf in order:
        if leaf not in used:
            leaves = _with_bias(leaf, program, paths, used)
            used.update(leaves)
            by_leaf[leaf] = _plain(leaves, paths, shapes)
    rest = [leaf for leaf in range(len(paths)) if leaf not in used]
    blocks = [by_leaf[leaf] for leaf in order if leaf in by_leaf]
    return (*blocks, *(_plain((leaf,), paths, shapes) for leaf in rest))


def discover_blocks(problem: Problem, unexplained: Unexplained) -> Blocks:
    """Divide the parameters of a problem's network into blocks, see `discover`."""
    shape = problem.batches.image.shape[2:]
    return discover(problem.objective.network, problem.params, problem.frozen, shape, unexplained)


def _refuse(program: Program, paths: list[Path], unexplained: Unexplained) -> None:
    """Refuse parameters that no site explains, or whose use JAX cannot differentiate."""
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
    """Describe a parameter as a matrix: layout, (groups, inputs, outputs), and bias."""
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


def _with_bias(leaf: int, program: Program, paths: list[Path], used: set[int]) -> tuple[int, ...]:
    """Return a scale with its module's bias, or the parameter alone."""

    def uses(leaf: int) -> set[str]:
        return {program.instructions[site.instruction].name for site in program.sites if site.leaf == leaf}

    if uses(leaf) == {"mul"}:
        for other in dict.fromkeys(site.leaf for site in program.sites):
            together = other != leaf and other not in used and paths[other][:-1] == paths[leaf][:-1]
            if together and uses(other) == {"add"}:
                return leaf, other
    return (leaf,)


def _plain(leaves: tuple[int, ...], paths: list[Path], shapes: list[tuple[int, ...]]) -> MatrixBlock | VectorBlock:
    """Make a block of parameters that no operation multiplies rows by.

    It is a vector, or a matrix if the vector would be too long.
    """
    own = tuple(paths[leaf] for leaf in leaves)
    name, shape = _name(own, paths), shapes[leaves[0]]
    if len(leaves) == 1 and len(shape) > 1 and math.prod(shape) > VECTOR and 1 < shape[-1] < math.prod(shape):
        rows = math.prod(shape[:-1])
        return MatrixBlock(name, leaves, own, natural_layout(shape), 1, rows, shape[-1], None)
    return VectorBlock(name, leaves, own, tuple(shapes[leaf] for leaf in leaves))


def _name(own: tuple[Path, ...], paths: list[Path]) -> str:
    """Return the path of the parameters' module, or of the only parameter."""
    parent = own[0][:-1]
    every = {path for path in paths if path[: len(parent)] == parent}
    return "/".join(parent if parent and every == set(own) else own[0])


def _place(site: Site, layout: Layout) -> int:
    """Return the step of the loops that a site belongs to."""
    return int(np.ravel_multi_index(places(site), layout.lead)) if layout.lead else 0


def assemble(like: Params, blocks: Blocks, arrays: dict[str, Array]) -> Params:
    """Join arrays, by block name, to a tree of the parameters' structure."""
    values = {path: value for block in blocks for path, value in block.write(arrays[block.name]).items()}
    flat = [values[path] for path in leaf_paths(like)]
    return jax.tree.unflatten(jax.tree.structure(like), flat)


def check_structure(like: Params, vector: PyTree) -> None:
    """Refuse a vector of other structure or shapes than the parameters.

    Raises:
        StructureError: If the structure differs, or the shape of a leaf.

    Examples:
        >>> import jax.numpy as jnp
        >>> from influence_ssl_jax.curvature.blocks import check_structure
        >>> check_structure({"kernel": jnp.zeros(2)}, {"kernel": jnp.ones(2)})
    """
    wanted, got = jax.tree.structure(like), jax.tree.structure(vector)
    shapes = [leaf.shape for leaf in jax.tree.leaves(like)], [jnp.shape(leaf) for leaf in jax.tree.leaves(vector)]
    if wanted != got or shapes[0] != shapes[1]:
        raise StructureError(
            f"A vector must have the structure and shapes of the parameters ({trees.size(like)} scalars in {wanted}), "
            f"got {got} with shapes {shapes[1]}."
        )


def group_by_example(gradients: Float[Array, "n *shape"], draws: int) -> Float[Array, "examples draws size"]:
    """Flatten gradients in draw-major order and group them by example."""
    return jnp.swapaxes(gradients.reshape(draws, gradients.shape[0] // draws, -1), 0, 1)


def draw_gram(gradients: Float[Array, "n *shape"], draws: int) -> Float[Array, "batch draws draws"]:
    """Compute the inner products of the draws of each example.

    The vectors are in draw-major order.
    """
    vectors = gradients.reshape(draws, gradients.shape[0] // draws, -1)
    return jnp.einsum("kbf,lbf->bkl", vectors, vectors)


def merge_views(array: Array) -> Array:
    """Reshape [views, n, …] to [views · n, …]."""
    return array.reshape(-1, *array.shape[2:])


def _split_examples(taps: Calls, draws: int) -> Calls:
    """Reshape all calls' arrays to [batch, views, draws, …].

    Their leading axes are [views, draws · batch].
    """

    def one(array: Array) -> Array:
        views, n, *rest = array.shape
        return jnp.moveaxis(array.reshape(views, draws, n // draws, *rest), 2, 0)

    return jax.tree.map(one, taps)


def _sums_and_differences(sides: tuple[Array, Array], views: int) -> tuple[Array, Array]:
    """Replace two views' rows by their sums and differences over √2.

    `a₁s₁ᵀ + a₂s₂ᵀ = a₊s₊ᵀ + a₋s₋ᵀ` holds exactly. If the views are nearly equal, `a₁s₁ᵀ` and `a₂s₂ᵀ` are large and
    cancel, and their inner products in float32 lose all digits; `a₊s₊ᵀ` and `a₋s₋ᵀ` are both as small as the result.
    Rows have the axes [n, positions, groups, width].
    """
    if views != 2:
        return sides

    def turn(rows: Array) -> Array:
        first, second = jnp.split(rows, 2, axis=1)
        return jnp.concatenate([first + second, first - second], axis=1) / 2**0.5

    return turn(sides[0]), turn(sides[1])


def _positions_of(taps: Calls) -> int:
    """Count the positions of one example in all calls and views."""
    positions = 0
    for tap in taps:
        matrix = tap.site.matrix
        assert matrix is not None
        positions += tap.gradients.shape[0] * math.prod(tap.gradients.shape[2:]) // (matrix.groups * matrix.outputs)
    return positions


def _by_example(rows: Array, like: Array) -> Array:
    """Reshape [views · n, positions, …] to [n, views · positions, …]."""
    views, n = like.shape[:2]
    split = jnp.moveaxis(rows.reshape(views, n, *rows.shape[1:]), 0, 1)
    return split.reshape(n, -1, *rows.shape[2:])


def _total(calls: list[Array], taps: Calls) -> Float[Array, "n groups inputs outputs"]:
    """Sum over calls and views what was computed image by image."""
    split = [one.reshape(*tap.gradients.shape[:2], *one.shape[1:]) for one, tap in zip(calls, taps, strict=True)]
    return functools.reduce(jnp.add, [jnp.sum(one, axis=0) for one in split])
