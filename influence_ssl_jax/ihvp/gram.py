"""Invert a sum of few outer products exactly, by its Gram matrix.

The sum is the curvature, and the Gram matrix is that of its rows (Woodbury).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
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
"""Products that are added up in the working precision at most; sums of these sums are taken in float64."""
TOGETHER = 2**26
"""Numbers that spans which an accelerator computes at once read and give."""
_UNIT = 2.0**-53
"""The unit roundoff of float64."""
_PAIR = 2.0**-47
"""Relative error of a float64 number that is kept as two of float32."""

Rows: TypeAlias = Sharded | DiskRows
"""The rows of a block in spans of parameters, [spans, rows, span]: in memory, or in a file."""


class Wide(NamedTuple):
    """A float64 array as the sum of two narrower ones.

    The two are of the working type, so a program without float64 can keep and pass them on.
    """

    high: Float[Array, "*shape"]
    low: Float[Array, "*shape"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GramState:
    """`C = AᵀA` by its rows, with `K = AAᵀ = V diag(μ) Vᵀ`.

    Attributes:
        params: Gives vectors their structure.
        rows: A, block by block, in spans of at most SPAN parameters: [spans, rows, span], with zeros at the end. On several
            devices each has some of the spans of every block, and of A as much as another. Or where a file has them.
        lost: `E Eᵀ`, E what rounding to bfloat16 took from the rows; None where they are kept as they were formed.
        gram: K.
        eigenvalues: μ, ascending, not below zero.
        eigenvectors: V.
        order: The rows in the order of the curvature set's examples (of its batches, where the loss couples examples).
        members: The index in its source of every example of the curvature set, in that order.
        units: How many examples (batches, where the loss couples examples) the curvature set holds.
        parts: How many equal parts of these the jackknife leaves out in turn; 1 where the set cannot be cut.
        digests: SHA-256 of every part of the file that has the rows; None where they are in memory.
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
    def unexact(self) -> float:
        """Relative error of K's numbers, in the norms of the rows."""
        kept = _PAIR if self.gram.high.dtype == jnp.float32 else 0.0
        return kept + _UNIT * (SPAN + self.spans + 8)

    @property
    def spans(self) -> int:
        """Spans of all blocks together, on all devices."""
        return sum(part.length for part in self.rows.values())


class _Own(NamedTuple):
    """The rows of A made by an example of the curvature set.

    Attributes:
        inside: Whether an example is in the curvature set.
        places: Its rows; those of another example where it is not.
    """

    inside: Bool[Array, " batch"]
    places: Int[Array, "batch own"]


class _Products(NamedTuple):
    """`k = A g` and `⟨g_k, g_l⟩` of every example's draws, with errors.

    Attributes:
        along: k, [examples, draws, rows].
        between: Inner products of the draws.
        error: η: no entry of k is off by more than η ‖a_r‖ ‖g‖, no inner product by more than η ‖g_k‖ ‖g_l‖.
    """

    along: Wide
    between: Wide
    error: float


class _Solved(NamedTuple):
    """The systems in function space, in float64.

    Attributes:
        along: k.
        coefficients: c ≈ (K + λI)⁻¹ k.
        residual: k − (K + λI) c, as computed.

    Where an example's own rows are left out of A, k, c and the residual are zero there.
    """

    along: Float[Array, "*n rows"]
    coefficients: Float[Array, "*n rows"]
    residual: Float[Array, "*n rows"]


class _Sizes(NamedTuple):
    """Norms of every gradient, in float64, for bounds of rounding.

    Attributes:
        gradient: ‖g‖.
        weight: Σ_r |c_r| ‖a_r‖.
        residual: A bound of ‖k − (K + λI) c‖.
    """

    gradient: Float[Array, "*n"]
    weight: Float[Array, "*n"]
    residual: Float[Array, "*n"]


