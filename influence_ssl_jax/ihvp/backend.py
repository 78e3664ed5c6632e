"""What an inverse-Hessian backend is, and what damping means in every one of them."""

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar, Generic, Literal, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.errors import CurvatureError, IndefiniteError, InfluenceError
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Params

State = TypeVar("State")

Resolved: TypeAlias = Float[Array, ""] | dict[str, Float[Array, ""]]
"""Damping as a number: one for the whole matrix, or one per block of a backend that is block-diagonal."""


class Spectrum(NamedTuple):
    """Eigenvalues of a matrix, or of one block of it, as often as they occur.

    Attributes:
        values: The eigenvalues, or points that stand for them.
        counts: How many eigenvalues stand at each.
        rank: How many of all are not zero; counted where None.
        resolution: Eigenvalues are counted as zero up to this share of the largest; the number of eigenvalues times the
            relative spacing of their type where None.
    """

    values: Float[Array, " points"]
    counts: Float[Array, " points"]
    rank: int | None = None
    resolution: float | None = None


Spectra: TypeAlias = Spectrum | dict[str, Spectrum]
"""The spectrum of the whole matrix, or of each block of a backend that is block-diagonal."""


@dataclasses.dataclass(frozen=True)
class Damping:
    """λ in `(C + λI)⁻¹`, the same in every backend; of a block-diagonal backend each block's own where it is relative.

    Attributes:
        relative: λ as a multiple of the mean eigenvalue of C.
        absolute: λ itself; replaces the others where given.
        effective_dimension: ρ between 0 and 1: λ for which `tr C(C + λI)⁻¹ = ρ · rank C`, which replaces `relative` where
            given. The share of C's directions whose curvature exceeds λ, counted smoothly: the same for every network and
            curvature set, whatever the number of parameters.
        relative_to: The mean over "all" eigenvalues, tr(C)/P, or over those that are not zero, "nonzero", tr(C)/rank C.
            With more parameters than curvature gradients most are zero, and the first says little about the others.
    """

    relative: float = 0.1
    absolute: float | None = None
    effective_dimension: float | None = None
    relative_to: Literal["all", "nonzero"] = "all"

    def __post_init__(self) -> None:
        """Refuse damping that is not a positive number, and a share of the rank that is none."""
        for name, value in (("relative", self.relative), ("absolute", self.absolute)):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InfluenceError(
                    f"Damping must be positive and finite, got {name}={value}. Without damping C is singular for every network "
                    "with more parameters than data, and the score is undefined; use relative=0.1, 0.1 × the mean eigenvalue."
                )
        share = self.effective_dimension
        if share is not None and not 0 < share < 1:
            raise InfluenceError(
                "The effective dimension is a share of the rank of C, above 0 (λ infinite) and below 1 (λ zero); got "
                f"effective_dimension={share}."
            )
        if share is not None and self.absolute is not None:
            raise InfluenceError(
                f"Damping is given twice, as absolute={self.absolute} and as effective_dimension={share}; give only one."
            )

    @property
    def of_spectrum(self) -> bool:
        """Whether the eigenvalues themselves are needed to find λ, beyond their mean."""
        return self.absolute is None and (self.effective_dimension is not None or self.relative_to == "nonzero")

    def resolve(self, mean_eigenvalue: Resolved) -> Resolved:
        """λ for a matrix, or for each block of one, with these mean eigenvalues.

        A block without curvature (a dead layer) gets that of the strongest block × 1e-6, so that its inverse exists.
        """
        means = jax.tree.leaves(mean_eigenvalue)
        if self.absolute is not None:
            return jnp.asarray(self.absolute, means[0].dtype)
        return _raise_to_floor(jax.tree.map(lambda mean: self.relative * mean, mean_eigenvalue))

    def resolve_by_spectrum(self, spectra: Spectra) -> Resolved:
        """λ for a matrix, or for each block of one, with these eigenvalues; a block without curvature as in `resolve`."""
        if isinstance(spectra, Spectrum):
            return jnp.asarray(self._of(spectra), spectra.values.dtype)
        return _raise_to_floor({name: jnp.asarray(self._of(each), each.values.dtype) for name, each in spectra.items()})

    def _of(self, spectrum: Spectrum) -> float:
        """λ of one spectrum, in float64; zero where there is no curvature, NaN where it is not finite."""
        values, counts = (np.asarray(each, np.float64) for each in spectrum[:2])
        if not np.isfinite(values).all():
            return float("nan")
        if not (values > 0).any():
            return 0.0
        spacing = float(counts.sum()) * float(jnp.finfo(spectrum.values.dtype).eps)
        nonzero = values > values.max() * (spacing if spectrum.resolution is None else spectrum.resolution)
        rank = float(counts[nonzero].sum()) if spectrum.rank is None else float(spectrum.rank)
        if self.effective_dimension is None:
            return self.relative * float(values @ counts) / rank
        values, counts = values[nonzero], counts[nonzero]
        low, high = np.log(values.min()) - 60.0, np.log(values.max()) + 60.0
        for _ in range(100):  # bisection: the effective dimension falls with λ
            middle = (low + high) / 2
            dimension = float(np.sum(counts * values / (values + np.exp(middle))))
            low, high = (middle, high) if dimension > self.effective_dimension * rank else (low, middle)
        return float(np.exp((low + high) / 2))


