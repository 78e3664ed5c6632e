"""Define the interface of a backend, and the damping of all backends."""

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from influence_ssl_jax.configuration import COUNT, POSITIVE, check_numbers
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.errors import CurvatureError, IndefiniteError, InfluenceError
from influence_ssl_jax.linalg.quadrature import Tridiagonal, anchor_at_zero
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Params

State = TypeVar("State")

_LIMITS = {
    **dict.fromkeys(("restarts", "exact_limit"), (0, COUNT[1])),
    **dict.fromkeys(("tolerance", "accuracy"), (0.0, math.inf)),
    "parts": (2, COUNT[1]),
    "momentum": (0.0, math.nextafter(1.0, 0.0)),
    "expansion": (1.0, math.inf),
    "scale": POSITIVE,
}
"""The least and the greatest value of backends' fields of these names; other whole numbers are counts of at least one."""

Resolved: TypeAlias = Float[Array, ""] | dict[str, Float[Array, ""]]
"""Damping as a number: one for the whole matrix, or one for each block of a block-diagonal backend."""


class Spectrum(NamedTuple):
    """The eigenvalues of a matrix, or of one block, with multiplicities.

    Attributes:
        values: The eigenvalues, or points that represent them.
        counts: Number of eigenvalues at each point.
        rank: The most eigenvalues that can be nonzero, if the counts are estimates; None if they are exact.
        resolution: Eigenvalues up to this share of the largest count as zero; if None, it is the relative spacing of
            their type times their number, or times 1,024 if they are more.
        probes: Number of random vectors behind estimated counts. Points are in equal runs, one for each of them.
        runs: The Lanczos runs behind estimated points. Another quadrature by them bounds the sum of `counts · x/(x + λ)`
            from below, where that over `values` bounds it from above (`anchor_at_zero`).
    """

    values: Float[Array, " points"]
    counts: Float[Array, " points"]
    rank: int | None = None
    resolution: float | None = None
    probes: int | None = None
    runs: Tridiagonal | None = None


Spectra: TypeAlias = Spectrum | dict[str, Spectrum]
"""The spectrum of the whole matrix, or of each block of a block-diagonal backend."""


