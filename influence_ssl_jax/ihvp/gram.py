"""Invert a sum of few outer products exactly, by its Gram matrix.

The sum is the curvature, and the Gram matrix is that of its rows (Woodbury).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from influence_ssl_jax import trees
from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.curvature.blocks import discover_blocks
from influence_ssl_jax.curvature.contributions import (
    contributions,
    draw_batch_gradients,
    draw_count,
    draw_example_gradients,
    row_count,
)
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.ihvp.backend import Assessed, Backend, Form, Resolved, Spectrum, Workspace, scalar
from influence_ssl_jax.ihvp.disk import SLAB, DiskRows, lay_out
from influence_ssl_jax.ihvp.eigenbasis import refuse_hessian
from influence_ssl_jax.parallel import AXIS, Sharded, devices, exchange, padded_length, shards, specs_of
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Batch, Params, PyTree

SPAN = 256
"""The largest number of products that are added in the working precision; their sums are added in float64."""
TOGETHER = {"cpu": 2**21}
"""How many numbers are read and written for the spans that are computed at once, by platform; 2²⁶ on other platforms.

On a CPU they stay in its cache, and one product of several matrices takes less than half the time of one product for each.
"""
ROWS_PER_GRADIENT = 6
"""How many rows of A are in memory for every gradient that there is room for beside them.

Each product reads all rows: with a few gradients at a time, reading takes longer than multiplying. The patches that the
gradients are formed from share the room.
"""
_UNIT = 2.0**-53
"""The unit roundoff of float64."""
_PAIR = 2.0**-47
"""Relative error of a float64 number that is stored as two float32 numbers."""

Rows: TypeAlias = Sharded | DiskRows
"""The rows of a block in spans of parameters, [spans, rows, span]: in memory, or in a file."""


class Wide(NamedTuple):
    """A float64 array as the sum of two narrower ones.

    Both have the working type, so a program without float64 can store them.
    """

    high: Float[Array, "*shape"]
    low: Float[Array, "*shape"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GramState:
    """`C = AᵀA` by its rows, with `K = AAᵀ = V diag(μ) Vᵀ`.

    Attributes:
        params: Parameters, which define the structure of vectors.
        rows: A, block by block, in spans of at most SPAN parameters: [spans, rows, span], with zeros at the end. On several
            devices each has some spans of every block, and all have equal shares of A. With `rows="disk"`: the places
            of the rows in the file.
        lost: `E Eᵀ`, where E is the part of the rows that is lost by rounding to bfloat16; None if rows are not rounded.
        gram: K.
        eigenvalues: μ, ascending, not below zero.
        eigenvectors: V.
        order: The rows in the order of the curvature set's examples (of its batches, if the loss couples examples).
        members: The index in its source of every example of the curvature set, in that order.
        units: Number of examples of the curvature set (of batches, if the loss couples examples).
        parts: Number of parts of the set that the jackknife leaves out in turn; they are equal, or differ by one example.
        digests: SHA-256 of every part of the file of the rows; None if the rows are in memory.
        blocks: The layers.
    """

    params: Params
    rows: dict[str, Sharded] | dict[str, DiskRows]
    lost: Float[Array, "rows rows"] | None
    gram: Wide
    eigenvalues: Wide
    eigenvectors: Wide
    order: Int[Array, " rows"]
    members: Int[Array, " examples"]
    digests: UInt8[Array, "parts 32"] | None
    units: int = dataclasses.field(metadata={"static": True})
    parts: int = dataclasses.field(metadata={"static": True})
    blocks: cut.Blocks = dataclasses.field(metadata={"static": True})

    @property
    def gram_error(self) -> float:
        """The error of K's entries, relative to the norms of the rows."""
        kept = _PAIR if self.gram.high.dtype == jnp.float32 else 0.0
        return kept + _UNIT * (SPAN + self.spans + 8)

    @property
    def spans(self) -> int:
        """The number of spans of all blocks, on all devices."""
        return sum(part.length for part in self.rows.values())


class _Own(NamedTuple):
    """The rows of A that an example of the curvature set contributes.

    Attributes:
        inside: Whether the example is in the curvature set.
        places: The numbers of its rows; those of some other example if it is not in the set.
    """

    inside: Bool[Array, " batch"]
    places: Int[Array, "batch own"]


class _Products(NamedTuple):
    """`k = A g` and `⟨g_k, g_l⟩` for every example's draws, with error bounds.

    Attributes:
        along: k, [examples, draws, rows].
        between: Inner products of the draws.
        error: η: the error of an entry of k is at most η ‖a_r‖ ‖g‖, that of an inner product at most η ‖g_k‖ ‖g_l‖.
    """

    along: Wide
    between: Wide
    error: float


class _Solved(NamedTuple):
    """The solved systems `(K + λI) c = k`, in float64.

    If an example's own rows are left out of A, the entries of k, c and the residual for these rows are zero.

    Attributes:
        along: k.
        coefficients: c ≈ (K + λI)⁻¹ k.
        residual: k − (K + λI) c, as computed.
    """

    along: Float[Array, "*n rows"]
    coefficients: Float[Array, "*n rows"]
    residual: Float[Array, "*n rows"]


class _Sizes(NamedTuple):
    """Norms for every gradient, in float64, from which rounding is bounded.

    Attributes:
        gradient: ‖g‖.
        weight: Σ_r |c_r| ‖a_r‖.
        residual: A bound of ‖k − (K + λI) c‖.
    """

    gradient: Float[Array, "*n"]
    weight: Float[Array, "*n"]
    residual: Float[Array, "*n"]


class _ScaledForms(NamedTuple):
    """The forms of every pair of draws, times λ, with rounding bounds.

    Attributes:
        values: λ times the forms.
        rounding: The bound of their rounding error.
        coefficients: c.
        residual: The bound of ‖k − (K + λI) c‖.
    """

    values: Wide
    rounding: Wide
    coefficients: Wide
    residual: Wide