def _raise_to_floor(resolved: Resolved) -> Resolved:
    """Each block's λ, at least 1e-6 of the largest."""
    floor = 1e-6 * jnp.max(jnp.stack(jax.tree.leaves(resolved)))
    return jax.tree.map(lambda value: jnp.maximum(value, floor), resolved)


class Form(NamedTuple):
    """Values of `gᵀ(C + λI)⁻¹g'` and how well the systems behind them were solved.

    Attributes:
        values: The quadratic or bilinear forms.
        residual: ‖(C + λI)x − g‖ / ‖g‖ of each example's worst solve; zero where the inverse is applied directly.
    """

    values: Float[Array, "*shape"]
    residual: Float[Array, " batch"]


class Assessed(NamedTuple):
    """Forms over all pairs of draws, with what is known of their errors.

    Attributes:
        form: Values [batch, draws, draws] and residuals.
        rounding: A bound of |value − exact form of the fitted C|, where the backend has one.
        left_out: The values by the curvature set without each of m equal parts, at the same λ, where the backend can tell.
        halves: The values by the first and by the second half of the curvature set alone, likewise.
    """

    form: Form
    rounding: Float[Array, "batch draws draws"] | None = None
    left_out: Float[Array, "parts batch draws draws"] | None = None
    halves: Float[Array, "2 batch draws draws"] | None = None


class Interval(NamedTuple):
    """`lower ≤ gᵀ(C + λI)⁻¹g ≤ upper` of every gradient, C the problem's own matrix and not an approximation of it.

    Attributes:
        lower: A bound from below.
        upper: A bound from above.
    """

    lower: Float[Array, " n"]
    upper: Float[Array, " n"]


@dataclasses.dataclass(frozen=True)
class Grid:
    """What is varied.

    Attributes:
        ranks: Eigenpairs of Arnoldi, Nyström and Deflated.
        projections: Size of each side's basis of LoGra.
        iterations: Steps of CG. A product with C for each step and draw: name none on a large network without an
            accelerator.
        depths: Steps of ASTRA and LiSSA; as CG.
        samples: Draws per example of EK-FAC, K-FAC, LoGra, the diagonal and Deflated.
        probes: Random vectors for what Arnoldi and Nyström leave out.
        deflated: Further ranks of Deflated alone, whose scores take no product with C: only fitting gets longer.
        dense: Parameters up to which Exact is compared; its matrix takes a product with C for each.
    """

    ranks: tuple[int, ...] = (16, 64)
    projections: tuple[int, ...] = (8, 16)
    iterations: tuple[int, ...] = (10, 30)
    depths: tuple[int, ...] = (100,)
    samples: int = 4
    probes: int = 16
    deflated: tuple[int, ...] = ()
    dense: int = 3000


class Workspace(NamedTuple):
    """Numbers that scoring holds.

    Attributes:
        fixed: Whatever the batch.
        per_draw: For each draw of an example.
    """

    fixed: int
    per_draw: int


