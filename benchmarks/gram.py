"""What does Gram cost, and do its bounds of rounding hold?

    python -m benchmarks.gram cost       multiples of one plain gradient over the same images, for fitting and for scoring
    python -m benchmarks.gram bounds     10,000 draws against float64, at decades of λ, rows in float32 and in bfloat16

`cost`: the shared ResNet-18, of width 16 unless another is given, C the empirical Fisher of 256 images; a gradient over
the same images in the same batches runs right before every operation and is its unit. `bounds`: a ResNet-18 of width 4,
C the empirical Fisher of 250 images. Reference: the same gradients and rows, as float32 computed them, in NumPy's
float64. A violation is a value whose distance from the reference is larger than the bound that came with it.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float

from benchmarks.measure import Compiled, rows, times
from benchmarks.results import write
from benchmarks.shared import Setting, Shared, shared
from influence_ssl_jax.cli.environment import keep_convolutions_whole
from influence_ssl_jax.curvature.contributions import measure
from influence_ssl_jax.ihvp import Damping, Gram
from influence_ssl_jax.ihvp.backend import scalar
from influence_ssl_jax.ihvp.gram import GramState
from influence_ssl_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class Cost:
    """What is timed.

    Attributes:
        setting: Network and images; one row of C for each.
        repeats: Repetitions.
    """

    setting: Setting = dataclasses.field(default_factory=lambda: Setting(examples=256, batch=64))
    repeats: int = 5

    @classmethod
    def tiny(cls) -> "Cost":
        """Return settings with one repetition of a linear network."""
        return cls(Setting("linear", width=4, examples=4, batch=2, size=4), repeats=1)

    def run(self) -> dict[str, Any]:
        """Measure every operation in seconds and in gradients."""
        given, backend, key = shared(self.setting), Gram(), jax.random.key(0)
        problem = given.problem()
        batches = [jax.tree.map(lambda leaf, i=i: leaf[i], given.batches) for i in range(len(given.batches.index))]
        gradient = jax.jit(lambda params, batch: jax.grad(given.objective)(params, given.frozen, batch))
        plain = Compiled(gradient, tuple((given.params, batch) for batch in batches))
        fit = Compiled(jax.jit(backend.fit), ((problem, key),))
        fitting = rows({"jax": {"gradient": plain, "fit": fit}}, self.repeats, 1000 / self.setting.examples)
        # The rows of A are kept from here on: while a fit is timed, another set of them would have to fit beside.
        state = fit.result(*fit.arguments)
        damping = backend.resolve(state, Damping())
        operations = {
            "gradient": plain,
            "norms": Compiled(_norms(given), tuple((state, batch) for batch in batches)),
            "score": Compiled(_scores(given, backend), tuple((state, damping, batch) for batch in batches)),
            "score with bounds and jackknife": Compiled(
                _assessed(given, backend), tuple((state, damping, batch) for batch in batches)
            ),
        }
        scoring = rows({"jax": operations}, self.repeats, 1000 / self.setting.examples)
        measured = [*fitting, *(row for row in scoring if row["operation"] != "gradient")]
        for row in measured:
            print(f"{row['operation']:34} {times(row)}", flush=True)
        kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        return {
            "data": given.data,
            "rows": problem.batches.index.size,
            "state_megabytes": kept / 2**20,
            "operations": measured,
        }


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Which draws are compared with float64.

    Attributes:
        setting: Network and images.
        curvature: Batches of these images that C is made of.
        draws: Perturbations per image.
        relative: λ over the mean eigenvalue.
    """

    setting: Setting = dataclasses.field(default_factory=lambda: Setting(width=4, examples=1250, batch=50))
    curvature: int = 5
    draws: int = 8
    relative: tuple[float, ...] = (1e-5, 1e-3, 0.1, 10.0, 1000.0)

    @classmethod
    def tiny(cls) -> "Bounds":
        """Return settings with a few draws of a linear network."""
        return cls(Setting("linear", width=4, examples=4, batch=2, size=4), curvature=1, draws=2, relative=(0.1,))

    def run(self) -> dict[str, Any]:
        """Count violations and measure widths, by storage and damping."""
        given, checked = shared(self.setting), []
        some = jax.tree.map(lambda leaf: leaf[: self.curvature], given.batches)
        problem = dataclasses.replace(given.problem(), batches=some)
        states = {kind: jax.jit(Gram(storage=kind).fit)(problem, jax.random.key(0)) for kind in ("working", "bfloat16")}
        exact = _float64_rows(states["working"])
        reference = _Reference(exact)
        judge = {kind: jax.jit(_judge(given, Gram(storage=kind), self.draws)) for kind in states}
        batches = [jax.tree.map(lambda leaf, i=i: leaf[i], given.batches) for i in range(len(given.batches.index))]
        rows_of = {(kind, share): [] for kind in states for share in self.relative}
        for batch in batches:
            known = None
            for share in self.relative:
                damping = scalar(Gram().resolve(states["working"], Damping(share)))
                for kind, state in states.items():
                    values, rounding, vectors = judge[kind](state, damping, batch)
                    known = reference.of(np.asarray(vectors, np.float64)) if known is None else known
                    rows_of[kind, share].append((values, rounding, reference.forms(known, float(damping))))
        for (kind, share), parts in rows_of.items():
            values, rounding, wanted = (np.concatenate([np.ravel(part[i]) for part in parts]) for i in range(3))
            off, width = np.abs(values - wanted), rounding / np.abs(wanted)
            checked.append(
                {
                    "storage": kind,
                    "relative damping": share,
                    "draws": int(off.size),
                    "violations": int(np.sum(~(off <= rounding))),
                    "relative bound, median": float(np.median(width)),
                    "relative bound, largest": float(np.max(width)),
                    "relative error, largest": float(np.max(off / np.abs(wanted))),
                    "largest error over bound": float(np.max(off / rounding)),
                }
            )
            print(checked[-1], flush=True)
        return {"data": given.data, "parameters": int(exact.shape[1]), "rows": int(exact.shape[0]), "bounds": checked}


