"""What a block of parameters is, and what it reads of per-example gradients."""

import abc
import functools
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.types import Params, PyTree

Path: TypeAlias = tuple[str, ...]


class Captured(abc.ABC):
    """The per-example gradients of a batch, as far as blocks read them (`gradients.ExampleGradients`).

    They may be of another network than the blocks are cut for: gradients are zero on parameters that it does not read.
    """

    cotangents: Float[Array, "views n embedding"]
    draws: int

    @abc.abstractmethod
    def taps(self, path: Path) -> list[tuple[Array, Array]]:
        """(inputs, output-gradients) of every call of the layer at `path`, leading axes [views, n]; none if unread."""

    @abc.abstractmethod
    def reads(self, path: Path) -> bool:
        """Whether the network reads the parameter at `path`."""

    @abc.abstractmethod
    def leaves(self, paths: tuple[Path, ...]) -> Float[Array, "n size"]:
        """The gradients of single parameters, formed one example at a time."""


class Block(abc.ABC):
    """A group of parameters, seen as `shape`; subclasses are frozen dataclasses, static under `jit`."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Path of the block, joined by slashes."""

    @property
    @abc.abstractmethod
    def paths(self) -> tuple[Path, ...]:
        """The parameters that belong to the block."""

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
    def materialised(self, gradients: Captured) -> Float[Array, "n *shape"]:
        """Every example's gradient of the block, whole."""

    @abc.abstractmethod
    def inner_products(self, gradients: Captured, draws: int) -> Float[Array, "examples {draws} {draws}"]:
        """⟨g_k, g_l⟩ over all pairs of `draws` gradients of each example, that stand draw-major."""

    def gram(self, gradients: Captured) -> Float[Array, "batch draws draws"]:
        """⟨g_k, g_l⟩ over all pairs of draws of each example."""
        return self.inner_products(gradients, gradients.draws)

    def squared_norms(self, gradients: Captured) -> Float[Array, " n"]:
        """‖g_n‖² of every draw, without the pairs."""
        return self.inner_products(gradients, 1)[:, 0, 0]


def draw_gram(gradients: Float[Array, "n *shape"], draws: int) -> Float[Array, "batch draws draws"]:
    """Inner products of the draws of each example, from vectors that stand draw-major."""
    vectors = gradients.reshape(draws, gradients.shape[0] // draws, -1)
    return jnp.einsum("kbf,lbf->bkl", vectors, vectors)


def at(tree: PyTree, path: Path) -> Array:
    """The leaf at a path."""
    return functools.reduce(lambda node, name: node[name], path, tree)


def merged(array: Array) -> Array:
    """[views, n, …] → [views · n, …]."""
    return array.reshape(-1, *array.shape[2:])
