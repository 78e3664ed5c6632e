"""The check of every fit: gradients by blocks against those of automatic differentiation."""

import functools

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from influence_ssl_jax import randomness
from influence_ssl_jax.curvature.blocks import Blocks, assemble, discover, leaf_paths
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.curvature.sites import Embed, program_of
from influence_ssl_jax.errors import StructureError
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.types import Frozen, Params

EXAMPLES = 2

_checked: set[object] = set()


def check_gradients(network: Embed, problem: Problem) -> None:
    """Compare block gradients with `jax.grad` on two examples of the curvature set and a random cotangent.

    The gradient of both examples together is compared, so that a network whose embedding of one image depends on the
    other is found too. A network is checked once for given shapes: the sites do not depend on the numbers.

    Args:
        network: Whose gradients: that of the curvature or that of the measurement.
        problem: Gives parameters, frozen variables and images.

    Raises:
        StructureError: They disagree by more than rounding; names the parameters.
    """
    shape = problem.batches.image.shape[2:]
    blocks = discover(network, problem.params, problem.frozen, shape, "materialise")
    key = network, blocks, program_of(network, problem.params, problem.frozen, shape)
    if key in _checked or any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(problem.params)):
        return  # numbers are not known while a program is traced
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
    """Compare the gradient of `Σ_n ⟨cotangent_n, embedding_n⟩` by blocks with that of `jax.grad`.

    Raises:
        StructureError: They disagree by more than rounding; names the parameters.
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
            wrong.append(f"{'/'.join(path)} (by {error:.2g} of {norm:.2g})")
    if wrong:
        raise StructureError(
            f"The gradients of {', '.join(wrong)} disagree with automatic differentiation of the same network on a batch "
            f"of {len(images)} images. Either an image's embedding depends on the other images of its batch (a norm in "
            "training mode, say), which a score of one example cannot allow for, or the parameter is used in a way that "
            "is not understood: please report the network."
        )


@functools.partial(jax.jit, static_argnums=(4, 5))
def _both(
    params: Params, frozen: Frozen, images: Array, cotangents: Array, network: Embed, blocks: Blocks
) -> tuple[Params, Params]:
    """The summed gradient, by blocks and by one backward pass of the whole batch."""
    gradients = ExampleGradients(params, frozen, images[:, None], cotangents[:, None], network)
    arrays = {block.name: block.materialised(gradients)[0] for block in blocks}
    _, backward = jax.vjp(lambda params: network(params, frozen, images), params)
    return assemble(params, blocks, arrays), backward(cotangents)[0]