class DampingError(NamedTuple):
    """How far a λ is known that was computed from random vectors.

    Attributes:
        relative_standard_error: What other random vectors would change; None if none were drawn.
        bounds: Bounds of λ for the vectors that were drawn, if a quadrature stands between them and λ; None otherwise.
    """

    relative_standard_error: float | None
    bounds: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Damping:
    """The damping λ of `(C + λI)⁻¹`, with the same meaning in every backend.

    A block-diagonal backend has one λ for each block if the damping is relative.

    Attributes:
        relative: λ as a multiple of the mean eigenvalue of C.
        absolute: λ itself; it replaces the other fields if it is given.
        effective_dimension: ρ between 0 and 1, which replaces `relative` if it is given: λ is such that
            `tr C(C + λI)⁻¹ = ρ · rank C`. ρ is the share of C's directions whose curvature exceeds λ, counted
            smoothly. It means the same for every network and curvature set, whatever the number of parameters.
        relative_to: The mean over "all" eigenvalues, tr(C)/P, or over the "nonzero" ones, tr(C)/rank C. With more
            parameters than curvature gradients most are zero, and the first mean says little about the others.

    Examples:
        A tenth of the mean eigenvalue, and a given λ:

        >>> import jax.numpy as jnp
        >>> import influence_ssl_jax as isj
        >>> round(float(isj.Damping(relative=0.1).resolve(jnp.asarray(5.0))), 4)
        0.5
        >>> round(float(isj.Damping(absolute=0.01).resolve(jnp.asarray(5.0))), 4)
        0.01
    """

    relative: float = 0.1
    absolute: float | None = None
    effective_dimension: float | None = None
    relative_to: Literal["all", "nonzero"] = "all"

    def __post_init__(self) -> None:
        """Refuse damping outside `(0, ∞)`, and shares outside `(0, 1)`."""
        for name, value in (("relative", self.relative), ("absolute", self.absolute)):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InfluenceError(
                    f"Damping must be positive and finite, got {name}={value}; use relative=0.1, a tenth of the mean "
                    "eigenvalue. Without damping C is singular for every network with more parameters than data, and the "
                    "score is undefined."
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
        """Whether λ depends on the eigenvalues themselves, beyond their mean."""
        return self.absolute is None and (self.effective_dimension is not None or self.relative_to == "nonzero")

    def resolve(self, mean_eigenvalue: Resolved) -> Resolved:
        """Return λ for a matrix or each block, from mean eigenvalues.

        A block without curvature (of a dead layer) gets 1e-6 times the largest λ, so that its inverse exists.
        """
        means = jax.tree.leaves(mean_eigenvalue)
        if self.absolute is not None:
            with np.errstate(over="ignore"):  # `Backend.resolve` refuses what the type cannot hold
                return jnp.asarray(np.asarray(self.absolute).astype(means[0].dtype))
        return _raise_to_floor(jax.tree.map(lambda mean: self.relative * mean, mean_eigenvalue))

    def resolve_by_spectrum(self, spectra: Spectra) -> Resolved:
        """Return λ for a matrix or each block, from the eigenvalues.

        A block without curvature is treated as in `resolve`.

        Examples:
            The eigenvalues are 1 and 1: half of the directions remain, 2 · 1/(1 + λ) = 0.5 · 2, if λ is 1.

            >>> import jax.numpy as jnp
            >>> import influence_ssl_jax as isj
            >>> from influence_ssl_jax.ihvp.backend import Spectrum
            >>> spectrum = Spectrum(values=jnp.asarray([1.0]), counts=jnp.asarray([2.0]))
            >>> round(float(isj.Damping(effective_dimension=0.5).resolve_by_spectrum(spectrum)), 4)
            1.0
        """
        if isinstance(spectra, Spectrum):
            return jnp.asarray(self._of(spectra), spectra.values.dtype)
        return _raise_to_floor({name: jnp.asarray(self._of(each), each.values.dtype) for name, each in spectra.items()})

    def error_by_spectrum(self, spectra: Spectra) -> float | None:
        """Return the relative standard error of λ from random probes, or None.

        It is the jackknife's over the probes, of log λ. None if the eigenvalues are not estimated.
        """
        if not isinstance(spectra, Spectrum) or spectra.probes is None:
            return None
        probes = int(spectra.probes)
        if probes < 2:
            return math.nan
        values, counts = (np.asarray(each, np.float64).reshape(probes, -1) for each in spectra[:2])
        without = []
        for left_out in range(probes):
            kept = (np.delete(each, left_out, axis=0).ravel() for each in (values, counts * (probes / (probes - 1))))
            without.append(math.log(self._of(spectra._replace(**dict(zip(("values", "counts"), kept, strict=True))))))
        return math.sqrt((probes - 1) * np.var(without))

    def bounds_by_spectrum(self, spectra: Spectra) -> tuple[float, float] | None:
        """Bound λ from both sides, for the random vectors that were drawn.

        λ by the exact sums `Σ counts · x/(x + λ)` of these vectors lies between the bounds, whatever rank C is between the
        number of eigenvalues that cannot be zero and the largest possible one. So does the estimate of λ. What other vectors
        would change is `error_by_spectrum`. None if the eigenvalues are known.
        """
        if not isinstance(spectra, Spectrum) or spectra.runs is None or spectra.rank is None:
            return None
        values, counts = (np.asarray(each, np.float64) for each in spectra[:2])
        least_values, least_counts = anchor_at_zero(spectra.runs, float(counts.sum()))
        most = min(float(spectra.rank), float(counts.sum()))
        least = min(float(least_counts[least_values > 0].sum()), most)
        if self.effective_dimension is None:
            trace = self.relative * float(values @ counts)
            low, high = trace / most, trace / least if least > 0 else math.inf
        else:
            low = _with_dimension(least_values, least_counts, self.effective_dimension * most)
            high = _with_dimension(values, counts, self.effective_dimension * least)
        estimate = self._of(spectra)
        return min(low, estimate), max(high, estimate)

    def _of(self, spectrum: Spectrum) -> float:
        """Return λ of one spectrum, computed in float64.

        It is zero if there is no curvature, and NaN if the spectrum is not finite.
        """
        values, counts = (np.asarray(each, np.float64) for each in (spectrum.values, spectrum.counts))
        if not np.isfinite(values).all():
            return float("nan")
        if not (values > 0).any():
            return 0.0
        spacing = min(float(counts.sum()), 1024.0) * float(jnp.finfo(spectrum.values.dtype).eps)
        nonzero = values > values.max() * (spacing if spectrum.resolution is None else spectrum.resolution)
        trace = float(values @ counts)
        if spectrum.rank is not None:
            counts = _at_most(values, counts, float(spectrum.rank))
        values, counts = values[nonzero], counts[nonzero]
        rank = float(counts.sum())  # the dimension without damping, so that a λ exists for every share
        if self.effective_dimension is None:
            return self.relative * trace / rank
        return _with_dimension(values, counts, self.effective_dimension * rank)


def _with_dimension(
    values: Float[np.ndarray, " points"], counts: Float[np.ndarray, " points"], dimension: float
) -> float:
    """Return the λ at which `Σ counts · x/(x + λ)` is `dimension`.

    It is zero if no positive λ gives so much, and infinite if every λ gives more than zero.
    """
    values, counts = values[values > 0], counts[values > 0]
    if counts.sum() <= dimension:
        return 0.0
    if dimension <= 0:
        return math.inf
    low, high = np.log(values.min()) - 60.0, np.log(values.max()) + 60.0
    for _ in range(100):  # bisection: the dimension decreases with λ
        middle = (low + high) / 2
        more = float(np.sum(counts * values / (values + np.exp(middle)))) > dimension
        low, high = (middle, high) if more else (low, middle)
    return float(np.exp((low + high) / 2))


def _at_most(
    values: Float[np.ndarray, " points"], counts: Float[np.ndarray, " points"], rank: float
) -> Float[np.ndarray, " points"]:
    """Return counts of which the largest eigenvalues have `rank` at most.

    The counts of the others are of eigenvalues that are zero.
    """
    order = np.argsort(-values, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    kept = np.empty_like(counts)
    kept[order] = np.clip(rank - before, 0.0, counts[order])
    return kept


def _raise_to_floor(resolved: Resolved) -> Resolved:
    """Raise each block's λ to at least 1e-6 of the largest."""
    floor = 1e-6 * jnp.max(jnp.stack(jax.tree.leaves(resolved)))
    return jax.tree.map(lambda value: jnp.maximum(value, floor), resolved)


class Form(NamedTuple):
    """Values of `gᵀ(C + λI)⁻¹g'`, and the residuals of the systems behind them.

    Attributes:
        values: The quadratic or bilinear forms.
        residual: ‖(C + λI)x − g‖ / ‖g‖ of each example's worst solve; zero if the inverse is applied directly.
    """

    values: Float[Array, "*shape"]
    residual: Float[Array, " batch"]


class Assessed(NamedTuple):
    """Forms for all pairs of draws, with their known errors.

    Attributes:
        form: Values [batch, draws, draws] and residuals.
        rounding: A bound of |value − exact form of the fitted C|, if the backend has one.
        left_out: The values from the curvature set without each of m parts, at the same λ, if the backend can compute
            them. The parts are equal, or differ by one example.
        halves: The values from the first and from the second half of the curvature set alone, likewise.
    """

    form: Form
    rounding: Float[Array, "batch draws draws"] | None = None
    left_out: Float[Array, "parts batch draws draws"] | None = None
    halves: Float[Array, "2 batch draws draws"] | None = None


class Interval(NamedTuple):
    """An interval `lower ≤ gᵀ(C + λI)⁻¹g ≤ upper` for every gradient.

    C is the problem's own matrix, not an approximation of it.

    Attributes:
        lower: The lower bound.
        upper: The upper bound.
    """

    lower: Float[Array, " n"]
    upper: Float[Array, " n"]


@dataclasses.dataclass(frozen=True)
class Grid:
    """The settings that a comparison of backends varies.

    Attributes:
        ranks: Eigenpairs of Arnoldi, Nyström and Deflated.
        projections: Size of each side's basis of LoGra.
        iterations: Steps of CG. Each step and draw needs a product with C: give none on a large network without an
            accelerator.
        depths: Steps of ASTRA and LiSSA; as for CG.
        samples: Draws for each example of EK-FAC, K-FAC, LoGra, the diagonal and Deflated.
        probes: Random vectors for what Arnoldi and Nyström leave out.
        deflated: Further ranks of Deflated alone, whose scores need no product with C: only fitting takes longer.
        dense: Largest number of parameters for which Exact is compared; its matrix needs a product with C for each.
    """

    ranks: tuple[int, ...] = (16, 64)
    projections: tuple[int, ...] = (8, 16)
    iterations: tuple[int, ...] = (10, 30)
    depths: tuple[int, ...] = (100,)
    samples: int = 4
    probes: int = 16
    deflated: tuple[int, ...] = ()
    dense: int = 3000

    def __post_init__(self) -> None:
        """Refuse settings that no backend has."""
        counts = ("ranks", "projections", "iterations", "depths", "samples", "probes", "deflated")
        check_numbers(self, **dict.fromkeys(counts, COUNT), dense=(0, COUNT[1]))


class Workspace(NamedTuple):
    """The number of numbers that scoring holds in memory.

    Attributes:
        fixed: Independent of the batch.
        per_draw: For each draw of an example.
    """

    fixed: int
    per_draw: int


class Backend(abc.ABC, Generic[State]):
    """An approximation of `(C + λI)⁻¹`: fitted once, then used with any damping.

    Subclasses are final frozen dataclasses: the object is the configuration, the command-line entry and the cache
    key. All methods but `resolve` are pure functions of arrays and may be jitted.

    Examples:
        C is fitted once, then `(C + λI)⁻¹ v` is computed for v = (1, 0). One image is seen as itself and as its
        mirror image, and C = 2 (x − x')(x − x')ᵀ with x − x' = (−1, 1):

        >>> import jax, jax.numpy as jnp
        >>> import influence_ssl_jax as isj
        >>> from influence_ssl_jax.augment.crop import HorizontalFlip
        >>> from influence_ssl_jax.augment.transform import AgainstClean
        >>> from influence_ssl_jax.nets.linear import Linear
        >>> from influence_ssl_jax.types import Batch
        >>> objective = isj.Objective(isj.Network(Linear(1)), AgainstClean(HorizontalFlip()), isj.SquaredEuclid())
        >>> image, keys = jnp.asarray([3.0, 4.0]).reshape(1, 1, 1, 2, 1), jax.random.split(jax.random.key(0), (1, 1))
        >>> params = {"dense": {"kernel": jnp.ones((2, 1))}}
        >>> problem = isj.Problem(params, {}, Batch(image, keys, jnp.zeros((1, 1), int)), objective)
        >>> backend = isj.Exact()
        >>> state = backend.fit(problem, jax.random.key(0))
        >>> damping = backend.resolve(state, isj.Damping(absolute=1.0))
        >>> solved = backend.solve(state, {"dense": {"kernel": jnp.asarray([[1.0], [0.0]])}}, damping)
        >>> [round(float(entry), 4) for entry in solved["dense"]["kernel"][:, 0]]  # (1, −1)/2 over 5, (1, 1)/2 over 1
        [0.6, 0.4]
    """

    def __post_init__(self) -> None:
        """Refuse numbers that no computation can take: counts below one, say.

        Raises:
            InfluenceError: A field is outside its limits.
        """
        fields = dataclasses.fields(cast(Any, self))  # every backend is a dataclass
        counts = {field.name: COUNT for field in fields if field.type in (int, int | None)}
        try:
            check_numbers(self, **counts | {name: limits for name, limits in _LIMITS.items() if hasattr(self, name)})
        except ValueError as error:
            raise InfluenceError(f"{type(self).__name__}: {error}") from None

    when_to_use: ClassVar[str]
    """When this backend is the right one: one sentence for lists of all backends."""
    vectors_per_draw: ClassVar[int] = 4
    """Vectors of the parameters' size that scoring holds for each draw of an example, as `workspace` counts them."""
    main_settings: ClassVar[tuple[str, ...]] = ("rank", "iterations", "depth")
    """Fields whose values stand behind the name in tables of comparisons; a backend need not have all of them.

    They tell all `variants` apart.
    """

    @classmethod
    def variants(cls, grid: Grid) -> "Sequence[Backend]":
        """Return the settings of this backend that a comparison tries.

        They are its defaults if it declares no others.

        Args:
            grid: The settings that the comparison varies.
        """
        del grid
        return (cls(),)

    @property
    def definite(self) -> bool:
        """Whether `solve` is positive definite.

        It is not if what lies outside a subspace is dropped.
        """
        return True

    @abc.abstractmethod
    def fit(self, problem: Problem, key: Key[Array, ""]) -> State:
        """Learn C.

        The damping is not an argument, so a sweep over it needs only one fit.

        Args:
            problem: The problem that defines C.
            key: Determines the random numbers of the fit.
        """

    @abc.abstractmethod
    def mean_eigenvalue(self, state: State) -> Resolved:
        """Return tr(C)/P of the whole matrix, or of each block."""

    def mean_error(self, state: State) -> Float[Array, ""] | None:
        """Return the relative standard error of `mean_eigenvalue` from random probes.

        It is also that of relative damping. None if the backend knows the trace of the matrix that it fitted, or does
        not state an error.
        """
        del state

    @abc.abstractmethod
    def smallest_eigenvalue(self, state: State) -> Float[Array, ""]:
        """Estimate the smallest eigenvalue of C.

        It is zero if C is positive semi-definite by construction.
        """

    @abc.abstractmethod
    def solve(self, state: State, vector: Params, damping: Resolved) -> Params:
        """Compute x ≈ (C + λI)⁻¹ v.

        Args:
            state: The fitted state.
            vector: v, a tree of the parameters' structure.
            damping: λ.
        """

    @abc.abstractmethod
    def draw_gram(self, state: State, gradients: ExampleGradients, damping: Resolved) -> Form:
        """Compute `g_kᵀ(C + λI)⁻¹g_l` for all pairs of draws of each example.

        Returns:
            Values [batch, draws, draws] and the residuals.
        """

    @abc.abstractmethod
    def bilinear_form(
        self, state: State, left: ExampleGradients, right: ExampleGradients, damping: Resolved
    ) -> Float[Array, "left right"]:
        """Compute `g_iᵀ(C + λI)⁻¹g_j` between the gradients of two batches: cross influence."""

    def workspace(self, state: State, parameters: int) -> Workspace:
        """Return how many numbers scoring holds in memory.

        Not counted are the fitted state, and what the network's layers read and write. The counts are upper bounds of
        what XLA allocates; a test compares them with its own account for every backend.

        Args:
            state: The fitted state, or the shapes of its arrays.
            parameters: Number of parameters.
        """
        del state
        return Workspace(0, self.vectors_per_draw * parameters)

    def quadratic_form(self, state: State, gradients: ExampleGradients, damping: Resolved) -> Float[Array, " n"]:
        """Compute `gᵀ(C + λI)⁻¹g` of every gradient.

        It is the diagonal of the bilinear form of a batch with itself.
        """
        single = dataclasses.replace(gradients, draws=1)
        return self.draw_gram(state, single, damping).values[:, 0, 0]

    def assess(self, state: State, gradients: ExampleGradients, damping: Resolved) -> Assessed:
        """Compute `draw_gram` with its known errors.

        These are bounds of rounding, and the effect of the choice of the curvature set.
        """
        return Assessed(self.draw_gram(state, gradients, damping))

    def caution(self, problem: Problem) -> str | None:
        """Return what users must know about this backend's C, or None.

        It is said if the backend takes another C than the problem's, and does not approximate it.
        """
        del problem

    def check_own(self, problem: Problem) -> None:
        """Refuse if the backend cannot leave an example's own contribution out.

        Raises:
            InfluenceError: If it cannot.
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
        """Compute `assess`, for each example without its own contribution to C.

        For an example of the curvature set, C is averaged over the other examples, at the same λ.

        Args:
            state: The fitted state.
            gradients: The gradients of the examples.
            damping: λ.
            index: The examples' indices in their source.

        Raises:
            InfluenceError: If this backend cannot (`check_own`).
        """
        del state, gradients, damping, index
        raise InfluenceError(f"{type(self).__name__} cannot leave an image's own contribution out of C; use Gram.")

    def spectrum(self, state: State) -> Spectra:
        """Return the eigenvalues of the fitted matrix, for damping by effective dimension.

        Raises:
            InfluenceError: If this backend does not know them.
        """
        del state
        raise InfluenceError(
            f"{type(self).__name__} does not know the eigenvalues of C, which damping by effective_dimension or "
            "relative_to='nonzero' needs. Give relative or absolute damping, or use Gram, CG, EKFAC or LoGra."
        )

    def damping_error(self, state: State, damping: Damping) -> DampingError:
        """Return how far λ is known: what random vectors and quadrature leave."""
        if damping.absolute is not None:
            return DampingError(None, None)
        if damping.of_spectrum:
            spectrum = self.spectrum(state)
            return DampingError(damping.error_by_spectrum(spectrum), damping.bounds_by_spectrum(spectrum))
        error = self.mean_error(state)
        return DampingError(None if error is None else float(error), None)

    def resolve(self, state: State, damping: Damping) -> Resolved:
        """Return λ as a number for a fitted matrix.

        Raises:
            CurvatureError: If the curvature is zero, or not finite.
            IndefiniteError: If C + λI is not positive definite.
            InfluenceError: If the damping needs eigenvalues that this backend does not know.
        """
        if damping.of_spectrum:
            resolved = damping.resolve_by_spectrum(self.spectrum(state))
        else:
            resolved = damping.resolve(self.mean_eigenvalue(state))
        least = min(float(value) for value in jax.tree.leaves(resolved))
        smallest = float(self.smallest_eigenvalue(state))
        mean = max(float(value) for value in jax.tree.leaves(self.mean_eigenvalue(state)))
        limits = jnp.finfo(jax.tree.leaves(resolved)[0].dtype)
        asked = damping.absolute is not None or (np.isfinite(mean) and mean > 0)
        if asked and not np.isnan(least) and not float(limits.tiny) <= least <= float(limits.max):
            raise InfluenceError(
                f"{damping} is λ = {least:.3g} here, and {limits.dtype} computes with numbers from {limits.tiny:.3g} to "
                f"{limits.max:.3g}. Give a λ nearer to the mean eigenvalue of C, {mean:.3g}."
            )
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
    """Return λ of a backend that treats the matrix as one block.

    Raises:
        TypeError: If it was resolved block by block, for another backend.
    """
    if isinstance(damping, dict):
        raise TypeError(
            f"This backend needs one damping for the whole matrix, got one for each of {list(damping)}; use its own "
            "`resolve`."
        )
    return damping


def gram_of_features(features: Float[Array, "n width"], draws: int) -> Form:
    """Compute the draw Gram of whitened features `φ = (C + λI)^{-½} g` in draw-major order."""
    vectors = features.reshape(draws, -1, features.shape[-1])
    return Form(jnp.einsum("kbf,lbf->bkl", vectors, vectors), jnp.zeros(vectors.shape[1], features.dtype))