class Backend(abc.ABC, Generic[State]):
    """An approximation of `(C + λI)⁻¹`: fitted once, then asked with any damping.

    Subclasses are final frozen dataclasses: the object is the configuration, the command-line entry and the cache key.
    All methods but `resolve` are pure functions of arrays and may be jitted.
    """

    when_to_use: ClassVar[str]
    """When this backend is the right one, in one sentence for a list of all."""
    vectors_per_draw: ClassVar[int] = 4
    """Vectors of the parameters' size that scoring holds for each draw of an example, as `workspace` counts them."""

    @classmethod
    def variants(cls, grid: Grid) -> "Sequence[Backend]":
        """Return the settings of this backend that a comparison tries; its defaults if it declares no others.

        Args:
            grid: What the comparison varies.
        """
        del grid
        return (cls(),)

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

    def mean_error(self, state: State) -> Float[Array, ""] | None:
        """The relative standard error that random probes leave in `mean_eigenvalue`, and so in relative damping.

        None where the backend knows the trace of the matrix that it fitted, or does not say.
        """
        del state

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

    def workspace(self, state: State, parameters: int) -> Workspace:
        """Return how many numbers scoring holds beside the fitted state and what the network's layers read and write.

        Upper bounds of what XLA allocates; a test compares them with its own account for every backend.

        Args:
            state: The fitted state, or the shapes of its arrays.
            parameters: Number of parameters.
        """
        del state
        return Workspace(0, self.vectors_per_draw * parameters)

    def quadratic_form(self, state: State, gradients: ExampleGradients, damping: Resolved) -> Float[Array, " n"]:
        """`gᵀ(C + λI)⁻¹g` of every gradient; the diagonal of the bilinear form with itself."""
        single = dataclasses.replace(gradients, draws=1)
        return self.draw_gram(state, single, damping).values[:, 0, 0]

    def assess(self, state: State, gradients: ExampleGradients, damping: Resolved) -> Assessed:
        """`draw_gram`, with bounds of rounding and with what the choice of the curvature set leaves open, where known."""
        return Assessed(self.draw_gram(state, gradients, damping))

    def check_own(self, problem: Problem) -> None:
        """Refuse to leave an example's own contribution out of C, where this backend cannot.

        Raises:
            InfluenceError: It cannot.
        """
        del problem
        raise InfluenceError(
            f"{type(self).__name__} cannot leave an image's own contribution out of C, which leave_own_out requests. "
            "Use Gram (backend:gram), which does so exactly; or switch leave_own_out off: the column in_curvature_set marks "
            "the images that are part of C."
        )

    def assess_without_own(
        self, state: State, gradients: ExampleGradients, damping: Resolved, index: Int[Array, " batch"]
    ) -> Assessed:
        """`assess`; of an example that is in the curvature set, with C averaged over the other examples, at the same λ.

        Args:
            state: The fitted state.
            gradients: Those of the examples.
            damping: λ.
            index: The examples' indices in their source.

        Raises:
            InfluenceError: This backend cannot (`check_own`).
        """
        del state, gradients, damping, index
        raise InfluenceError(f"{type(self).__name__} cannot leave an image's own contribution out of C; use Gram.")

    def spectrum(self, state: State) -> Spectra:
        """The eigenvalues of the fitted matrix, from which damping by effective dimension follows.

        Raises:
            InfluenceError: This backend does not know them.
        """
        del state
        raise InfluenceError(
            f"{type(self).__name__} does not know the eigenvalues of C, which damping by effective_dimension or "
            "relative_to='nonzero' needs. Give relative or absolute damping, or use Gram, CG, EKFAC or LoGra."
        )

    def resolve(self, state: State, damping: Damping) -> Resolved:
        """λ in numbers for a fitted matrix.

        Raises:
            CurvatureError: The curvature is zero, or not finite.
            IndefiniteError: C + λI is not positive definite.
            InfluenceError: The damping takes eigenvalues that this backend does not know.
        """
        if damping.of_spectrum:
            resolved = damping.resolve_by_spectrum(self.spectrum(state))
        else:
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
                "The curvature is zero, and so is damping relative to it: the views of the curvature set do not differ, or "
                "no gradient reaches a parameter. Check the perturbation, or give an absolute damping."
            )
        if smallest + least <= 0:
            raise IndefiniteError(smallest, least)
        return resolved


def scalar(damping: Resolved) -> Float[Array, ""]:
    """λ of a backend that treats the matrix as one block.

    Raises:
        TypeError: It was resolved block by block, for another backend.
    """
    if isinstance(damping, dict):
        raise TypeError(
            f"This backend needs one damping for the whole matrix, got one for each of {list(damping)}; resolve it again."
        )
    return damping


def gram_of_features(features: Float[Array, "n width"], draws: int) -> Form:
    """The draw Gram of whitened features `φ = (C + λI)^{-½} g`, draw-major."""
    vectors = features.reshape(draws, -1, features.shape[-1])
    return Form(jnp.einsum("kbf,lbf->bkl", vectors, vectors), jnp.zeros(vectors.shape[1], features.dtype))