class _Judged(NamedTuple):
    """Forms of every pair of draws, times λ, with bounds of rounding.

    Numbers in float64 are kept as two numbers.

    Attributes:
        values: The forms.
        rounding: The bound.
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
    Where that difference cancels (g nearly in the span of the rows, small λ) it is computed as `(⟨v, v'⟩ + λ cᵀc') / λ`
    with `c = (K + λI)⁻¹k` and `v = g − Aᵀc`, in float64 throughout. Any λ, no second fit.

    Rows: of an `empirical_fisher` the examples' contributions; of a `fisher` its draws (over a whole batch where the loss
    couples examples); of a `ggn` draws too, or with `samples=None` every column of a square root of the head's Hessian,
    which makes C the Gauss–Newton matrix itself. Memory: R · P numbers of `storage`, shared equally by the devices of a
    process, and on each 4 R² of the working type (5 with bfloat16).

    On D devices each holds 1/D of every block's parameters, for all rows. The gradients of a batch are cut likewise: every
    device sends each other one that part of its own examples' gradients which the other one has rows for, multiplies, and
    sends the products back, where they are added up in float64. Per example and draw P numbers travel, whatever R.

    Rows on a disk are read from a file while a batch is scored: once for its products, and once more where a batch is
    computed in the way that does not cancel. So a batch takes at least the seconds in which the disk reads the file,
    however many examples it has, and memory holds the gradients of a batch for one layer instead of the rows. Products
    are added up in the same order as in memory.

    Every form comes with a bound of its rounding (`assess`): that of products in the working precision, of rows kept in
    bfloat16, of K, and of the solve. It holds for C and g as they were computed: backpropagation itself is not bounded.
    Sums of n products are off by at most n unit roundoffs of the product of the norms, in any order, where products are
    rounded to nearest and none underflows: on a CPU, and on a GPU in full float32.

    Attributes:
        samples: Rows of a `ggn`: draws per example (per batch of a batch-coupled loss), or every output where None.
        max_rows: Refuse more rows than this: K takes R² numbers and its eigenvectors R³ operations.
        storage: What rows are kept in. bfloat16 halves the memory of scoring (fitting takes that of float32) and widens
            the intervals; otherwise the type of the parameters.
        parts: Parts of the curvature set that are left out in turn, for the standard error that its choice leaves.
        accuracy: The relative bound of rounding above which the forms of a batch are computed in the way that does not
            cancel, at two to three times the cost; 2¹⁷ unit roundoffs where None (0.8 % in float32).
        unexplained: What to do with parameters that no known layer explains.
        rows: Where rows are kept: in the memory of the devices, or in a file in the folder of the scores (`disk`), on one
            device. Only a run that has a folder can do that: `score`, here and on the command line.

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
    when_to_use: ClassVar[str] = "Exact for a Fisher of up to some thousand gradients, with error bounds."
    vectors_per_draw: ClassVar[int] = 0  # gradients are formed block by block, for few examples at a time

    def __post_init__(self) -> None:
        """Refuse settings that make no matrix, or no jackknife."""
        if self.samples is not None and self.samples < 1:
            raise InfluenceError(f"Gram draws at least one row for each example, got samples={self.samples}.")
        if self.parts < 2:
            raise InfluenceError(f"A jackknife leaves out one of at least two parts, got parts={self.parts}.")

    def fit(self, problem: Problem, key: Key[Array, ""]) -> GramState:
        """Form the rows, their Gram matrix in float64, and its eigenvectors.

        The rows are formed batch by batch.

        Raises:
            CurvatureError: The curvature is a Hessian, which is no sum of outer products.
            InfluenceError: It is a sum of more than `max_rows`, or rows belong on a disk.
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
            rows, lost = jax.tree.map(_rounded, formed), jax.tree.map(_lost, formed)
        return self._complete(problem, blocks, rows, lost, None)

    def place_rows(self, problem: Problem, path: Path) -> tuple[DiskRows, ...]:
        """Place the rows in a file, block by block.

        Behind rows in bfloat16 comes what rounding took from them, which only the fit reads.

        Raises:
            CurvatureError: The curvature is a Hessian, which is no sum of outer products.
            InfluenceError: It is a sum of more than `max_rows`.
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
            _spans(part, *_cut(part.shape[1])) for part in _scaled_rows(problem, batch, self.samples, blocks).values()
        ]
        formed = jax.lax.optimization_barrier(formed)  # rounded once before what is lost is computed, as in memory
        if self.storage == "bfloat16":
            return (*map(_rounded, formed), *map(_lost, formed))
        return tuple(formed)

    def fit_placed(
        self, problem: Problem, places: tuple[DiskRows, ...], digests: UInt8[Array, "parts 32"]
    ) -> GramState:
        """Compute the state of rows in a file: `fit`, without forming them.

        Args:
            problem: The problem that they are of.
            places: Where they are (`place_rows`).
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
                "for every output of every example), raise max_rows where memory allows it, or use EKFAC or LoGra."
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

        `left` is what rounding took from the rows.
        """
        dtype = jax.tree.leaves(problem.params)[0].dtype
        lost = None if left is None else _gram_of(left, dtype).high
        gram = _gram_of(rows, dtype)
        with jax.enable_x64(True):
            values, vectors = jnp.linalg.eigh(_joined(gram))
            eigenvalues, eigenvectors = _split(jnp.maximum(values, 0.0), dtype), _split(vectors, dtype)
        order, units = _order(problem, self.samples)
        parts = max(n for n in range(1, min(self.parts, units) + 1) if units % n == 0)
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
            parts=parts,
            blocks=blocks,
        )

    def workspace(self, state: GramState, parameters: int) -> Workspace:
        """Return how many numbers scoring holds in memory.

        With rows on a disk these are two slabs, and four arrays of a batch's gradients of the largest layer.
        """
        spans = [place.size // place.length for place in state.rows.values() if isinstance(place, DiskRows)]
        if not spans:
            return super().workspace(state, parameters)
        largest = max(*spans, SLAB)
        return Workspace(2 * largest // state.gram.high.dtype.itemsize, 4 * max(block.size for block in state.blocks))

    def mean_eigenvalue(self, state: GramState) -> Resolved:
        """Return tr(K)/P, which is tr(C)/P."""
        return jnp.trace(state.gram.high) / trees.size(state.params)

    def smallest_eigenvalue(self, state: GramState) -> Float[Array, ""]:
        """Return zero: C is a sum of outer products."""
        return jnp.zeros_like(state.gram.high[0, 0])

    def spectrum(self, state: GramState) -> Spectrum:
        """Return the eigenvalues of K: those of C that are not zero.

        Rows that are off by a relative ε leave eigenvalues of dependent rows at ε² of the largest, in each of R directions;
        ε is 16 times the spacing of the working type here.
        """
        values = state.eigenvalues.high
        spacing = 16 * float(jnp.finfo(values.dtype).eps)
        return Spectrum(values, jnp.ones_like(values), resolution=len(values) * (spacing**2 + 2 * _UNIT))

    def solve(self, state: GramState, vector: Params, damping: Resolved) -> Params:
        """Compute `(v − Aᵀ(K + λI)⁻¹ A v) / λ`, in float64."""
        cut.check_structure(state.params, vector)
        parts = {block.name: block.read(vector) for block in state.blocks}
        flat = {name: part.reshape(1, 1, -1) for name, part in parts.items()}
        products = [_by_shards(partial(_inner, state.rows[name], True), part, None)[0] for name, part in flat.items()]
        with jax.enable_x64(True):
            value = _double(scalar(damping))
            solved = _split(_solve(state, _total(products), value[None], None).coefficients, scalar(damping).dtype)
            solution = {}
            for name, part in flat.items():
                left = _over_spans(
                    lambda a, v: (jnp.zeros(()), _double(v) - _joined(solved)[0] @ _double(a)),
                    jnp.zeros(()),
                    state.rows[name],
                    part[0],
                )[1]
                joined = jnp.moveaxis(left, 0, 1).reshape(-1)[: part.shape[-1]] / value
                solution[name] = jax.lax.convert_element_type(joined, part.dtype).reshape(parts[name].shape)
        return cut.assemble(vector, state.blocks, solution)

    def draw_gram(self, state: GramState, gradients: ExampleGradients, damping: Resolved) -> Form:
        """Compute forms by the Woodbury identity, for all pairs of draws."""
        return self.assess(state, gradients, damping).form

    def assess(self, state: GramState, gradients: ExampleGradients, damping: Resolved) -> Assessed:
        """Compute forms, rounding bounds, and the effect of leaving parts out.

        The parts are those of the curvature set. The exact form of C lies within `rounding` of each value. Let
        `q(c) = ‖g‖² − 2cᵀk + cᵀ(K + λI)c`, which is `‖g − Aᵀc‖² + λ‖c‖²`; whatever c, `q(c) − ρᵀ(K + λI)⁻¹ρ` is λ times
        the form, `ρ = k − (K + λI)c`. So an error of the solve counts squared, and what remains is the rounding of k,
        of ‖g‖² and of K where they enter q.
        """
        return self._assess(state, gradients, damping, None)

    def check_own(self, problem: Problem) -> None:
        """Refuse if an example's own rows cannot be left out.

        It may have no rows of its own, or nothing may be left without them.

        Raises:
            InfluenceError: The loss couples the examples of a batch, or the curvature set holds an example twice.
        """
        if not problem.objective.loss.separable:
            raise InfluenceError(
                f"{type(problem.objective.loss).__name__} couples the examples of a batch, so no part of C is one image's "
                "own and leave_own_out has no meaning. Take the curvature of the measurement (--curvature.objective "
                "measurement), or leave it off: the column in_curvature_set marks the images in question."
            )
        held = np.asarray(problem.batches.index).reshape(-1)
        held = held[held >= 0]
        if len(np.unique(held)) < len(held):
            raise InfluenceError(
                "leave_own_out takes a curvature set that holds every image once; this one repeats some."
            )

    def assess_without_own(
        self, state: GramState, gradients: ExampleGradients, damping: Resolved, index: Int[Array, " batch"]
    ) -> Assessed:
        """Compute `assess`, with an example's C averaged over the other examples.

        Of an example outside the curvature set it is `assess` itself. With J the example's rows and n examples in the
        set, C becomes `n/(n − 1) A_{−J}ᵀA_{−J}`; λ stays the number that it is. `(K + λ(n − 1)/n I)⁻¹` without the rows
        and columns J follows from that of all rows by a Schur complement of the size of J: an update of rank one for
        each draw. What the choice of the curvature set leaves open is not known of these examples (NaN).

        Raises:
            InfluenceError: The curvature set has one example.
        """
        if state.units < 2:
            raise InfluenceError("leave_own_out takes a curvature set of two images or more, got one.")
        same = state.members[None, :] == index[:, None]
        unit = jnp.argmax(same, axis=1)
        return self._assess(
            state, gradients, damping, _Own(jnp.any(same, axis=1), state.order.reshape(state.units, -1)[unit])
        )

    def _assess(self, state: GramState, gradients: ExampleGradients, damping: Resolved, own: _Own | None) -> Assessed:
        """Compute forms in a way accurate enough for all examples."""
        value = scalar(damping)
        fast = self._subtracted(state, self._products(state, gradients, False), value, own)
        accuracy = 2.0**17 * float(jnp.finfo(value.dtype).eps) / 2 if self.accuracy is None else self.accuracy
        sizes, bound = (jnp.einsum("bkk->bk", each.high) for each in (fast.values, fast.rounding))
        careful = jnp.any(bound > accuracy * sizes)
        # Devices that share A work together, so that all take this way if one must; each keeps what its own examples need.
        judged = jax.lax.cond(
            jax.lax.pmax(careful, AXIS) if shards() > 1 else careful,
            lambda: self._positive(state, gradients, value, own),
            lambda: fast,
        )
        if shards() > 1:
            judged = jax.tree.map(lambda positive, subtracted: jnp.where(careful, positive, subtracted), judged, fast)
        return _assessed(state, judged, value, own)

    def bilinear_form(
        self, state: GramState, left: ExampleGradients, right: ExampleGradients, damping: Resolved
    ) -> Float[Array, "left right"]:
        """Compute forms between two batches by the Woodbury identity.

        The difference that cancels is avoided.
        """
        value = scalar(damping)
        sides = [dataclasses.replace(side, draws=1) for side in (left, right)]
        coefficients: list[Wide] = []
        for side in sides:
            products = self._products(state, side, True)
            with jax.enable_x64(True):
                along = _joined(products.along)
                solved = _solve(state, along, jnp.broadcast_to(_double(value), len(along)), None)
                coefficients.append(_split(solved.coefficients[:, 0], value.dtype))
        parts = []
        for block in state.blocks:
            a, b = (block.materialise(side).reshape(side.cotangents.shape[1], -1) for side in sides)
            parts.append(_between(state.rows[block.name], a, b, coefficients[0], coefficients[1]))
        with jax.enable_x64(True):
            a, b = map(_joined, coefficients)
            total = _total(parts) / _double(value) + a @ b.T
            return jax.lax.convert_element_type(total, value.dtype)

    def _products(self, state: GramState, gradients: ExampleGradients, precise: bool) -> _Products:
        """Compute k and the draws' inner products, layer by layer.

        They are in float64 throughout if `precise`.
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

    def _subtracted(
        self, state: GramState, products: _Products, damping: Float[Array, ""], own: _Own | None
    ) -> _Judged:
        """Compute λ times the forms as `⟨g, g'⟩ − kᵀc' − cᵀρ'`."""
        with jax.enable_x64(True):
            along = _joined(products.along)
            value = _each(state, _double(damping), own, len(along))
            solved = _solve(state, along, value, own)
            sizes = _sizes(state, solved, _squares(_joined(products.between)), products.error)
            values = (
                _joined(products.between)
                - jnp.einsum("bkr,blr->bkl", solved.along, solved.coefficients)
                - jnp.einsum("bkr,blr->bkl", solved.coefficients, solved.residual)
            )
            rows = solved.along.shape[-1]
            error = products.error + 4 * rows * _UNIT
            n, w = sizes.gradient, sizes.weight
            rounding = error * (_pairs(n, n) + _pairs(n, w) + _pairs(w, n)) + (
                state.unexact + 4 * rows * _UNIT
            ) * _pairs(w, w)
            rounding = rounding + _of_solve(state, sizes.residual, value)
            return _judged(values, rounding, solved, sizes.residual, damping.dtype)

    def _positive(
        self, state: GramState, gradients: ExampleGradients, damping: Float[Array, ""], own: _Own | None
    ) -> _Judged:
        """Compute λ times the forms as `⟨v, v'⟩ + λ cᵀc'`, `v = g − Aᵀc`.

        Every gradient is formed twice more, in float64 throughout.
        """
        products = self._products(state, gradients, True)
        with jax.enable_x64(True):
            along = _joined(products.along)
            value = _each(state, _double(damping), own, len(along))
            solved = _solve(state, along, value, own)
            sizes = _sizes(state, solved, _squares(_joined(products.between)), products.error)
            coefficients = _split(solved.coefficients, damping.dtype)
        left = [
            _map_examples(block, gradients, partial(_outside, rows), rows, coefficients)
            for block, rows in ((block, state.rows[block.name]) for block in state.blocks)
            if not gradients.program.read.isdisjoint(block.leaves)
        ]
        # Blocks that the gradients do not reach have v = −Aᵀc.
        unread = [block.name for block in state.blocks if gradients.program.read.isdisjoint(block.leaves)]
        with jax.enable_x64(True):
            c = _joined(coefficients)
            outside = _total(left)
            for name in unread:
                nothing = jnp.zeros((*c.shape[:2], _width(state, name)), damping.dtype)
                outside = outside + _joined(_by_shards(partial(_outside, state.rows[name]), nothing, coefficients))
            values = outside + value[:, None, None] * jnp.einsum("bkr,blr->bkl", c, c)
            rows = c.shape[-1]
            doubt = (rows + 4) * _UNIT * (sizes.gradient + sizes.weight)
            length = _squares(outside) + doubt
            relative = (SPAN + state.spans + rows + 8) * _UNIT + (_PAIR if damping.dtype == jnp.float32 else 0.0)
            rounding = _pairs(length, doubt) + _pairs(doubt, length) + relative * jnp.abs(values)
            rounding = rounding + relative * _pairs(length, length)
            rounding = rounding + _of_solve(state, sizes.residual, value)
            return _judged(values, rounding, solved, sizes.residual, damping.dtype)


