"""Compute the gradients of the examples of a batch, and check them.

Gradients are never formed whole unless a caller asks for them.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from influence_ssl_jax import randomness, trees
from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.curvature.blocks import Blocks, Captured, Tap, assemble, discover, leaf_paths, merge_views
from influence_ssl_jax.curvature.sites import Embed, Program, Values, program_of
from influence_ssl_jax.errors import StructureError
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.types import Frozen, Params

Tree = TypeVar("Tree")


@contextlib.contextmanager
def forward_mode() -> Iterator[None]:
    """Explain why derivatives forwards cannot be computed inside.

    Raises:
        StructureError: The network has a derivative rule that only reverse mode can use.
    """
    try:
        yield
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise StructureError(
            "The network has a derivative rule of its author's (jax.custom_vjp), which works backwards only. Products "
            "with C need derivatives forwards. Write the rule by jax.custom_jvp, which serves both, or take a backend that "
            "works with gradients alone: Gram, EKFAC, LoGra."
        ) from error


def embed(
    network: Embed, params: Params, frozen: Frozen, images: Float[Array, "views n height width channels"]
) -> Float[Array, "views n embedding"]:
    """Embed every view of every example.

    It runs the same operations as the gradients do, so XLA computes them once.
    """
    program = program_of(network, params, frozen, images.shape[2:])
    fixed = program.fixed(params, frozen)
    zeros = [jnp.zeros(program.shape(slot), program.dtype(slot)) for slot in program.slots]
    embeddings = jax.vmap(lambda image: program.forward(fixed, image, zeros)[0])(merge_views(images))
    return embeddings.reshape(*images.shape[:2], -1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExampleGradients(Captured):
    """Gradients `g_n = Σ_v J_vnᵀ c_vn` of the examples of a batch.

    The cotangents c of each example's embeddings are pulled back to the parameters. Several draws of the same
    examples are in draw-major order: n = draws · batch.

    Attributes:
        params: The parameters at which gradients are taken.
        frozen: Running statistics.
        images: Views of the examples.
        cotangents: Gradient of the examples' losses with respect to their embeddings.
        network: The network that embeds.
        draws: Number of draws of each example.

    Examples:
        The embedding of the image (3, 4) is a matrix times it, so the gradient of its first number is (3, 4):

        >>> import jax.numpy as jnp
        >>> import influence_ssl_jax as isj
        >>> from influence_ssl_jax.curvature.gradients import ExampleGradients
        >>> from influence_ssl_jax.nets.linear import Linear
        >>> params = {"dense": {"kernel": jnp.eye(2)}}
        >>> images, cotangents = jnp.asarray([3.0, 4.0]).reshape(1, 1, 1, 2, 1), jnp.asarray([[[1.0, 0.0]]])
        >>> gradients = ExampleGradients(params, {}, images, cotangents, isj.Network(Linear(2)))
        >>> gradients.full()["dense"]["kernel"][0].tolist()
        [[3.0, 0.0], [4.0, 0.0]]
    """

    params: Params
    frozen: Frozen
    images: Float[Array, "views n height width channels"]
    cotangents: Float[Array, "views n embedding"]
    network: Embed = dataclasses.field(metadata={"static": True})
    draws: int = dataclasses.field(default=1, metadata={"static": True})

    def full(self) -> Params:
        """Compute every gradient whole, leaves [n, …].

        This is for small networks and dense backends.
        """

        def one(images: Array, cotangents: Array) -> Params:
            _, backward = jax.vjp(lambda params: self.network(params, self.frozen, images), self.params)
            return backward(cotangents)[0]

        return jax.vmap(one, in_axes=1)(self.images, self.cotangents)

    def along(self, directions: Params) -> Float[Array, "n rank"]:
        """Compute ⟨g_n, q_k⟩ for directions q_k by forward mode.

        It costs one pass for each direction and works for any network.

        Args:
            directions: A tree of the parameters' structure with a leading axis of rank.
        """
        _, push = jax.linearize(lambda params: self.network(params, self.frozen, merge_views(self.images)), self.params)

        def one(direction: Params) -> Float[Array, " n"]:
            return jnp.sum(push(direction).reshape(self.cotangents.shape) * self.cotangents, axis=(0, 2))

        with forward_mode():
            return jax.lax.map(one, directions).T

    def sum(self) -> Params:
        """Compute Σ_n g_n by one backward pass."""
        _, backward = jax.vjp(lambda params: self.network(params, self.frozen, merge_views(self.images)), self.params)
        return backward(merge_views(self.cotangents))[0]

    def gram(self, blocks: Blocks) -> Float[Array, "batch draws draws"]:
        """Compute ⟨g_k, g_l⟩ for all pairs of draws of each example.

        The diagonal has the squared norms.
        """

        def compute(part: "ExampleGradients") -> Float[Array, "batch draws draws"]:
            return functools.reduce(jnp.add, [block.gram(part) for block in blocks])

        return self.map_examples(compute, blocks)

    def squared_norms(self, blocks: Blocks) -> Float[Array, " n"]:
        """Compute ‖g_n‖² of every draw."""

        def compute(part: "ExampleGradients") -> Float[Array, "batch draws"]:
            norms = functools.reduce(jnp.add, [block.squared_norms(part) for block in blocks])
            return norms.reshape(part.draws, -1).T

        return self.map_examples(compute, blocks).T.reshape(-1)

    def map_examples(self, compute: Callable[["ExampleGradients"], Tree], blocks: Blocks) -> Tree:
        """Apply `compute` to the gradients of all examples.

        If gradients that have to be formed whole are large, it is applied to a few examples at a time.

        Args:
            compute: A function from gradients to arrays with a leading axis of examples.
            blocks: The blocks that it reads; about `entries_at_once()` of their numbers are in memory together.
        """
        entries, batch = self.draws * self._formed_size(blocks), self.cotangents.shape[1] // self.draws
        if entries * batch <= cut.entries_at_once() or batch == 1:
            return compute(self)
        size = cut.examples_at_once(batch, entries)
        return jax.lax.map(
            lambda one: jax.tree.map(lambda leaf: leaf[0], compute(self._of(one))), self._examples, batch_size=size
        )

    def sum_examples(self, compute: Callable[["ExampleGradients"], Tree], blocks: Blocks) -> Tree:
        """Sum `compute` over the examples.

        If gradients that have to be formed whole are large, one example is computed at a time.

        Args:
            compute: A function from gradients to a sum over their examples.
            blocks: The blocks that it reads.
        """
        entries, batch = self.draws * self._formed_size(blocks), self.cotangents.shape[1] // self.draws
        if entries * batch <= cut.entries_at_once() or batch == 1:
            return compute(self)
        return trees.sum_over(lambda one: compute(self._of(one)), self._examples)

    @property
    def program(self) -> Program:
        """The network's operations, and the sites among them."""
        return self._program

    @functools.cached_property
    def _program(self) -> Program:
        """The traced network, cached."""
        return program_of(self.network, self.params, self.frozen, self.images.shape[2:])

    def taps(self, leaf: int) -> list[Tap]:
        """Return every use of a parameter, with leading axes [views, n].

        The list is empty if the parameter is unread or loose.
        """
        operands, gradients, program = *self._recorded, self.program
        return [
            Tap(tuple(operands[v] for v in program.operands(site) if v in operands), gradients[site.slot], site)
            for site in program.sites
            if site.leaf == leaf
        ]

    def leaf(self, leaf: int) -> Float[Array, "n *shape"]:
        """Compute every example's gradient of one parameter, whole.

        It is zero if the parameter is unread.
        """
        if leaf in self.program.loose:
            return self._loose[leaf]
        parts = [self._through(tap) for tap in self.taps(leaf)]
        if not parts:
            like = jax.tree.leaves(self.params)[leaf]
            return jnp.zeros((self.cotangents.shape[1], *like.shape), self.cotangents.dtype)
        return functools.reduce(jnp.add, parts)

    def _through(self, tap: Tap) -> Float[Array, "n *shape"]:
        """Compute a parameter's gradient through one site."""
        program, fixed = self.program, self._fixed
        names = program.operands(tap.site)

        def one(operands: tuple[Array, ...], gradient: Array) -> Array:
            read = iter(operands)
            every = [next(read) if number in program.depends else fixed[number] for number in names]
            return program.gradient(tap.site, fixed, every, gradient)

        return jnp.sum(jax.vmap(jax.vmap(one))(tap.operands, tap.gradients), axis=0)

    @functools.cached_property
    def _fixed(self) -> Values:
        """The values that no image enters."""
        return self.program.fixed(self.params, self.frozen)

    @functools.cached_property
    def _recorded(self) -> tuple[dict[int, Array], list[Array]]:
        """Operands by number and gradients by slot, with leading axes [views, n].

        One batched backward pass computes all. Zeros are added to the results of the sites, and the gradients with
        respect to these zeros are the result. Weights are not differentiated, so no weight gradient is computed.
        """
        program, fixed = self.program, self._fixed
        zeros = [jnp.zeros(program.shape(slot), program.dtype(slot)) for slot in program.slots]

        def one(image: Array, cotangent: Array) -> tuple[list[Array], list[Array]]:
            embedding, backward, read = jax.vjp(lambda zeros: program.forward(fixed, image, zeros), zeros, has_aux=True)
            return read, backward(cotangent.astype(embedding.dtype))[0]

        read, gradients = jax.vmap(one)(merge_views(self.images), merge_views(self.cotangents))
        split = self.cotangents.shape[:2]
        operands = {n: _split(array, split) for n, array in zip(program.recorded, read, strict=True)}
        return operands, [_split(array, split) for array in gradients]

    @functools.cached_property
    def _loose(self) -> dict[int, Float[Array, "n *shape"]]:
        """The gradients of the loose parameters, all from one backward pass."""
        flat, structure = jax.tree.flatten(self.params)
        places = sorted(self.program.loose)

        def one(images: Array, cotangents: Array) -> list[Array]:
            def embed(chosen: list[Array]) -> Array:
                leaves = list(flat)
                for place, value in zip(places, chosen, strict=True):
                    leaves[place] = value
                return self.network(jax.tree.unflatten(structure, leaves), self.frozen, images)

            _, backward = jax.vjp(embed, [flat[place] for place in places])
            return backward(cotangents)[0]

        return dict(zip(places, jax.vmap(one, in_axes=1)(self.images, self.cotangents), strict=True))

    def _formed_size(self, blocks: Blocks) -> int:
        """Count the numbers of one gradient that have to be formed whole.

        Recorded numbers are not counted.
        """
        program, size = self.program, 0
        for block in blocks:
            if block.is_formed_whole(program):
                size += sum(formed_size(program, leaf) for leaf in block.leaves)
        return size

    @property
    def _examples(self) -> tuple[Array, Array]:
        """Images and cotangents, examples first: [batch, views, draws, …]."""

        def first(array: Array) -> Array:
            views, n, *rest = array.shape
            return jnp.moveaxis(array.reshape(views, self.draws, n // self.draws, *rest), 2, 0)

        return first(self.images), first(self.cotangents)

    def _of(self, example: tuple[Array, Array]) -> "ExampleGradients":
        """Return the gradients of one example alone."""
        return dataclasses.replace(self, images=example[0], cotangents=example[1])


def formed_size(program: Program, leaf: int) -> int:
    """Count a gradient's numbers, less those that the parameter's sites record."""
    shape = program.avals[program.parameters[leaf]].shape
    sites = [site for site in program.sites if site.leaf == leaf]
    if leaf not in program.loose and not sites:
        return 0
    return max(0, math.prod(shape) - sum(math.prod(program.shape(program.slots[site.slot])) for site in sites))


def recorded_size(network: Embed, params: Params, frozen: Frozen, image_shape: tuple[int, ...]) -> int:
    """Count the numbers that are recorded for one view of one example."""
    program = program_of(network, params, frozen, image_shape)
    read = sum(math.prod(program.avals[number].shape) for number in program.recorded)
    return read + sum(math.prod(program.shape(slot)) for slot in program.slots)


def _split(array: Array, split: tuple[int, ...]) -> Array:
    """Reshape `[views · n, …]` to `[views, n, …]`, in at least 32 bits.

    Values computed in 16 bits are summed in 32.
    """
    wide = (
        array.astype(jnp.promote_types(array.dtype, jnp.float32))
        if jnp.issubdtype(array.dtype, jnp.floating)
        else array
    )
    return wide.reshape(*split, *array.shape[1:])


EXAMPLES = 2
"""The number of examples of the curvature set on which gradients are checked."""

_checked: set[object] = set()


def check_gradients(network: Embed, problem: Problem) -> None:
    """Compare the gradients by blocks with those of `jax.grad`, on two examples.

    The cotangent is random, and the gradient of both examples together is compared: so the check also finds a network
    whose embedding of one image depends on the other image. A network is checked once for given shapes, because the
    sites do not depend on the numbers.

    Args:
        network: The network of the curvature or of the measurement.
        problem: The problem that has the parameters, the frozen variables and the images.

    Raises:
        StructureError: If they differ by more than rounding; the message names the parameters.
    """
    shape = problem.batches.image.shape[2:]
    blocks = discover(network, problem.params, problem.frozen, shape, "materialise")
    key = network, blocks, program_of(network, problem.params, problem.frozen, shape)
    if key in _checked or any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(problem.params)):
        return  # while a program is traced, there are no numbers to compare
    first = jax.tree.map(lambda leaf: leaf[0, :EXAMPLES], problem.batches)
    images = problem.objective.images(first, jax.tree.leaves(problem.params)[0].dtype)[0]
    width = jax.eval_shape(network, problem.params, problem.frozen, images).shape[1]
    cotangents = randomness.normal(randomness.root(0, Stream.GRADIENT_CHECK), (len(images), width), images.dtype)
    compare_gradients(network, problem.params, problem.frozen, images, cotangents, blocks)
    _checked.add(key)


def compare_gradients(
    network: Embed,
    params: Params,
    frozen: Frozen,
    images: Float[Array, "n height width channels"],
    cotangents: Float[Array, "n embedding"],
    blocks: Blocks,
) -> None:
    """Compare the gradient of `Σ_n ⟨cotangent_n, embedding_n⟩` by blocks with `jax.grad`.

    Raises:
        StructureError: If they differ by more than rounding; the message names the parameters.
    """
    with jax.default_matmul_precision("highest"):
        by_blocks, whole = _both(params, frozen, images, cotangents, network, blocks)
        program = program_of(network, params, frozen, images.shape[1:])
    computed = [program.avals[number].dtype for number in program.depends]
    coarsest = max(float(jnp.finfo(dtype).eps) for dtype in computed if jnp.issubdtype(dtype, jnp.floating))
    norms = [float(jnp.linalg.norm(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(whole)]
    total = float(np.linalg.norm(norms))
    wrong = []
    for path, got, want, norm in zip(leaf_paths(params), *map(jax.tree.leaves, (by_blocks, whole)), norms, strict=True):
        error = float(jnp.linalg.norm((got - want).astype(jnp.float32)))
        if np.isfinite(norm) and not error <= 4 * coarsest**0.5 * (norm + 0.01 * total):
            wrong.append(f"{'/'.join(path) or 'params'} (by {error:.2g} of {norm:.2g})")
    if wrong:
        raise StructureError(
            f"The gradients of {', '.join(wrong)} disagree with automatic differentiation of the same network on a batch "
            f"of {len(images)} images. Either an image's embedding depends on the other images of its batch (for example, a "
            "norm in training mode), so that no image has a gradient of its own: use evaluation mode. Or the parameter is "
            "used in a way that this package does not understand: please report the network."
        )


@functools.partial(jax.jit, static_argnums=(4, 5))
def _both(
    params: Params, frozen: Frozen, images: Array, cotangents: Array, network: Embed, blocks: Blocks
) -> tuple[Params, Params]:
    """Compute the summed gradient by blocks, and by one backward pass."""
    gradients = ExampleGradients(params, frozen, images[:, None], cotangents[:, None], network)
    arrays = {block.name: block.materialise(gradients)[0] for block in blocks}
    _, backward = jax.vjp(lambda params: network(params, frozen, images), params)
    return assemble(params, blocks, arrays), backward(cotangents)[0]