@dataclasses.dataclass(frozen=True)
class Gram(Backend[GramState]):
    """Exact inverse of a curvature of few outer products, at any size.

    `(C + λI)⁻¹ = (I − Aᵀ(AAᵀ + λI)⁻¹A) / λ`, where A holds the R gradients whose outer products sum to C. A form is
    `(gᵀg' − kᵀ(K + λI)⁻¹k') / λ` with `k = A g` and `K = AAᵀ` (Woodbury): one product of every gradient with R rows.
    If that difference cancels (g nearly in the span of the rows, small λ), the form is computed as
    `(⟨v, v'⟩ + λ cᵀc') / λ` with `c = (K + λI)⁻¹k` and `v = g − Aᵀc`, in float64 throughout. One fit serves every λ.

    The rows of an `empirical_fisher` are the examples' contributions; those of a `fisher` are its draws (over a whole batch
    if the loss couples examples); those of a `ggn` are draws too, or with `samples=None` every column of a square root of
    the head's Hessian, which makes C the Gauss–Newton matrix itself. Memory: R · P numbers of the type `storage`, shared
    equally by the devices of a process, and on each device 4 R² numbers of the working type (5 R² with bfloat16).

    Each of D devices holds 1/D of every block's parameters, for all rows. The gradients of a batch are divided in the same
    way: a device sends to each other device the part of its gradients that matches that device's rows, and receives the
    products, which it adds in float64. P numbers are sent per example and draw, for any R.

    Rows on a disk are read from a file while a batch is scored: once for its products, and a second time if the forms of
    the batch cancel. So a batch takes at least the time in which the disk reads the file, for any number of examples.
    Memory then holds the gradients of a batch for one layer in place of the rows. Products are added in the same order
    as in memory.

    Every form has a bound of its rounding error (`assess`): that of products in the working precision, of rows stored in
    bfloat16, of K, and of the solve. It holds for C and g as they were computed; the rounding of backpropagation is not
    part of it. The error of a sum of n products is at most n unit roundoffs times the product of the norms, in any order,
    if products are rounded to nearest and none underflows: on a CPU, and on a GPU in full float32.

    Attributes:
        samples: Rows of a `ggn`: draws per example (per batch, if the loss couples examples); None for every output.
        max_rows: Refuse more rows than this: K takes R² numbers and its eigenvectors R³ operations.
        storage: The type in which rows are stored: `working`, that of the parameters, or bfloat16, which halves the memory
            of scoring (not that of fitting) and widens the intervals.
        parts: Parts of the curvature set that are left out in turn, for the standard error that its choice leaves.
        accuracy: The relative bound of rounding above which the forms of a batch are computed without cancellation, at
            two to three times the cost; None takes 2¹⁷ unit roundoffs (0.8 % in float32).
        unexplained: How to treat parameters that no known layer explains.
        rows: The place of the rows: the memory of the devices, or a file in the folder of the scores (`disk`), for one
            device. Only `score` with a folder can use a disk, in Python or on the command line.

    Examples:
        >>> import influence_ssl_jax as isj
        >>> backend = isj.Gram(storage="bfloat16")  # isj.score(encoder, images, backend=backend)
    """

    samples: int | None = 1
    max_rows: int = 4096
    storage: Literal["working", "bfloat16"] = "working"
    parts: int = 16
    accuracy: float | None = None
    unexplained: cut.Unexplained = "error"
    rows: Literal["memory", "disk"] = "memory"
    when_to_use: ClassVar[str] = "Exact for a Fisher of up to a few thousand gradients, with error bounds."
    vectors_per_draw: ClassVar[int] = 0  # gradients are formed block by block, for few examples at a time

    def fit(self, problem: Problem, key: Key[Array, ""]) -> GramState:
        """Form the rows, their Gram matrix in float64, and its eigenvectors.

        The rows are formed batch by batch.

        Raises:
            CurvatureError: The curvature is a Hessian, which is not a sum of outer products.
            InfluenceError: C has more than `max_rows` rows, or rows are to be on a disk.
        """
        del key
        if self.rows == "disk":
            raise InfluenceError(
                "Gram(rows='disk') writes its rows into the folder of the scores, and a fit in memory has none. Call "
                "influence_ssl_jax.score(…, out=FOLDER) or influence-ssl score, or take rows='memory'."
            )
        blocks, _ = self._divide(problem)
        formed = curvature_rows(problem, self.samples, blocks)
        rows, lost = formed, None
        if self.storage == "bfloat16":
            rows, lost = jax.tree.map(_to_bfloat16, formed), jax.tree.map(_rounding_loss, formed)
        return self._complete(problem, blocks, rows, lost, None)

    def place_rows(self, problem: Problem, path: Path) -> tuple[DiskRows, ...]:
        """Place the rows in a file, block by block.

        After rows in bfloat16 come their rounding losses, which only the fit reads.

        Raises:
            CurvatureError: The curvature is a Hessian, which is not a sum of outer products.
            InfluenceError: C has more than `max_rows` rows.
        """
        blocks, count = self._divide(problem)
        shapes = [(spans, count, span) for spans, span in (_cut(block.size) for block in blocks)]
        if self.storage == "bfloat16":
            return lay_out(path, 2 * shapes, jnp.bfloat16)
        return lay_out(path, shapes, jax.tree.leaves(problem.params)[0].dtype)

    def form_part(self, problem: Problem, number: Int[Array, ""]) -> tuple[Float[Array, "spans part span"], ...]:
        """Form one batch's rows, as `place_rows` places them."""
        blocks, _ = self._divide(problem)
        batch = jax.tree.map(lambda leaf: leaf[number], problem.batches)
        formed = [
            _spans(part, *_cut(part.shape[1])) for part in _form_rows(problem, batch, self.samples, blocks).values()
        ]
        formed = jax.lax.optimization_barrier(formed)  # rounded once before what is lost is computed, as in memory
        if self.storage == "bfloat16":
            return (*map(_to_bfloat16, formed), *map(_rounding_loss, formed))
        return tuple(formed)

    def fit_placed(
        self, problem: Problem, places: tuple[DiskRows, ...], digests: UInt8[Array, "parts 32"]
    ) -> GramState:
        """Compute the state of `fit` from rows in a file.

        Args:
            problem: The problem of the rows.
            places: The places of the rows (`place_rows`).
            digests: SHA-256 of every batch's rows.
        """
        blocks, _ = self._divide(problem)
        names = [block.name for block in blocks]
        rows, left = dict(zip(names, places, strict=False)), dict(zip(names, places[len(names) :], strict=False))
        return self._complete(problem, blocks, rows, left or None, digests)

    def _divide(self, problem: Problem) -> tuple[cut.Blocks, int]:
        """Return the layers and the number of rows, or refuse the problem."""
        refuse_hessian(problem, self)
        count = row_count(problem, self.samples)
        if count > self.max_rows:
            raise InfluenceError(
                f"This curvature ({problem.curvature!r}) is a sum of {count:,} outer products, over Gram's limit of "
                f"{self.max_rows:,} rows. Take fewer curvature examples or samples (a 'ggn' with samples=None has a row "
                "for every output of every example), raise max_rows if there is memory for more, or use EKFAC or LoGra."
            )
        return discover_blocks(problem, self.unexplained), count

    def _complete(
        self,
        problem: Problem,
        blocks: cut.Blocks,
        rows: dict[str, Sharded] | dict[str, DiskRows],
        left: dict[str, Sharded] | dict[str, DiskRows] | None,
        digests: UInt8[Array, "parts 32"] | None,
    ) -> GramState:
        """Compute K and its eigenvectors, and make the state.

        `left` has the rounding losses of the rows, if they are rounded.
        """
        dtype = jax.tree.leaves(problem.params)[0].dtype
        lost = None if left is None else _gram_of(left, dtype).high
        gram = _gram_of(rows, dtype)
        with jax.enable_x64(True):
            values, vectors = jnp.linalg.eigh(_join(gram))
            eigenvalues, eigenvectors = _split(jnp.maximum(values, 0.0), dtype), _split(vectors, dtype)
        order, units = _order(problem, self.samples)
        return GramState(
            params=problem.params,
            rows=rows,
            lost=lost,
            gram=gram,
            eigenvalues=eigenvalues,
            eigenvectors=eigenvectors,
            order=jnp.asarray(order),
            members=problem.batches.index[: len(problem.batches.index) - problem.padding].reshape(-1),
            digests=digests,
            units=units,
            parts=min(self.parts, units),
            blocks=blocks,
        )

    def workspace(self, state: GramState, parameters: int) -> Workspace:
        """Return how many numbers scoring holds in memory.

        With rows in memory, these are also the spans that are computed at once, of the working type and in float64. With
        rows on a disk, these are two slabs and four arrays with a batch's gradients of the largest layer.
        """
        spans = [place.size // place.length for place in state.rows.values() if isinstance(place, DiskRows)]
        if not spans:
            together = min(_together(), len(state.gram.high) * max(block.size for block in state.blocks))
            return Workspace(4 * together, super().workspace(state, parameters).per_draw)
        largest = max(*spans, SLAB)
        return Workspace(2 * largest // state.gram.high.dtype.itemsize, 4 * max(block.size for block in state.blocks))

    def formed_at_once(self, state: GramState) -> int:
        """Return how many numbers there is room for at once.

        They are gradients of the largest layer and their patches (ROWS_PER_GRADIENT).
        """
        largest = max(block.size for block in state.blocks)
        return len(state.gram.high) // ROWS_PER_GRADIENT * largest

    def mean_eigenvalue(self, state: GramState) -> Resolved:
        """Return tr(K)/P, which is tr(C)/P."""
        return jnp.trace(state.gram.high) / trees.size(state.params)

    def smallest_eigenvalue(self, state: GramState) -> Float[Array, ""]:
        """Return zero: C is a sum of outer products."""
        return jnp.zeros_like(state.gram.high[0, 0])

    def spectrum(self, state: GramState) -> Spectrum:
        """Return the eigenvalues of K: those of C that are not zero.

        If rows have the relative error ε, an eigenvalue that should be zero can be ε² times the largest one, in each of
        R directions. Here ε is 16 times the spacing of the working type. With rows kept in bfloat16 it can be ‖E‖², E what
        rounding took from the rows.
        """
        values = state.eigenvalues.high
        spacing = 16 * float(jnp.finfo(values.dtype).eps)
        resolution = len(values) * (spacing**2 + 2 * _UNIT)
        if state.lost is not None:
            with jax.enable_x64(True):
                resolution += float(_largest_lost(state) ** 2 / jnp.maximum(_join(state.eigenvalues)[-1], 1e-300))
        return Spectrum(values, jnp.ones_like(values), resolution=resolution)

    def solve(self, state: GramState, vector: Params, damping: Resolved) -> Params:
        """Compute `(v − Aᵀ(K + λI)⁻¹ A v) / λ`, in float64.

        Under `vmap` it is computed for one v after the other.
        """
        cut.check_structure(state.params, vector)
        leaves, structure = jax.tree.flatten((state, vector, scalar(damping)))

        @jax.custom_batching.sequential_vmap  # a batching rule outside `enable_x64` would lose the float64 products
        def solved(leaves: list[Array]) -> Params:
            return _solve_vector(*jax.tree.unflatten(structure, leaves))

        return solved(leaves)

    def draw_gram(self, state: GramState, gradients: ExampleGradients, damping: Resolved) -> Form:
        """Compute forms by the Woodbury identity, for all pairs of draws."""
        return self.assess(state, gradients, damping).form

    def assess(self, state: GramState, gradients: ExampleGradients, damping: Resolved) -> Assessed:
        """Compute forms, rounding bounds, and forms without parts of the curvature set.

        The exact form of C lies within `rounding` of each value. Let `q(c) = ‖g‖² − 2cᵀk + cᵀ(K + λI)c`, which is
        `‖g − Aᵀc‖² + λ‖c‖²`, and `ρ = k − (K + λI)c`. For any c, λ times the form is `q(c) − ρᵀ(K + λI)⁻¹ρ`. So an error
        of the solve has only a second-order effect; the other errors are the rounding of k, ‖g‖² and K in q.
        """
        return self._assess(state, gradients, damping, None)

    def caution(self, problem: Problem) -> str | None:
        """Say that the rows of a `ggn` are drawn."""
        if problem.curvature != "ggn" or self.samples is None:
            return None
        each = "image" if problem.objective.loss.separable else "batch"
        drawn = f"{self.samples} draw{'s' if self.samples > 1 else ''} for each {each}"
        return (
            f"C is not the Gauss–Newton matrix but an estimate of it, by {drawn}: scores are exact and bounded for these "
            "draws alone. --backend.samples None takes every output of every image, if memory allows."
        )

    def check_own(self, problem: Problem) -> None:
        """Check that an example's own rows can be left out.

        Raises:
            InfluenceError: The loss couples the examples of a batch, so that an example has no rows of its own; or the
                curvature set holds an example twice.
        """
        if not problem.objective.loss.separable:
            raise InfluenceError(
                f"{type(problem.objective.loss).__name__} couples the examples of a batch, so no part of C belongs to one "
                "image and leave_own_out has no meaning. Take the curvature of the measurement (--curvature.objective "
                "measurement), or omit leave_own_out: the column in_curvature_set marks the images of the set."
            )
        held = np.asarray(problem.batches.index).reshape(-1)
        held = held[held >= 0]
        if len(np.unique(held)) < len(held):
            raise InfluenceError(
                "leave_own_out needs a curvature set that holds every image once; this one holds some images twice."
            )

    def assess_without_own(
        self, state: GramState, gradients: ExampleGradients, damping: Resolved, index: Int[Array, " batch"]
    ) -> Assessed:
        """Compute `assess`, with an example's C averaged over the other examples.

        For an example outside the curvature set the result is that of `assess`. With J the example's rows and n examples
        in the set, C becomes `n/(n − 1) A_{−J}ᵀA_{−J}`; λ does not change. `(K + λ(n − 1)/n I)⁻¹` without the rows
        and columns J follows from that of all rows by a Schur complement of the size of J: an update of rank one for
        each draw. The error that the choice of the curvature set leaves is not known for these examples (NaN).

        Raises:
            InfluenceError: The curvature set has one example.
        """
        if state.units < 2:
            raise InfluenceError("leave_own_out needs a curvature set of at least two images, got one.")
        same = state.members[None, :] == index[:, None]
        unit = jnp.argmax(same, axis=1)
        return self._assess(
            state, gradients, damping, _Own(jnp.any(same, axis=1), state.order.reshape(state.units, -1)[unit])
        )

    def _assess(self, state: GramState, gradients: ExampleGradients, damping: Resolved, own: _Own | None) -> Assessed:
        """Compute forms by the fast formula, or the other if needed."""
        value = scalar(damping)
        fast = self._forms_by_difference(state, self._products(state, gradients, False), value, own)
        accuracy = 2.0**17 * float(jnp.finfo(value.dtype).eps) / 2 if self.accuracy is None else self.accuracy
        sizes, bound = (jnp.einsum("bkk->bk", each.high) for each in (fast.values, fast.rounding))
        careful = jnp.any(bound > accuracy * sizes)
        # Devices that share A compute together: if one needs the other formula, all compute it, and each keeps its choice.
        scaled = jax.lax.cond(
            jax.lax.pmax(careful, AXIS) if shards() > 1 else careful,
            lambda: self._forms_by_sum(state, gradients, value, own),
            lambda: fast,
        )
        if shards() > 1:
            scaled = jax.tree.map(lambda positive, subtracted: jnp.where(careful, positive, subtracted), scaled, fast)
        return _assess_forms(state, scaled, value, own)

    def bilinear_form(
        self, state: GramState, left: ExampleGradients, right: ExampleGradients, damping: Resolved
    ) -> Float[Array, "left right"]:
        """Compute forms between two batches by the Woodbury identity.

        They are computed without cancellation.
        """
        value = scalar(damping)
        sides = [dataclasses.replace(side, draws=1) for side in (left, right)]
        coefficients: list[Wide] = []
        for side in sides:
            products = self._products(state, side, True)
            with jax.enable_x64(True):
                along = _join(products.along)
                solved = _solve(state, along, jnp.broadcast_to(_double(value), len(along)), None)
                coefficients.append(_split(solved.coefficients[:, 0], value.dtype))
        parts = []
        for block in state.blocks:
            a, b = (block.materialise(side).reshape(side.cotangents.shape[1], -1) for side in sides)
            parts.append(_between(state.rows[block.name], a, b, coefficients[0], coefficients[1]))
        with jax.enable_x64(True):
            a, b = map(_join, coefficients)
            total = _total(parts) / _double(value) + a @ b.T
            return jax.lax.convert_element_type(total, value.dtype)

    def _products(self, state: GramState, gradients: ExampleGradients, precise: bool) -> _Products:
        """Compute k and the draws' inner products, layer by layer.

        If `precise`, all products are in float64.
        """
        dtype, read = state.gram.high.dtype, []
        for block in state.blocks:
            if not gradients.program.read.isdisjoint(block.leaves):
                rows = state.rows[block.name]
                read.append(_map_examples(block, gradients, partial(_inner, rows, precise), rows, None))
        with jax.enable_x64(True):
            along, between = (_split(_total(each), dtype) for each in zip(*read, strict=True))
        unit = _UNIT if precise else float(jnp.finfo(dtype).eps) / 2
        kept = _PAIR if dtype == jnp.float32 else 0.0
        return _Products(along, between, 1.01 * (SPAN + 2) * unit + _UNIT * (state.spans + 2) + kept)

    def _forms_by_difference(
        self, state: GramState, products: _Products, damping: Float[Array, ""], own: _Own | None
    ) -> _ScaledForms:
        """Compute λ times the forms as `⟨g, g'⟩ − kᵀc' − cᵀρ'`."""
        with jax.enable_x64(True):
            along = _join(products.along)
            value = _each(state, _double(damping), own, len(along))
            solved = _solve(state, along, value, own)
            sizes = _sizes(state, solved, _squares(_join(products.between)), products.error)
            values = (
                _join(products.between)
                - jnp.einsum("bkr,blr->bkl", solved.along, solved.coefficients)
                - jnp.einsum("bkr,blr->bkl", solved.coefficients, solved.residual)
            )
            rows = solved.along.shape[-1]
            error = products.error + 4 * rows * _UNIT
            n, w = sizes.gradient, sizes.weight
            rounding = error * (_pairs(n, n) + _pairs(n, w) + _pairs(w, n)) + (
                state.gram_error + 4 * rows * _UNIT
            ) * _pairs(w, w)
            rounding = rounding + _bound_solve(state, sizes.residual, value)
            return _pack_forms(values, rounding, solved, sizes.residual, damping.dtype)

    def _forms_by_sum(
        self, state: GramState, gradients: ExampleGradients, damping: Float[Array, ""], own: _Own | None
    ) -> _ScaledForms:
        """Compute λ times the forms as `⟨v, v'⟩ + λ cᵀc'`, `v = g − Aᵀc`.

        Every gradient is formed two more times, in float64 throughout.
        """
        products = self._products(state, gradients, True)
        with jax.enable_x64(True):
            along = _join(products.along)
            value = _each(state, _double(damping), own, len(along))
            solved = _solve(state, along, value, own)
            sizes = _sizes(state, solved, _squares(_join(products.between)), products.error)
            coefficients = _split(solved.coefficients, damping.dtype)
        left = [
            _map_examples(block, gradients, partial(_outside, rows), rows, coefficients)
            for block, rows in ((block, state.rows[block.name]) for block in state.blocks)
            if not gradients.program.read.isdisjoint(block.leaves)
        ]
        # Blocks that the gradients do not reach have v = −Aᵀc.
        unread = [block.name for block in state.blocks if gradients.program.read.isdisjoint(block.leaves)]
        with jax.enable_x64(True):
            c = _join(coefficients)
            outside = _total(left)
            for name in unread:
                nothing = jnp.zeros((*c.shape[:2], _width(state, name)), damping.dtype)
                outside = outside + _join(_by_shards(partial(_outside, state.rows[name]), nothing, coefficients))
            values = outside + value[:, None, None] * jnp.einsum("bkr,blr->bkl", c, c)
            rows = c.shape[-1]
            doubt = (rows + 4) * _UNIT * (sizes.gradient + sizes.weight)
            length = _squares(outside) + doubt
            relative = (SPAN + state.spans + rows + 8) * _UNIT + (_PAIR if damping.dtype == jnp.float32 else 0.0)
            rounding = _pairs(length, doubt) + _pairs(doubt, length) + relative * jnp.abs(values)
            rounding = rounding + relative * _pairs(length, length)
            rounding = rounding + _bound_solve(state, sizes.residual, value)
            return _pack_forms(values, rounding, solved, sizes.residual, damping.dtype)


def _solve_vector(state: GramState, vector: Params, damping: Float[Array, ""]) -> Params:
    """Compute `(v − Aᵀ(K + λI)⁻¹ A v) / λ`."""
    parts = {block.name: block.read(vector) for block in state.blocks}
    flat = {name: part.reshape(1, 1, -1) for name, part in parts.items()}
    products = [_by_shards(partial(_inner, state.rows[name], True), part, None)[0] for name, part in flat.items()]
    with jax.enable_x64(True):
        value = _double(damping)
        solved = _split(_solve(state, _total(products), value[None], None).coefficients, damping.dtype)
        solution = {}
        for name, part in flat.items():
            left = _over_spans(
                lambda a, v: (jnp.zeros(()), _double(v) - _join(solved)[0] @ _double(a)),
                jnp.zeros(()),
                state.rows[name],
                part[0],
            )[1]
            joined = left.reshape(-1)[: part.shape[-1]] / value
            solution[name] = jax.lax.convert_element_type(joined, part.dtype).reshape(parts[name].shape)
    return cut.assemble(vector, state.blocks, solution)


def curvature_rows(problem: Problem, samples: int | None, blocks: cut.Blocks) -> dict[str, Sharded]:
    """Return each block's gradients whose outer products sum to C.

    Their shapes are [spans, rows, span]. They are formed batch by batch. Under a mesh every device forms the rows of its
    own batches, and sends to each other device the spans that this device holds.
    """
    number, dtype = problem.batches.index.shape[0], jax.tree.leaves(problem.params)[0].dtype
    each, count = row_count(problem, samples) // (number - problem.padding), devices()
    sizes = {block.name: _cut(block.size) for block in blocks}

    def form(batch: Batch) -> dict[str, Array]:
        """Form one batch's rows, divided over the devices: [devices, spans, rows, span]."""
        device_spans = {}
        for name, part in _form_rows(problem, batch, samples, blocks).items():
            spans, span = sizes[name]
            cut_up = _spans(part, padded_length(spans, count), span)
            device_spans[name] = cut_up.reshape(count, -1, *cut_up.shape[1:])
        return device_spans

    form = jax.jit(form, inline=True)  # traced once, for the shapes and for the loop

    def step(held: dict[str, Array], item: tuple[Array, Batch]) -> tuple[dict[str, Array], None]:
        place, batch = item
        if count == 1:  # then no batch is padding
            parts = form(batch)
        else:
            nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(form, batch))
            parts = exchange(jax.lax.cond(jnp.any(batch.index >= 0), lambda: form(batch), lambda: nothing))
        return {
            name: jax.lax.dynamic_update_slice_in_dim(held[name], jnp.swapaxes(part, 0, 1), place * each, 2)
            for name, part in parts.items()
        }, None

    def of_batches(batches: Batch) -> dict[str, Array]:
        """Collect this device's spans of all rows, from all batches."""
        own, empty = len(batches.index), {}
        for name, (spans, span) in sizes.items():
            empty[name] = jnp.zeros((padded_length(spans, count) // count, count, own * each, span), dtype)
        held = jax.lax.scan(step, empty, (jnp.arange(own), batches))[0]
        return {name: part.reshape(len(part), -1, part.shape[-1]) for name, part in held.items()}

    if count > 1:
        spec = PartitionSpec(AXIS)
        of_batches = jax.shard_map(of_batches, in_specs=spec, out_specs=spec, check_vma=False)
    rows = of_batches(problem.batches)
    return {name: Sharded(part[:, : each * (number - problem.padding)], sizes[name][0]) for name, part in rows.items()}


def _form_rows(
    problem: Problem, batch: Batch, samples: int | None, blocks: cut.Blocks
) -> dict[str, Float[Array, "rows size"]]:
    """Form a batch's rows of A, scaled so that `AᵀA = C`."""
    batches, dtype = problem.batches.index.shape[0] - problem.padding, jax.tree.leaves(problem.params)[0].dtype
    scale = 1 / math.sqrt(batches * (draw_count(problem, samples) or 1))
    return {name: (scale * part).astype(dtype) for name, part in batch_rows(problem, batch, samples, blocks).items()}


def _to_bfloat16(rows: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Round rows to bfloat16."""
    return rows.astype(jnp.bfloat16)


def _rounding_loss(rows: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return the part of the rows that rounding to bfloat16 loses."""
    return (rows - _to_bfloat16(rows).astype(rows.dtype)).astype(jnp.bfloat16)


def batch_rows(
    problem: Problem, batch: Batch, samples: int | None, blocks: cut.Blocks
) -> dict[str, Float[Array, "rows size"]]:
    """Form a batch's gradients whose outer products make up its curvature.

    The sum of the outer products, divided by the number of draws, is the curvature of the batch.
    """
    gradients = batch_gradients(problem, batch, samples)
    if isinstance(gradients, ExampleGradients):
        return {block.name: block.materialise(gradients).reshape(gradients.cotangents.shape[1], -1) for block in blocks}
    rows = {block.name: jax.vmap(block.read)(gradients) for block in blocks}
    return {name: part.reshape(len(part), -1) for name, part in rows.items()}


def batch_gradients(problem: Problem, batch: Batch, samples: int | None) -> ExampleGradients | Params:
    """Compute the gradients of `batch_rows`, per example or per batch.

    If the loss couples examples, they are gradients of the whole batch, with a leading axis of draws or examples.
    """
    if problem.curvature == "empirical_fisher":
        return contributions(problem, batch)
    draws = draw_count(problem, samples)
    return (draw_example_gradients if problem.objective.loss.separable else draw_batch_gradients)(problem, batch, draws)


def _order(problem: Problem, samples: int | None) -> tuple[Int[np.ndarray, " rows"], int]:
    """Return the order of rows by example, and the number of examples.

    If the loss couples examples, these are the order by batch and the number of batches.
    """
    number, size = problem.batches.index.shape
    number, count = number - problem.padding, row_count(problem, samples)
    rows = np.arange(count)
    if not problem.objective.loss.separable:  # even a contribution depends on the other examples of its batch
        return rows, number
    return rows.reshape(number, -1, size).swapaxes(1, 2).reshape(-1), number * size


def _cut(size: int) -> tuple[int, int]:
    """Return the number of spans of a block, and their length."""
    spans = -(-size // SPAN)
    return spans, -(-size // spans)


def _spans(rows: Float[Array, "n size"], spans: int, span: int) -> Float[Array, "spans n span"]:
    """Divide rows into spans, with zeros at the end."""
    return jnp.swapaxes(_pad(rows, spans * span).reshape(-1, spans, span), 0, 1)


def _pad(rows: Float[Array, "n size"], width: int) -> Float[Array, "n width"]:
    """Append zeros to rows."""
    return jnp.pad(rows, ((0, 0), (0, width - rows.shape[1])))


def _columns(rows: Float[Array, "n size"], first: Int[Array, ""] | int, count: int) -> Float[Array, "n count"]:
    """Return some columns, without a copy of the others."""
    return jax.lax.dynamic_slice_in_dim(rows, first, count, axis=1)


def _width(state: GramState, name: str) -> int:
    """Return the number of parameters of a block."""
    return next(block.size for block in state.blocks if block.name == name)


def _map_examples(
    block: cut.Block,
    gradients: ExampleGradients,
    compute: Callable[[Float[Array, "some draws size"], PyTree], PyTree],
    rows: Rows,
    beside: PyTree,
) -> PyTree:
    """Sum `compute` over the parameters of a block, for every example (`_by_shards`).

    If rows are in memory, the gradients of a few examples are formed and multiplied at a time. If they are in a file,
    all gradients of the block are formed first, and multiplied in one pass over the file.
    """
    if isinstance(rows, Sharded):
        room = _count(rows) // ROWS_PER_GRADIENT * block.size
        return block.map_examples(gradients, partial(_by_shards, compute), beside, room)
    return _by_shards(compute, block.map_examples(gradients, lambda formed, _: formed, None), beside)


def _over_spans(
    compute: Callable[..., tuple[PyTree, PyTree]],
    start: PyTree,
    rows: Rows,
    *vectors: Float[Array, "_ size"],
) -> tuple[PyTree, PyTree]:
    """Apply `compute(A_s, g_s, …)` to a block's spans s.

    Its first results are summed, its second results are stacked. Several spans are computed at once (about TOGETHER
    numbers). If rows are in a file, one slab of them at a time is in memory; the order of the spans is the same.
    """

    def fold(total: PyTree, part: Array, vectors: list[Array]) -> tuple[PyTree, PyTree]:
        length, count, span = part.shape
        one = [
            jax.ShapeDtypeStruct((size, span), of.dtype)
            for size, of in ((count, part), *((len(v), v) for v in vectors))
        ]
        group = min(length, _spans_at_once(compute, one))
        if group == 1:

            def step(total: PyTree, item: tuple[Array, Array]) -> tuple[PyTree, PyTree]:
                number, a = item
                summed, kept = compute(a, *(_columns(each, number * span, span) for each in vectors))
                return jax.tree.map(jnp.add, total, summed), kept

            return jax.lax.scan(step, total, (jnp.arange(length, dtype=jnp.int32), part))

        def add_group(total: PyTree, first: Int[Array, ""] | int, count: int) -> tuple[PyTree, PyTree]:
            some = [_spans(_columns(each, first * span, count * span), count, span) for each in vectors]
            parts, kept = jax.vmap(compute)(jax.lax.dynamic_slice_in_dim(part, first, count), *some)  # no copy of all
            return _add_parts(total, parts, count), kept

        groups, rest = divmod(length, group)
        firsts = group * jnp.arange(groups, dtype=jnp.int32)
        total, kept = jax.lax.scan(lambda total, first: add_group(total, first, group), total, firsts)
        kept = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), kept)
        if not rest:
            return total, kept
        total, last = add_group(total, groups * group, rest)
        return total, jax.tree.map(lambda *parts: jnp.concatenate(parts), kept, last)

    if isinstance(rows, Sharded):
        length, _, span = rows.array.shape
        return fold(start, rows.array, [_pad(each, length * span) for each in vectors])
    span, padded = rows.span, [_pad(each, rows.length * rows.span) for each in vectors]
    slabs, rest = divmod(rows.length, rows.at_once)
    whole = slabs * rows.at_once

    def of_slab(total: PyTree, first: Int[Array, ""]) -> tuple[PyTree, PyTree]:
        parts = [_columns(each, first * span, rows.at_once * span) for each in padded]
        return fold(total, rows.read(first, rows.at_once), parts)

    total, stacked = jax.lax.scan(of_slab, start, rows.at_once * jnp.arange(slabs, dtype=jnp.int32))
    stacked = jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), stacked)
    if not rest:
        return total, stacked
    total, last = fold(total, rows.read(jnp.int32(whole), rest), [each[:, whole * span :] for each in padded])
    return total, jax.tree.map(lambda *parts: jnp.concatenate(parts), stacked, last)


def _together() -> int:
    """Return the limit `TOGETHER` of this platform."""
    return TOGETHER.get(jax.default_backend(), 2**26)


def _add_parts(total: PyTree, parts: PyTree, count: int) -> PyTree:
    """Add the results of spans.

    On a CPU they are added one after the other, so the bits do not depend on how many are computed at once.
    """
    if jax.default_backend() != "cpu":
        return jax.tree.map(lambda total, part: total + jnp.sum(part, axis=0), total, parts)

    def add(total: PyTree, part: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, part), None

    return jax.lax.scan(add, total, parts, unroll=min(count, 16))[0]


def _spans_at_once(compute: Callable[..., tuple[PyTree, PyTree]], span: Sequence[jax.ShapeDtypeStruct]) -> int:
    """Return the number of spans to compute at once, at least 1.

    Args:
        compute: What is computed of each span.
        span: The shapes of its arguments.
    """
    results = jax.tree.leaves(jax.eval_shape(compute, *span))
    return max(1, _together() // sum(math.prod(leaf.shape) for leaf in (*results, *span)))


def _gram_of(rows: dict[str, Sharded] | dict[str, DiskRows], dtype: jax.typing.DTypeLike) -> Wide:
    """Compute `AAᵀ` with every product and sum in float64.

    Each device adds its spans, then the sums of all devices are added.
    """

    def total_of(rows: list[Rows]) -> Array:
        with jax.enable_x64(True):

            def compute(part: Array) -> tuple[Array, None]:
                wide = _double(part)
                return wide @ wide.T, None

            total = jnp.zeros((_count(rows[0]),) * 2, jnp.float64)
            for part in rows:
                total = _over_spans(compute, total, part)[0]
            return jax.lax.psum(total, AXIS) if shards() > 1 else total

    every = list(rows.values())
    if devices() > 1:
        specs = (specs_of(every),)
        total_of = jax.shard_map(total_of, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    with jax.enable_x64(True):
        return _split(total_of(every), dtype)


def _count(rows: Rows) -> int:
    """Return the number of rows."""
    return rows.array.shape[1] if isinstance(rows, Sharded) else rows.rows


def _by_shards(
    compute: Callable[[Float[Array, "some draws part"], PyTree], PyTree],
    gradients: Float[Array, "some draws size"],
    beside: PyTree,
) -> PyTree:
    """Return `compute(gradients, beside)`, summed over the devices' shares of parameters.

    Every device computes the sums over its own parameters for the examples of all devices, one device after the other,
    so that a result does not depend on the device of its example. The parts are added in the order of the devices.

    Args:
        compute: A function from gradients with respect to this device's parameters to arrays in float64, with a leading
            axis of examples.
        gradients: The whole gradients of some examples of this device.
        beside: Further arrays of these examples, with the same leading axis.

    Returns:
        The sums, each a `Wide`.
    """
    count, dtype = shards(), gradients.dtype
    with jax.enable_x64(True):
        if count == 1:
            sums = compute(gradients, beside)
        else:
            some, draws, size = gradients.shape
            spans, span = _cut(size)
            width = padded_length(spans, count) * span
            parts = jnp.pad(gradients, ((0, 0), (0, 0), (0, width - size))).reshape(some, draws, count, -1)
            theirs = exchange(jnp.moveaxis(parts, 2, 0)), jax.lax.all_gather(beside, AXIS)
            partial_sums = exchange(jax.lax.map(lambda item: compute(*item), theirs))
            sums = jax.tree.map(lambda part: jnp.sum(part, axis=0), partial_sums)
        return jax.tree.map(lambda total: _split(total, dtype), sums)


def _inner(
    rows: Rows, precise: bool, gradients: Float[Array, "some draws size"], _: None
) -> tuple[Float[Array, "some draws rows"], Float[Array, "some draws draws"]]:
    """Compute `A g` and `⟨g_k, g_l⟩` for examples' gradients of one block, in float64."""
    some, draws, size = gradients.shape
    kind = jnp.float64 if precise else gradients.dtype

    def compute(a: Array, g: Array) -> tuple[tuple[Array, Array], None]:
        a, g = (jax.lax.convert_element_type(each, kind) for each in (a, g))
        along = jnp.matmul(a, g.T, precision="highest")  # rows first: XLA's kernels for CPUs take half the time
        apart = g.reshape(some, draws, -1)
        between = jnp.einsum("mks,mls->mkl", apart, apart, precision="highest")
        return (_double(along), _double(between)), None

    start = jnp.zeros((_count(rows), some * draws), jnp.float64), jnp.zeros((some, draws, draws), jnp.float64)
    along, between = _over_spans(compute, start, rows, gradients.reshape(-1, size))[0]
    return along.T.reshape(some, draws, -1), between


def _outside(
    rows: Rows, gradients: Float[Array, "some draws size"], coefficients: Wide
) -> Float[Array, "some draws draws"]:
    """Compute `⟨v_k, v_l⟩`, `v = g − Aᵀc`, for examples' gradients of one block, in float64."""
    some, draws, size = gradients.shape
    c = _join(coefficients).reshape(some * draws, -1)

    def compute(a: Array, g: Array) -> tuple[Array, None]:
        v = (_double(g) - c @ _double(a)).reshape(some, draws, -1)
        return jnp.einsum("mks,mls->mkl", v, v), None

    start = jnp.zeros((some, draws, draws), jnp.float64)
    return _over_spans(compute, start, rows, gradients.reshape(-1, size))[0]


def _between(
    rows: Rows,
    left: Float[Array, "left size"],
    right: Float[Array, "right size"],
    of_left: Wide,
    of_right: Wide,
) -> Wide:
    """Compute `⟨v, v'⟩`, `v = g − Aᵀc`, between two batches' gradients of one block."""
    with jax.enable_x64(True):
        a, b = _join(of_left), _join(of_right)

        def compute(part: Array, g: Array, h: Array) -> tuple[Array, None]:
            wide = _double(part)
            return (_double(g) - a @ wide) @ (_double(h) - b @ wide).T, None

        start = jnp.zeros((len(left), len(right)), jnp.float64)
        return _split(_over_spans(compute, start, rows, left, right)[0], left.dtype)


def _each(state: GramState, damping: Float[Array, ""], own: _Own | None, count: int) -> Float[Array, " batch"]:
    """Return the λ of every example.

    Without rows J, `(C_{−J} + λI)⁻¹ = (n − 1)/n (A_{−J}ᵀA_{−J} + λ(n − 1)/n I)⁻¹`.
    """
    if own is None:
        return jnp.broadcast_to(damping, count)
    return jnp.where(own.inside, damping * (state.units - 1) / state.units, damping)


def _solve(
    state: GramState, along: Float[Array, "batch draws rows"], damping: Float[Array, " batch"], own: _Own | None
) -> _Solved:
    """Solve `(K + λI) c = k` in float64 by `c = V (μ + λ)⁻¹ Vᵀ k`.

    c is rounded to a sum of two numbers of the working type, and the residual is that of the rounded c.

    Args:
        state: The fitted state.
        along: k.
        damping: The λ of every example.
        own: The rows that are left out of A for every example; None leaves none out.
    """
    values, vectors, gram = map(_join, (state.eigenvalues, state.eigenvectors, state.gram))
    weights = 1 / (values[None] + damping[:, None])
    solution = jnp.einsum("bkr,br->bkr", along @ vectors, weights) @ vectors.T
    absent = None
    if own is not None:

        def less(item: tuple[Array, ...]) -> Array:
            """Solve without the rows and columns of one example."""
            c, weight, places = item
            rows = vectors[places]
            factor = jax.scipy.linalg.cho_factor(_scale(rows, weight) @ rows.T, lower=True)
            return c - _scale(jax.scipy.linalg.cho_solve(factor, c[:, places].T).T @ rows, weight) @ vectors.T

        absent = jnp.zeros(along[:, 0].shape, bool).at[jnp.arange(len(along))[:, None], own.places].set(True)
        absent = (absent & own.inside[:, None])[:, None]
        corrected = jax.lax.map(less, (solution, weights, own.places))
        solution = jnp.where(own.inside[:, None, None], jnp.where(absent, 0.0, corrected), solution)
        along = jnp.where(absent, 0.0, along)
    coefficients = _join(_split(solution, state.gram.high.dtype))
    residual = along - coefficients @ gram - damping[:, None, None] * coefficients
    return _Solved(along, coefficients, residual if absent is None else jnp.where(absent, 0.0, residual))


def _sizes(state: GramState, solved: _Solved, gradient: Float[Array, "*n"], error: float) -> _Sizes:
    """Compute the norms; that of the residual includes the rounding of k."""
    lengths = jnp.sqrt(jnp.diagonal(_join(state.gram)))
    weight = jnp.abs(solved.coefficients) @ lengths
    trace = jnp.sqrt(jnp.sum(lengths**2))
    rounded = trace * (error * gradient + (state.gram_error + 4 * len(lengths) * _UNIT) * weight)
    return _Sizes(gradient, weight, jnp.linalg.norm(solved.residual, axis=-1) + rounded)


def _bound_solve(state: GramState, residual: Float[Array, "batch draws"], damping: Float[Array, " batch"]) -> Array:
    """Bound `ρᵀ(K + λI)⁻¹ρ'` for all pairs of draws.

    The bound holds for K without some rows too, because its smallest eigenvalue is not smaller.
    """
    return _pairs(residual, residual) / (_least(state) + damping)[:, None, None]


def _least(state: GramState) -> Float[Array, ""]:
    """Bound the smallest eigenvalue of K from below."""
    return jnp.maximum(_join(state.eigenvalues)[0] - _slack(state), 0.0)


def _slack(state: GramState) -> Float[Array, ""]:
    """Bound the error of an eigenvalue of K."""
    return 16 * len(state.gram.high) * (_UNIT + state.gram_error) * _top(state)


def _top(state: GramState) -> Float[Array, ""]:
    """Bound the largest eigenvalue of K from above."""
    return jnp.trace(_join(state.gram))


def _pack_forms(
    values: Array, rounding: Array, solved: _Solved, residual: Array, dtype: jax.typing.DTypeLike
) -> _ScaledForms:
    return _ScaledForms(*(_split(each, dtype) for each in (values, rounding, solved.coefficients, residual)))


def _assess_forms(state: GramState, scaled: _ScaledForms, damping: Float[Array, ""], own: _Own | None) -> Assessed:
    """Assess forms: convert them, and bound their errors."""
    dtype, eps = damping.dtype, float(jnp.finfo(damping.dtype).eps)
    with jax.enable_x64(True):
        value, forms = _double(damping), _join(scaled.values) / _double(damping)
        rounding = _join(scaled.rounding) / value
        each = _each(state, value, own, len(forms))
        if own is not None:
            rounding = rounding + 4 * _UNIT * jnp.abs(forms)  # λ(n − 1)/n is rounded too
        if state.lost is not None:
            rounding = rounding + (each / value)[:, None, None] * _bound_storage(state, scaled, each)
        values = _narrow(forms, dtype)
        bound = _narrow((rounding + eps * jnp.abs(forms)) * (1 + 2 * eps), dtype)
        left_out = None if state.parts == 1 else _narrow(_leave_parts_out(state, scaled, value, state.parts), dtype)
        # The set without its first half is its second half.
        halves = None if state.units < 2 else _narrow(_leave_parts_out(state, scaled, value, 2)[::-1], dtype)
        if own is not None:
            left_out, halves = (
                None if part is None else jnp.where(own.inside[None, :, None, None], jnp.nan, part)
                for part in (left_out, halves)
            )
    return Assessed(Form(values, jnp.zeros(values.shape[0], dtype)), bound, left_out, halves)


def _bound_storage(
    state: GramState, scaled: _ScaledForms, damping: Float[Array, " batch"]
) -> Float[Array, "batch draws draws"]:
    """Bound the change of the forms by rounding the rows to bfloat16.

    With Â the stored rows, `A = Â + E`, `x̂ = (ÂᵀÂ + λI)⁻¹g` and `ĉ = Âx̂`, the forms differ by `x̂ᵀΔx̂' − x̂ᵀΔ(C + λI)⁻¹Δx̂'`,
    `Δ = C − Ĉ = ÂᵀE + EᵀÂ + EᵀE = AᵀE + EᵀÂ`, and ‖(C + λI)^{-½}Aᵀ‖ ≤ 1.
    """
    assert state.lost is not None
    c, lost = _join(scaled.coefficients), _double(state.lost)
    lengths = jnp.sqrt(jnp.diagonal(lost))
    inexact = 2.0**-7 * (jnp.abs(c) @ lengths)  # E itself is stored in bfloat16
    most = _largest_lost(state)
    off = _join(scaled.residual) / (_least(state) + damping)[:, None]
    pulled = jnp.sqrt(jnp.maximum(jnp.einsum("bkr,rs,bks->bk", c, lost, c), 0.0)) + inexact + most * off
    highest = jnp.einsum("bkk->bk", _join(scaled.values) + _join(scaled.rounding)) / damping[:, None]
    reach = jnp.sqrt(jnp.maximum(highest, 0.0) / damping[:, None])
    second = most * reach + pulled / jnp.sqrt(damping)[:, None]
    first = _pairs(pulled, reach) + _pairs(reach, pulled) + most**2 * _pairs(reach, reach)
    return first + _pairs(second, second)


def _largest_lost(state: GramState) -> Float[Array, ""]:
    """Bound ‖E‖, E what rounding to bfloat16 took from the rows.

    E is kept in bfloat16 itself.
    """
    assert state.lost is not None
    lost = _double(state.lost)
    return jnp.sqrt(jnp.max(jnp.sum(jnp.abs(lost), axis=1))) + 2.0**-7 * jnp.sqrt(jnp.trace(lost))


def _leave_parts_out(
    state: GramState, scaled: _ScaledForms, damping: Float[Array, ""], parts: int
) -> Float[Array, "parts batch draws draws"]:
    """Compute forms without each part of the curvature set, in float64.

    Parts are equal, or the first ones have one example more than the others. Without a part J of m of n examples C is
    `f A_{−J}ᵀA_{−J}`, f = n / (n − m). With `M = (K + (λ/f) I)⁻¹` the form is
    `(⟨g, g'⟩ − kᵀMk' + (Mk)_Jᵀ (M_JJ)⁻¹ (Mk')_J) / λ` (Schur complement): only its last term depends on J.
    """
    values, vectors, gram = map(_join, (state.eigenvalues, state.eigenvectors, state.gram))
    c = _join(scaled.coefficients)
    turned = (c @ gram + damping * c) @ vectors

    def of_parts(units: Int[Array, "some units rows"]) -> Float[Array, "some batch draws draws"]:
        """Leave out each of some parts of as many examples."""
        less = damping * (state.units - units.shape[1]) / state.units
        weights = 1 / (values + less)
        rest = _join(scaled.values) - jnp.einsum(
            "bkr,r,blr->bkl", turned, (damping - less) * weights / (values + damping), turned
        )
        solved = _scale(turned, weights) @ vectors.T

        def of_part(part: tuple[Array, Array]) -> Float[Array, "batch draws draws"]:
            own, places = part
            factor = jnp.linalg.cholesky(_scale(own, weights) @ own.T)
            chosen = solved[..., places]
            back = jax.scipy.linalg.solve_triangular(factor, chosen.reshape(-1, len(places)).T, lower=True).T
            back = back.reshape(chosen.shape)
            return jnp.einsum("bkr,blr->bkl", back, back)

        places = units.reshape(len(units), -1)
        return rest[None] + jax.lax.map(of_part, (vectors[places], places))

    each, larger = divmod(state.units, parts)
    units = state.order.reshape(state.units, -1)
    split = larger * (each + 1)
    forms = []
    for some, count in ((units[:split], larger), (units[split:], parts - larger)):
        if count:
            forms.append(of_parts(some.reshape(count, -1, units.shape[1])))
    return jnp.concatenate(forms) / damping


def _pairs(left: Float[Array, "batch draws"], right: Float[Array, "batch draws"]) -> Float[Array, "batch draws draws"]:
    return left[:, :, None] * right[:, None, :]


def _squares(between: Float[Array, "batch draws draws"]) -> Float[Array, "batch draws"]:
    """Compute norms from inner products."""
    return jnp.sqrt(jnp.maximum(jnp.einsum("bkk->bk", between), 0.0))


def _scale(vectors: Float[Array, "*n rows"], weights: Float[Array, " rows"]) -> Float[Array, "*n rows"]:
    """Multiply every vector by the weights, entry by entry."""
    return jnp.einsum("...r,r->...r", vectors, weights)


def _narrow(array: Array, dtype: jax.typing.DTypeLike) -> Array:
    return jax.lax.convert_element_type(array, dtype)


def _double(array: Array) -> Array:
    return jax.lax.convert_element_type(array, jnp.float64)


def _split(array: Array, dtype: jax.typing.DTypeLike) -> Wide:
    high = jax.lax.convert_element_type(array, dtype)
    return Wide(high, jax.lax.convert_element_type(array - _double(high), dtype))


def _total(pairs: Iterable[Wide]) -> Array:
    return functools.reduce(jnp.add, map(_join, pairs))


def _join(pair: Wide) -> Array:
    return _double(pair.high) + _double(pair.low)