def curvature_rows(problem: Problem, samples: int | None, blocks: cut.Blocks) -> dict[str, Sharded]:
    """Return each block's gradients whose outer products sum to C.

    Their shapes are [spans, rows, span]. They are formed batch by batch; under a mesh every device forms those of its
    own batches, and sends each other device its spans of them.
    """
    number, dtype = problem.batches.index.shape[0], jax.tree.leaves(problem.params)[0].dtype
    each, count = row_count(problem, samples) // (number - problem.padding), devices()
    sizes = {block.name: _cut(block.size) for block in blocks}

    def formed(batch: Batch) -> dict[str, Array]:
        """Return one batch's rows as every device's spans: [devices, spans, rows, span]."""
        device_spans = {}
        for name, part in _scaled_rows(problem, batch, samples, blocks).items():
            spans, span = sizes[name]
            cut_up = _spans(part, padded_length(spans, count), span)
            device_spans[name] = cut_up.reshape(count, -1, *cut_up.shape[1:])
        return device_spans

    formed = jax.jit(formed, inline=True)  # traced once, for the shapes and for the loop

    def step(held: dict[str, Array], item: tuple[Array, Batch]) -> tuple[dict[str, Array], None]:
        place, batch = item
        if count == 1:  # then no batch is padding
            parts = formed(batch)
        else:
            nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(formed, batch))
            parts = exchange(jax.lax.cond(jnp.any(batch.index >= 0), lambda: formed(batch), lambda: nothing))
        return {
            name: jax.lax.dynamic_update_slice_in_dim(held[name], jnp.swapaxes(part, 0, 1), place * each, 2)
            for name, part in parts.items()
        }, None

    def of_batches(batches: Batch) -> dict[str, Array]:
        """Return this device's spans of all rows.

        They come from its own batches and from what the others send.
        """
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


