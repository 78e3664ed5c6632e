"""Fitting a backend, on one device or on all devices of all processes."""

import dataclasses
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from influence_ssl_jax import randomness
from influence_ssl_jax.curvature.check import check_gradients
from influence_ssl_jax.ihvp.backend import Backend
from influence_ssl_jax.parallel import everywhere, replicated, split
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.types import PyTree

Structure: TypeAlias = Any
"""A `jax.tree_util.PyTreeDef`."""


def fitted(problem: Problem, backend: Backend, seed: int) -> PyTree:
    """The backend's state for a problem, on one device.

    Raises:
        CurvatureError: The backend cannot represent the problem's curvature.
        StructureError: A parameter is loose or unread, or its gradient fails the check against `jax.grad`.
    """
    check_gradients(problem.objective.network, problem)
    return jax.jit(backend.fit)(problem, randomness.root(seed, Stream.BACKEND))


class Shapes(NamedTuple):
    """What a state is made of.

    Attributes:
        leaves: Shape and type of its arrays.
        structure: What holds them.
    """

    leaves: list[jax.ShapeDtypeStruct]
    structure: Structure


def shapes(problem: Problem, backend: Backend, seed: int) -> Shapes:
    """Shapes of what `fitted` returns, by tracing alone."""
    structures: list[Structure] = []

    def leaves(problem: Problem, key: jax.Array) -> list[jax.Array]:
        flat, structure = jax.tree.flatten(backend.fit(problem, key))
        structures.append(structure)
        return flat

    return Shapes(jax.eval_shape(leaves, problem, randomness.root(seed, Stream.BACKEND)), structures[0])


class SplitProblem:
    """A problem whose curvature set is split over the devices of a mesh, batch by batch.

    Attributes:
        mesh: The devices of all processes.
        problem: The problem on them; batches of padding (index −1 throughout) fill them up.
        count: Number of batches without padding.
    """

    def __init__(self, problem: Problem, mesh: Mesh) -> None:
        """Split it.

        Args:
            problem: As each process has it: `batches` holds its own part, equally many in all (`parallel.batches_of`).
            mesh: The devices of all processes.
        """
        self.mesh = mesh
        self._mine = problem
        self.problem = dataclasses.replace(
            problem,
            params=replicated(problem.params, mesh),
            frozen=replicated(problem.frozen, mesh),
            batches=split(problem.batches, mesh),
        )
        held = jax.jit(lambda index: jnp.sum(jnp.any(index >= 0, axis=1)))(self.problem.batches.index)
        self.count = int(held)
        padding = self.problem.batches.index.shape[0] - self.count
        self.problem = dataclasses.replace(self.problem, padding=padding)

    def shapes(self, backend: Backend, seed: int) -> Shapes:
        """Shapes of what `fitted` returns."""

        def whole(leaf: jax.Array) -> jax.Array:
            return jnp.broadcast_to(leaf[:1], (self.count, *leaf.shape[1:]))

        return shapes(dataclasses.replace(self._mine, batches=jax.tree.map(whole, self._mine.batches)), backend, seed)

    def fitted(self, backend: Backend, seed: int, local: Mesh) -> PyTree:
        """The backend's state, fitted by all devices together, whole on each device of this process.

        Raises:
            CurvatureError: The backend cannot represent the problem's curvature.
            StructureError: A parameter is loose or unread, or its gradient fails the check against `jax.grad`.
        """
        check_gradients(self._mine.objective.network, self._mine)
        with jax.set_mesh(self.mesh):
            state = jax.jit(lambda problem, key: self._unpadded(backend.fit(problem, key)))(
                self.problem, randomness.root(seed, Stream.BACKEND)
            )
            return everywhere(state, self.mesh, local)

    def _unpadded(self, state: PyTree) -> PyTree:
        """A state without the padding of a problem that it may hold."""

        def one(node: PyTree) -> PyTree:
            if not isinstance(node, Problem):
                return node
            held = jax.tree.map(lambda leaf: leaf[: self.count], node.batches)
            return dataclasses.replace(node, batches=held, padding=0)

        return jax.tree.map(one, state, is_leaf=lambda node: isinstance(node, Problem))
