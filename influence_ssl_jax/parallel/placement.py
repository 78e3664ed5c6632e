"""Arrays on the devices of a mesh: split along their first axis, or whole on each."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from influence_ssl_jax.parallel.mesh import AXIS
from influence_ssl_jax.types import PyTree


def split(tree: PyTree, mesh: Mesh) -> PyTree:
    """A tree of this process's rows as one tree of global arrays, split along the first axis over the mesh.

    Each process gives the rows of its own devices, in order; no process sees the others'.

    Raises:
        ValueError: The rows are not equally many for each device of this process, or its devices do not stand together.
    """
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    mine = owned(mesh)
    uneven = {leaf.shape[0] for leaf in jax.tree.leaves(tree) if leaf.shape[0] % len(mine)}
    if uneven:
        raise ValueError(f"rows are split evenly over {len(mine)} devices of this process, got {sorted(uneven)} rows.")
    return _through_key_data(tree, lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows)))


def replicated(tree: PyTree, mesh: Mesh) -> PyTree:
    """A tree that all processes hold alike, whole on every device of the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return _through_key_data(tree, lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)))


def everywhere(tree: PyTree, mesh: Mesh, local: Mesh) -> PyTree:
    """Global arrays of a mesh gathered, whole, onto each device of `local`, which this process owns alone."""
    whole = jax.jit(lambda held: held, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)
    if mesh == local:
        return whole
    return replicated(jax.tree.map(lambda leaf: leaf.addressable_data(0), whole), local)


def batches_of(mesh: Mesh) -> Callable[[int], range]:
    """From a number of items to those that this process holds when they are split over the mesh.

    Numbers beyond the last item stand for padding: every device has equally many.
    """

    def part(count: int) -> range:
        each, mine = -(-count // mesh.size), owned(mesh)
        return range(each * mine.start, each * mine.stop)

    return part


def owned(mesh: Mesh) -> range:
    """The places of this process's devices in the mesh.

    Raises:
        ValueError: They do not stand next to one another, so that no run of rows is theirs.
    """
    mine = [place for place, device in enumerate(mesh.devices) if device.process_index == jax.process_index()]
    if not mine or mine != list(range(mine[0], mine[-1] + 1)):
        raise ValueError(
            f"the devices of a process stand together in a mesh, got places {mine} for process {jax.process_index()}; "
            "make the mesh by all_devices()."
        )
    return range(mine[0], mine[-1] + 1)


def _through_key_data(tree: PyTree, place: Callable[[jax.Array | np.ndarray], jax.Array]) -> PyTree:
    """`place` of every leaf; PRNG keys travel as their words."""

    def one(leaf: jax.Array) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            words = place(np.asarray(jax.random.key_data(leaf)))
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
        return place(leaf)

    return jax.tree.map(one, tree)