def _scaled_rows(
    problem: Problem, batch: Batch, samples: int | None, blocks: cut.Blocks
) -> dict[str, Float[Array, "rows size"]]:
    """Return a batch's rows of A.

    The outer products of all batches sum to C.
    """
    batches, dtype = problem.batches.index.shape[0] - problem.padding, jax.tree.leaves(problem.params)[0].dtype
    scale = 1 / math.sqrt(batches * (draw_count(problem, samples) or 1))
    return {name: (scale * part).astype(dtype) for name, part in batch_rows(problem, batch, samples, blocks).items()}


def _rounded(rows: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return rows as bfloat16 keeps them."""
    return rows.astype(jnp.bfloat16)


def _lost(rows: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return what `_rounded` takes from rows."""
    return (rows - _rounded(rows).astype(rows.dtype)).astype(jnp.bfloat16)


def batch_rows(
    problem: Problem, batch: Batch, samples: int | None, blocks: cut.Blocks
) -> dict[str, Float[Array, "rows size"]]:
    """Return a batch's gradients whose outer products make up its curvature.

    Their sum, divided by the number of draws, is the curvature of the batch.
    """
    gradients = batch_gradients(problem, batch, samples)
    if isinstance(gradients, ExampleGradients):
        return {block.name: block.materialise(gradients).reshape(gradients.cotangents.shape[1], -1) for block in blocks}
    rows = {block.name: jax.vmap(block.read)(gradients) for block in blocks}
    return {name: part.reshape(len(part), -1) for name, part in rows.items()}


def batch_gradients(problem: Problem, batch: Batch, samples: int | None) -> ExampleGradients | Params:
    """Return the gradients of `batch_rows`: of examples, or whole.

    They are whole (leaves with a leading axis) if the loss couples examples.
    """
    if problem.curvature == "empirical_fisher":
        return contributions(problem, batch)
    draws = draw_count(problem, samples)
    return (draw_example_gradients if problem.objective.loss.separable else draw_batch_gradients)(problem, batch, draws)


def _order(problem: Problem, samples: int | None) -> tuple[Int[np.ndarray, " rows"], int]:
    """Return the order of rows by example, and the number of examples.

    If the loss couples examples, they are the order by batch and the number of batches.
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
    """Return rows in spans, with zeros at the end."""
    even = jnp.pad(rows, ((0, 0), (0, spans * span - rows.shape[1])))
    return jnp.swapaxes(even.reshape(-1, spans, span), 0, 1)


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

    For rows in memory the gradients of few examples are formed at a time. For rows in a file they are formed in the same
    way, but all are multiplied in one pass over the file.
    """
    if isinstance(rows, Sharded):
        return block.map_examples(gradients, partial(_by_shards, compute), beside)
    return _by_shards(compute, block.map_examples(gradients, lambda formed, _: formed, None), beside)


def _over_spans(
    compute: Callable[..., tuple[PyTree, PyTree]],
    start: PyTree,
    rows: Rows,
    *vectors: Float[Array, "_ size"],
) -> tuple[PyTree, PyTree]:
    """Apply `compute(A_s, g_s, …)` to a block's spans s.

    Its first results are summed, its second ones stacked.

    An accelerator computes many spans at once, whose results are TOGETHER numbers or a few more; a CPU one after the other.
    Of rows in a file one slab at a time is in memory; their spans are in the same order.
    """

    def fold(total: PyTree, items: tuple[Array, ...]) -> tuple[PyTree, PyTree]:
        length = len(items[0])
        group = min(length, _together(compute, items))
        if group == 1:

            def step(total: PyTree, item: tuple[Array, ...]) -> tuple[PyTree, PyTree]:
                part, kept = compute(*item)
                return jax.tree.map(jnp.add, total, part), kept

            return jax.lax.scan(step, total, items)

        def add_group(total: PyTree, first: Int[Array, ""] | int, count: int) -> tuple[PyTree, PyTree]:
            some = [jax.lax.dynamic_slice_in_dim(each, first, count) for each in items]  # no copy of all rows
            parts, kept = jax.vmap(compute)(*some)
            return jax.tree.map(lambda total, part: total + jnp.sum(part, axis=0), total, parts), kept

        groups, rest = divmod(length, group)
        firsts = group * jnp.arange(groups, dtype=jnp.int32)
        total, kept = jax.lax.scan(lambda total, first: add_group(total, first, group), total, firsts)
        kept = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), kept)
        if not rest:
            return total, kept
        total, last = add_group(total, groups * group, rest)
        return total, jax.tree.map(lambda *parts: jnp.concatenate(parts), kept, last)

    if isinstance(rows, Sharded):
        return fold(start, (rows.array, *(_spans(each, rows.array.shape[0], rows.array.shape[2]) for each in vectors)))
    cut_up = [_spans(each, rows.length, rows.span) for each in vectors]
    slabs, rest = divmod(rows.length, rows.at_once)
    whole = slabs * rows.at_once

    def of_slab(total: PyTree, item: tuple[Array, ...]) -> tuple[PyTree, PyTree]:
        first, *parts = item
        return fold(total, (rows.read(first, rows.at_once), *parts))

    firsts = rows.at_once * jnp.arange(slabs, dtype=jnp.int32)
    slabbed = [each[:whole].reshape(slabs, rows.at_once, *each.shape[1:]) for each in cut_up]
    total, stacked = jax.lax.scan(of_slab, start, (firsts, *slabbed))
    stacked = jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), stacked)
    if not rest:
        return total, stacked
    total, last = fold(total, (rows.read(jnp.int32(whole), rest), *(each[whole:] for each in cut_up)))
    return total, jax.tree.map(lambda *parts: jnp.concatenate(parts), stacked, last)


