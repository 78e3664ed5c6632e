"""Fit a backend on one device, or on all processes' devices."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key, UInt8

from influence_ssl_jax import randomness
from influence_ssl_jax.curvature.gradients import check_gradients
from influence_ssl_jax.ihvp.backend import Backend
from influence_ssl_jax.ihvp.disk import DiskRows
from influence_ssl_jax.ihvp.gram import Gram
from influence_ssl_jax.parallel import everywhere, is_sharded, replicate, split
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.types import PyTree

Structure: TypeAlias = Any
"""A `jax.tree_util.PyTreeDef`."""


@partial(jax.jit, static_argnums=0)
def fit(backend: Backend, problem: Problem, key: Key[Array, ""]) -> PyTree:
    """Fit a backend in one compiled program.

    Equal backends and problems of equal shapes share the program.

    Args:
        backend: The backend; it is static.
        problem: The problem whose matrix is inverted.
        key: The key of the backend's random numbers.

    Raises:
        CurvatureError: The backend cannot represent the problem's curvature.
    """
    return backend.fit(problem, key)


def fit_checked(problem: Problem, backend: Backend, seed: int) -> PyTree:
    """Fit a backend on one device, after a check of the gradients.

    Args:
        problem: The problem whose matrix is inverted.
        backend: The backend.
        seed: The seed of the backend's random numbers.

    Raises:
        CurvatureError: The backend cannot represent the problem's curvature.
        StructureError: A parameter is loose or unread, or its gradient fails the check against `jax.grad`.
    """
    check_gradients(problem.objective.network, problem)
    return fit(backend, problem, randomness.root(seed, Stream.BACKEND))


class DiskFit:
    """A fit of `Gram` whose rows lie in a file.

    Attributes:
        places: Where the rows of every block are.
        parts: Number of parts in which they are formed: the batches of the curvature set.
    """

    def __init__(self, problem: Problem, backend: Gram, path: Path) -> None:
        """Place the rows in a file; nothing is computed or written.

        Args:
            problem: The problem whose matrix is inverted, on one device.
            backend: The backend.
            path: The file.

        Raises:
            CurvatureError: The backend cannot represent the problem's curvature.
            InfluenceError: There are more rows than the backend allows.
        """
        self._problem, self._backend = problem, backend
        self.places, self.parts = backend.place_rows(problem, path), problem.batches.index.shape[0]

    def shapes(self) -> "Shapes":
        """Return the shapes of what `state` returns."""
        return _shapes(
            partial(self._backend.fit_placed, self._problem, self.places), jnp.zeros((self.parts, 32), jnp.uint8)
        )

    def check(self) -> None:
        """Check the gradients against `jax.grad`.

        Raises:
            StructureError: A parameter is loose or unread, or its gradient fails the check.
        """
        check_gradients(self._problem.objective.network, self._problem)

    def form(self, number: int) -> list[np.ndarray]:
        """Form the rows of a part, block by block."""
        return [np.asarray(part) for part in _form_part(self._backend, self._problem, jnp.int32(number))]

    def state(self, digests: UInt8[np.ndarray, "parts 32"]) -> PyTree:
        """Compute the state from the rows in the file, which are complete."""
        return _fit_placed(self._backend, self._problem, self.places, jnp.asarray(digests))


@partial(jax.jit, static_argnums=0)
def _form_part(backend: Gram, problem: Problem, number: Int[Array, ""]) -> tuple[Array, ...]:
    return backend.form_part(problem, number)


@partial(jax.jit, static_argnums=0)
def _fit_placed(
    backend: Gram, problem: Problem, places: tuple[DiskRows, ...], digests: UInt8[Array, "parts 32"]
) -> PyTree:
    return backend.fit_placed(problem, places, digests)


class Shapes(NamedTuple):
    """The shapes of a fitted state.

    Attributes:
        leaves: Shape and type of its arrays.
        structure: The tree that holds them.
        lengths: For each array, its length without padding if the devices of a process share it (`parallel.Sharded`);
            else None.
    """

    leaves: list[jax.ShapeDtypeStruct]
    structure: Structure
    lengths: tuple[int | None, ...]


def shapes(problem: Problem, backend: Backend, seed: int) -> Shapes:
    """Return the shapes of what `fit_checked` returns; nothing is computed."""
    return _shapes(partial(fit, backend), problem, randomness.root(seed, Stream.BACKEND))  # traced here for the fit too


def _shapes(fitted: Callable[..., PyTree], *arguments: PyTree) -> Shapes:
    """Return the shapes of `fitted(*arguments)`; nothing is computed."""
    seen: list[tuple[Structure, tuple[int | None, ...]]] = []

    def leaves(*arguments: PyTree) -> list[jax.Array]:
        state = fitted(*arguments)
        nodes = jax.tree.leaves(state, is_leaf=is_sharded)  # a shared node is one array
        flat, structure = jax.tree.flatten(state)
        seen.append((structure, tuple(node.length if is_sharded(node) else None for node in nodes)))
        return flat

    return Shapes(jax.eval_shape(leaves, *arguments), *seen[0])


class SplitProblem:
    """A problem whose curvature set is split over a mesh by batches.

    Attributes:
        mesh: The devices of all processes.
        problem: The problem on them; batches of padding (all indices −1) make the parts equal.
        count: Number of batches without padding.
    """

    def __init__(self, problem: Problem, mesh: Mesh) -> None:
        """Split a problem.

        Args:
            problem: The problem of this process: `batches` holds its own part, and all processes have equally many
                (`parallel.batches_of`).
            mesh: The devices of all processes.
        """
        self.mesh = mesh
        self._mine = problem
        self.problem = dataclasses.replace(
            problem,
            params=replicate(problem.params, mesh),
            frozen=replicate(problem.frozen, mesh),
            batches=split(problem.batches, mesh),
        )
        count = jax.jit(lambda index: jnp.sum(jnp.any(index >= 0, axis=1)))(self.problem.batches.index)
        self.count = int(count)
        padding = self.problem.batches.index.shape[0] - self.count
        self.problem = dataclasses.replace(self.problem, padding=padding)

    def shapes(self, backend: Backend, seed: int) -> Shapes:
        """Return the shapes of what `fit` returns."""

        def whole(leaf: jax.Array) -> jax.Array:
            return jnp.broadcast_to(leaf[:1], (self.count, *leaf.shape[1:]))

        return shapes(dataclasses.replace(self._mine, batches=jax.tree.map(whole, self._mine.batches)), backend, seed)

    def fit(self, backend: Backend, seed: int, local: Mesh) -> PyTree:
        """Fit the backend on all devices together.

        The state is whole on each device of this process.

        Args:
            backend: The backend.
            seed: The seed of the backend's random numbers.
            local: The devices of this process.

        Raises:
            CurvatureError: The backend cannot represent the problem's curvature.
            StructureError: A parameter is loose or unread, or its gradient fails the check against `jax.grad`.
        """
        check_gradients(self._mine.objective.network, self._mine)
        with jax.set_mesh(self.mesh):
            state = _fit_unpadded(backend, self.count, self.problem, randomness.root(seed, Stream.BACKEND))
            return everywhere(state, self.mesh, local)


@partial(jax.jit, static_argnums=(0, 1))
def _fit_unpadded(backend: Backend, count: int, problem: Problem, key: Key[Array, ""]) -> PyTree:
    """Fit a backend, and remove padding from a problem in its state."""

    def one(node: PyTree) -> PyTree:
        if not isinstance(node, Problem):
            return node
        batches = jax.tree.map(lambda leaf: leaf[:count], node.batches)
        return dataclasses.replace(node, batches=batches, padding=0)

    return jax.tree.map(one, backend.fit(problem, key), is_leaf=lambda node: isinstance(node, Problem))
