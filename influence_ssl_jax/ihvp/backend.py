"""What an inverse-Hessian backend is, and what damping means in every one of them."""

import abc
import dataclasses
import math
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.errors import CurvatureError, IndefiniteError, InfluenceError
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Params

State = TypeVar("State")

Resolved: TypeAlias = Float[Array, ""] | dict[str, Float[Array, ""]]
"""Damping as a number: one for the whole matrix, or one per block of a backend that is block-diagonal."""


@dataclasses.dataclass(frozen=True)
class Damping:
    """λ in `(C + λI)⁻¹`, the same in every backend.

    Attributes:
        relative: λ as a multiple of the mean eigenvalue of C (of each block's own, where a backend is block-diagonal).
        absolute: λ itself; replaces `relative` where given.
    """

    relative: float = 0.1
    absolute: float | None = None

    def __post_init__(self) -> None:
        """Refuse damping that is not a positive number."""
        for name, value in (("relative", self.relative), ("absolute", self.absolute)):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InfluenceError(
                    f"Damping must be positive and finite, got {name}={value}. Without it C is singular for every network "
                    "with more parameters than data, and the score is undefined; 0.1 × the mean eigenvalue is customary."
                )

    def resolve(self, mean_eigenvalue: Resolved) -> Resolved:
        """λ for a matrix, or for each block of one, with these mean eigenvalues.

        A block without curvature (a dead layer) gets that of the strongest block × 1e-6, so that its inverse exists.
        """
        means = jax.tree.leaves(mean_eigenvalue)
        if self.absolute is not None:
            return jnp.asarray(self.absolute, means[0].dtype)
        floor = 1e-6 * jnp.max(jnp.stack(means))
        return jax.tree.map(lambda mean: self.relative * jnp.maximum(mean, floor), mean_eigenvalue)


class Form(NamedTuple):
    """Values of `gᵀ(C + λI)⁻¹g'` and how well the systems behind them were solved.

    Attributes:
        values: The quadratic or bilinear forms.
        residual: ‖(C + λI)x − g‖ / ‖g‖ of each example's worst solve; zero where the inverse is applied directly.
    """

    values: Float[Array, "*shape"]
    residual: Float[Array, " batch"]


class Interval(NamedTuple):
    """`lower ≤ gᵀ(C + λI)⁻¹g ≤ upper` of every gradient, C the problem's own matrix and not an approximation of it.

    Attributes:
        lower: A bound from below.
        upper: A bound from above.
    """

    lower: Float[Array, " n"]
    upper: Float[Array, " n"]


class Backend(abc.ABC, Generic[State]):
    """An approximation of `(C + λI)⁻¹`: fitted once, then asked with any damping.

    Subclasses are final frozen dataclasses: the object is the configuration, the command-line entry and the cache key.
    All methods but `resolve` are pure functions of arrays and may be jitted.
    """

    @property
    def definite(self) -> bool:
        """Whether `solve` is positive definite; false where what lies outside a subspace is dropped."""
        return True

    @abc.abstractmethod
    def fit(self, problem: Problem, key: Key[Array, ""]) -> State:
        """Learn C. Never sees the damping, so a sweep over it needs no second fit."""

    @abc.abstractmethod
    def mean_eigenvalue(self, state: State) -> Resolved:
        """tr(C)/P of the whole matrix, or of each block."""

    @abc.abstractmethod
    def smallest_eigenvalue(self, state: State) -> Float[Array, ""]:
        """An estimate of the smallest eigenvalue of C; zero where C is positive semi-definite by construction."""

    @abc.abstractmethod
    def solve(self, state: State, vector: Params, damping: Resolved) -> Params:
        """x ≈ (C + λI)⁻¹ v."""

    @abc.abstractmethod
    def draw_gram(self, state: State, gradients: ExampleGradients, damping: Resolved) -> Form:
        """`g_kᵀ(C + λI)⁻¹g_l` over all pairs of draws of each example: values [batch, draws, draws]."""

    @abc.abstractmethod
    def bilinear_form(
        self, state: State, left: ExampleGradients, right: ExampleGradients, damping: Resolved
    ) -> Float[Array, "left right"]:
        """`g_iᵀ(C + λI)⁻¹g_j` between the examples (and draws) of two batches: cross influence."""

    def quadratic_form(self, state: State, gradients: ExampleGradients, damping: Resolved) -> Float[Array, " n"]:
        """`gᵀ(C + λI)⁻¹g` of every gradient; the diagonal of the bilinear form with itself."""
        single = dataclasses.replace(gradients, draws=1)
        return self.draw_gram(state, single, damping).values[:, 0, 0]

    def resolve(self, state: State, damping: Damping) -> Resolved:
        """λ in numbers for a fitted matrix.

        Raises:
            CurvatureError: The curvature is zero, or not finite.
            IndefiniteError: C + λI is not positive definite.
        """
        resolved = damping.resolve(self.mean_eigenvalue(state))
        least = min(float(value) for value in jax.tree.leaves(resolved))
        smallest = float(self.smallest_eigenvalue(state))
        if not np.isfinite(least + smallest):
            raise CurvatureError(
                f"The curvature is not finite (damping {least}, smallest eigenvalue {smallest}): a parameter, a pixel or a "
                "gradient of the curvature set is NaN or too large. Check the checkpoint, or compute in a wider type."
            )
        if least == 0:
            raise CurvatureError(
                "The curvature is zero, so damping relative to it is too: the views of the curvature set do not differ, or "
                "no gradient reaches a parameter. Check the perturbation, or give an absolute damping."
            )
        if smallest + least <= 0:
            raise IndefiniteError(smallest, least)
        return resolved


def whole(damping: Resolved) -> Float[Array, ""]:
    """λ of a backend that treats the matrix as one block.

    Raises:
        TypeError: It was resolved block by block, for another backend.
    """
    if isinstance(damping, dict):
        raise TypeError(f"This backend has one damping for the whole matrix, got one for each of {list(damping)}.")
    return damping


def gram_of_features(features: Float[Array, "n width"], draws: int) -> Form:
    """The draw Gram of whitened features `φ = (C + λI)^{-½} g`, draw-major."""
    vectors = features.reshape(draws, -1, features.shape[-1])
    return Form(jnp.einsum("kbf,lbf->bkl", vectors, vectors), jnp.zeros(vectors.shape[1], features.dtype))