def _together(compute: Callable[..., tuple[PyTree, PyTree]], items: tuple[Array, ...]) -> int:
    """Return the number of spans to compute at once, at least 1."""
    if jax.default_backend() == "cpu":  # one span's operands stay in its cache
        return 1
    span = [jax.ShapeDtypeStruct(each.shape[1:], each.dtype) for each in items]
    results = jax.tree.leaves(jax.eval_shape(compute, *span))
    return max(1, TOGETHER // sum(math.prod(leaf.shape) for leaf in (*results, *span)))


def _gram_of(rows: dict[str, Sharded] | dict[str, DiskRows], dtype: jax.typing.DTypeLike) -> Wide:
    """Compute `AAᵀ` with every product and sum in float64.

    Each device adds up its spans, then all add those sums.
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

    Every device computes the sums over its own parameters for the examples of all devices, one device's after the other
    so that the numbers do not depend on which device an example is on; the parts are added in the order of the devices.

    Args:
        compute: From gradients, of this device's parameters, to arrays in float64 with a leading axis of examples.
        gradients: Of some examples of this device, whole.
        beside: What else belongs to these examples; arrays with the same leading axis.

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
    """Compute `A g` and `⟨g_k, g_l⟩` of examples' gradients of one block, in float64."""
    some, draws, size = gradients.shape
    kind = jnp.float64 if precise else gradients.dtype

    def compute(a: Array, g: Array) -> tuple[tuple[Array, Array], None]:
        a, g = (jax.lax.convert_element_type(each, kind) for each in (a, g))
        along = jnp.matmul(g, a.T, precision="highest")
        apart = g.reshape(some, draws, -1)
        between = jnp.einsum("mks,mls->mkl", apart, apart, precision="highest")
        return (_double(along), _double(between)), None

    start = jnp.zeros((some * draws, _count(rows)), jnp.float64), jnp.zeros((some, draws, draws), jnp.float64)
    along, between = _over_spans(compute, start, rows, gradients.reshape(-1, size))[0]
    return along.reshape(some, draws, -1), between


def _outside(
    rows: Rows, gradients: Float[Array, "some draws size"], coefficients: Wide
) -> Float[Array, "some draws draws"]:
    """Compute `⟨v_k, v_l⟩`, `v = g − Aᵀc`, of some examples' gradients of one block, in float64."""
    some, draws, size = gradients.shape
    c = _joined(coefficients).reshape(some * draws, -1)

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
    """Compute `⟨v, v'⟩`, `v = g − Aᵀc`, between the gradients of one block of two batches."""
    with jax.enable_x64(True):
        a, b = _joined(of_left), _joined(of_right)

        def compute(part: Array, g: Array, h: Array) -> tuple[Array, None]:
            wide = _double(part)
            return (_double(g) - a @ wide) @ (_double(h) - b @ wide).T, None

        start = jnp.zeros((len(left), len(right)), jnp.float64)
        return _split(_over_spans(compute, start, rows, left, right)[0], left.dtype)


def _each(state: GramState, damping: Float[Array, ""], own: _Own | None, count: int) -> Float[Array, " batch"]:
    """Return λ of every example.

    Without rows J, `(C_{−J} + λI)⁻¹ = (n − 1)/n (A_{−J}ᵀA_{−J} + λ(n − 1)/n I)⁻¹`.
    """
    if own is None:
        return jnp.broadcast_to(damping, count)
    return jnp.where(own.inside, damping * (state.units - 1) / state.units, damping)


def _solve(
    state: GramState, along: Float[Array, "batch draws rows"], damping: Float[Array, " batch"], own: _Own | None
) -> _Solved:
    """Solve `(K + λI) c = k` in float64 by `c = V (μ + λ)⁻¹ Vᵀ k`.

    c is returned as two numbers of the working type keep it, with the residual that this c leaves.

    Args:
        state: The fitted state.
        along: k.
        damping: λ of every example.
        own: Rows that are left out of A, example by example.
    """
    values, vectors, gram = map(_joined, (state.eigenvalues, state.eigenvectors, state.gram))
    weights = 1 / (values[None] + damping[:, None])
    solution = jnp.einsum("bkr,br->bkr", along @ vectors, weights) @ vectors.T
    absent = None
    if own is not None:

        def less(item: tuple[Array, ...]) -> Array:
            """Return `(K + λI)⁻¹k` without the rows and columns of one example."""
            c, weight, places = item
            rows = vectors[places]
            factor = jax.scipy.linalg.cho_factor(_scaled(rows, weight) @ rows.T, lower=True)
            return c - _scaled(jax.scipy.linalg.cho_solve(factor, c[:, places].T).T @ rows, weight) @ vectors.T

        absent = jnp.zeros(along[:, 0].shape, bool).at[jnp.arange(len(along))[:, None], own.places].set(True)
        absent = (absent & own.inside[:, None])[:, None]
        corrected = jax.lax.map(less, (solution, weights, own.places))
        solution = jnp.where(own.inside[:, None, None], jnp.where(absent, 0.0, corrected), solution)
        along = jnp.where(absent, 0.0, along)
    coefficients = _joined(_split(solution, state.gram.high.dtype))
    residual = along - coefficients @ gram - damping[:, None, None] * coefficients
    return _Solved(along, coefficients, residual if absent is None else jnp.where(absent, 0.0, residual))


def _sizes(state: GramState, solved: _Solved, gradient: Float[Array, "*n"], error: float) -> _Sizes:
    """Return norms, with the rounding of k in that of the residual."""
    lengths = jnp.sqrt(jnp.diagonal(_joined(state.gram)))
    weight = jnp.abs(solved.coefficients) @ lengths
    trace = jnp.sqrt(jnp.sum(lengths**2))
    rounded = trace * (error * gradient + (state.unexact + 4 * len(lengths) * _UNIT) * weight)
    return _Sizes(gradient, weight, jnp.linalg.norm(solved.residual, axis=-1) + rounded)


def _of_solve(state: GramState, residual: Float[Array, "batch draws"], damping: Float[Array, " batch"]) -> Array:
    """Bound `ρᵀ(K + λI)⁻¹ρ'` for all pairs of draws.

    K without some rows has no smaller eigenvalue, so the bound holds for it too.
    """
    return _pairs(residual, residual) / (_least(state) + damping)[:, None, None]


def _least(state: GramState) -> Float[Array, ""]:
    """Bound the smallest eigenvalue of K from below."""
    return jnp.maximum(_joined(state.eigenvalues)[0] - _slack(state), 0.0)


def _slack(state: GramState) -> Float[Array, ""]:
    """Bound the error of an eigenvalue of K."""
    return 16 * len(state.gram.high) * (_UNIT + state.unexact) * _top(state)


def _top(state: GramState) -> Float[Array, ""]:
    """Bound the largest eigenvalue of K from above."""
    return jnp.trace(_joined(state.gram))


def _judged(values: Array, rounding: Array, solved: _Solved, residual: Array, dtype: jax.typing.DTypeLike) -> _Judged:
    return _Judged(*(_split(each, dtype) for each in (values, rounding, solved.coefficients, residual)))


def _assessed(state: GramState, judged: _Judged, damping: Float[Array, ""], own: _Own | None) -> Assessed:
    """Return forms with everything that is known of them."""
    dtype, eps = damping.dtype, float(jnp.finfo(damping.dtype).eps)
    with jax.enable_x64(True):
        value, forms = _double(damping), _joined(judged.values) / _double(damping)
        rounding = _joined(judged.rounding) / value
        each = _each(state, value, own, len(forms))
        if own is not None:
            rounding = rounding + 4 * _UNIT * jnp.abs(forms)  # λ(n − 1)/n is rounded itself
        if state.lost is not None:
            rounding = rounding + (each / value)[:, None, None] * _of_storage(state, judged, each)
        values = _narrowed(forms, dtype)
        bound = _narrowed((rounding + eps * jnp.abs(forms)) * (1 + 2 * eps), dtype)
        left_out = None if state.parts == 1 else _narrowed(_left_out(state, judged, value, state.parts), dtype)
        # Without its first half the set is its second.
        halves = None if state.units % 2 else _narrowed(_left_out(state, judged, value, 2)[::-1], dtype)
        if own is not None:
            left_out, halves = (
                None if part is None else jnp.where(own.inside[None, :, None, None], jnp.nan, part)
                for part in (left_out, halves)
            )
    return Assessed(Form(values, jnp.zeros(values.shape[0], dtype)), bound, left_out, halves)


def _of_storage(
    state: GramState, judged: _Judged, damping: Float[Array, " batch"]
) -> Float[Array, "batch draws draws"]:
    """Bound what rounding the rows to bfloat16 changes in the forms.

    With Â the rows kept, `A = Â + E`, `x̂ = (ÂᵀÂ + λI)⁻¹g` and `ĉ = Âx̂`, the forms differ by `x̂ᵀΔx̂' − x̂ᵀΔ(C + λI)⁻¹Δx̂'`,
    `Δ = C − Ĉ = ÂᵀE + EᵀÂ + EᵀE = AᵀE + EᵀÂ`, and ‖(C + λI)^{-½}Aᵀ‖ ≤ 1.
    """
    assert state.lost is not None
    c, lost = _joined(judged.coefficients), _double(state.lost)
    lengths = jnp.sqrt(jnp.diagonal(lost))
    inexact = 2.0**-7 * (jnp.abs(c) @ lengths)  # E itself is kept in bfloat16
    most = jnp.sqrt(jnp.max(jnp.sum(jnp.abs(lost), axis=1))) + 2.0**-7 * jnp.sqrt(jnp.sum(lengths**2))  # ≥ ‖E‖
    off = _joined(judged.residual) / (_least(state) + damping)[:, None]
    pulled = jnp.sqrt(jnp.maximum(jnp.einsum("bkr,rs,bks->bk", c, lost, c), 0.0)) + inexact + most * off
    highest = jnp.einsum("bkk->bk", _joined(judged.values) + _joined(judged.rounding)) / damping[:, None]
    reach = jnp.sqrt(jnp.maximum(highest, 0.0) / damping[:, None])
    second = most * reach + pulled / jnp.sqrt(damping)[:, None]
    first = _pairs(pulled, reach) + _pairs(reach, pulled) + most**2 * _pairs(reach, reach)
    return first + _pairs(second, second)


def _left_out(
    state: GramState, judged: _Judged, damping: Float[Array, ""], parts: int
) -> Float[Array, "parts batch draws draws"]:
    """Compute forms without each part of the curvature set, in float64.

    Without a part J of the rows C is `f A_{−J}ᵀA_{−J}`, f = parts / (parts − 1). With `M = (K + (λ/f) I)⁻¹` the form is
    `(⟨g, g'⟩ − kᵀMk' + (Mk)_Jᵀ (M_JJ)⁻¹ (Mk')_J) / λ` (Schur complement): only its last term depends on J.
    """
    values, vectors, gram = map(_joined, (state.eigenvalues, state.eigenvectors, state.gram))
    c, less = _joined(judged.coefficients), damping * (parts - 1) / parts
    turned = (c @ gram + damping * c) @ vectors
    weights = 1 / (values + less)
    rest = _joined(judged.values) - jnp.einsum(
        "bkr,r,blr->bkl", turned, (damping - less) * weights / (values + damping), turned
    )
    solved = _scaled(turned, weights) @ vectors.T

    def of_part(part: tuple[Array, Array]) -> Float[Array, "batch draws draws"]:
        own, places = part
        factor = jnp.linalg.cholesky(_scaled(own, weights) @ own.T)
        chosen = solved[..., places]
        back = jax.scipy.linalg.solve_triangular(factor, chosen.reshape(-1, len(places)).T, lower=True).T
        back = back.reshape(chosen.shape)
        return jnp.einsum("bkr,blr->bkl", back, back)

    places = state.order.reshape(parts, -1)
    return (rest[None] + jax.lax.map(of_part, (vectors[places], places))) / damping


def _pairs(left: Float[Array, "batch draws"], right: Float[Array, "batch draws"]) -> Float[Array, "batch draws draws"]:
    return left[:, :, None] * right[:, None, :]


def _squares(between: Float[Array, "batch draws draws"]) -> Float[Array, "batch draws"]:
    """Return norms from inner products."""
    return jnp.sqrt(jnp.maximum(jnp.einsum("bkk->bk", between), 0.0))


def _scaled(vectors: Float[Array, "*n rows"], weights: Float[Array, " rows"]) -> Float[Array, "*n rows"]:
    """Multiply every vector by the weights, entry by entry."""
    return jnp.einsum("...r,r->...r", vectors, weights)


def _narrowed(array: Array, dtype: jax.typing.DTypeLike) -> Array:
    return jax.lax.convert_element_type(array, dtype)


def _double(array: Array) -> Array:
    return jax.lax.convert_element_type(array, jnp.float64)


def _split(array: Array, dtype: jax.typing.DTypeLike) -> Wide:
    high = jax.lax.convert_element_type(array, dtype)
    return Wide(high, jax.lax.convert_element_type(array - _double(high), dtype))


def _total(pairs: Iterable[Wide]) -> Array:
    return functools.reduce(jnp.add, map(_joined, pairs))


def _joined(pair: Wide) -> Array:
    return _double(pair.high) + _double(pair.low)