class _Reference:
    """Forms in float64, from rows and gradients as float32 computed them."""

    def __init__(self, rows: Float[np.ndarray, "rows size"]) -> None:
        self._rows = rows
        self._values, self._vectors = np.linalg.eigh(rows @ rows.T)

    def of(self, vectors: Float[np.ndarray, "n size"]) -> tuple[np.ndarray, np.ndarray]:
        """Compute the gradients and their coordinates in the eigenvectors of K."""
        return vectors, vectors @ self._rows.T @ self._vectors

    def forms(self, known: tuple[np.ndarray, np.ndarray], damping: float) -> Float[np.ndarray, " n"]:
        """Compute `(‖g − Aᵀc‖² + λ‖c‖²) / λ`, which does not cancel."""
        vectors, along = known
        c = (along / (self._values + damping)) @ self._vectors.T
        left = vectors - c @ self._rows
        return np.sum(left**2, axis=1) / damping + np.sum(c**2, axis=1)


def _float64_rows(state: GramState) -> Float[np.ndarray, "rows size"]:
    """Return A in float64, block by block."""
    parts = []
    for block in state.blocks:
        spans = np.swapaxes(np.asarray(state.rows[block.name].array, np.float64), 0, 1)
        parts.append(spans.reshape(len(spans), -1)[:, : block.size])
    return np.concatenate(parts, axis=1)


def _scores(given: Shared, backend: Gram) -> Callable[..., Array]:
    def scores(state: GramState, damping: Array, batch: Batch) -> Array:
        gradients = measure(given.objective, given.params, given.frozen, batch).gradients
        return backend.quadratic_form(state, gradients, damping)

    return jax.jit(scores)


def _assessed(given: Shared, backend: Gram) -> Callable[..., tuple]:
    def assessed(state: GramState, damping: Array, batch: Batch) -> tuple:
        gradients = measure(given.objective, given.params, given.frozen, batch).gradients
        result = backend.assess(state, gradients, damping)
        return result.form.values, result.rounding, result.left_out

    return jax.jit(assessed)


def _norms(given: Shared) -> Callable[..., Array]:
    """Compute the squared norms of the gradients, which need no rows.

    They are the share of the time of a score that needs no rows.
    """

    def norms(state: GramState, batch: Batch) -> Array:
        return measure(given.objective, given.params, given.frozen, batch).gradients.squared_norms(state.blocks)

    return jax.jit(norms)


def _judge(given: Shared, backend: Gram, draws: int) -> Callable[..., tuple]:
    """Return values and bounds of all forms, with their gradients."""

    def judged(state: GramState, damping: Array, batch: Batch) -> tuple:
        gradients = measure(given.objective, given.params, given.frozen, batch, draws).gradients
        result = backend.assess(state, gradients, damping)
        vectors = [block.map_examples(gradients, lambda each, _: each, None) for block in state.blocks]
        flat = jnp.concatenate(vectors, axis=2)
        own = (jnp.einsum("bkk->bk", each) for each in (result.form.values, result.rounding))
        return (*own, flat.reshape(-1, flat.shape[-1]))

    return judged


def main() -> None:
    """Measure, print, write."""
    chosen = tyro.cli(Annotated[Cost, tyro.conf.subcommand("cost")] | Annotated[Bounds, tyro.conf.subcommand("bounds")])
    keep_convolutions_whole()
    name = f"gram_cost_w{chosen.setting.width}" if isinstance(chosen, Cost) else "gram_bounds"
    write(name, chosen, chosen.run())


if __name__ == "__main__":
    main()
