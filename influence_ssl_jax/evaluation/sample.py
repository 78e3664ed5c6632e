"""Certify a random sample of a data set."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
import pyarrow as pa
from jaxtyping import Array, Float, Int

from influence_ssl_jax import randomness
from influence_ssl_jax.curvature.products import mean_eigenvalue
from influence_ssl_jax.data.examples import OpenSource, Skipped
from influence_ssl_jax.data.loader import LoadedBatch, batches
from influence_ssl_jax.data.to_input import ToInput
from influence_ssl_jax.errors import CurvatureError
from influence_ssl_jax.evaluation.certificate import (
    Audit,
    RowsOfCurvature,
    ScoreBounds,
    Shared,
    certify,
    prepare_shared,
)
from influence_ssl_jax.ihvp.backend import Damping, scalar
from influence_ssl_jax.ihvp.cg import CG, spectrum_by_products
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.scoring.scores import Scoring


class CertifiedBatch(NamedTuple):
    """A certified batch.

    Attributes:
        table: The rows of its examples.
        skipped: The examples that could not be read.
    """

    table: pa.Table
    skipped: tuple[Skipped, ...]


PERMUTED, PIECE = 1_000_000, 4096
"""Up to how many examples are permuted to draw from them, and how many numbers are drawn at once of more examples."""


def sample(
    settings: Audit, population: int, aside: Int[np.ndarray, " others"] | None = None
) -> Int[np.ndarray, " examples"]:
    """Draw the examples to audit, without replacement.

    A larger sample begins with a smaller one.

    Args:
        settings: How many, and the seed.
        population: Number of all examples.
        aside: Indices that are not drawn; None excludes nothing.

    Returns:
        Indices in the order drawn.

    Examples:
        >>> few, more = (sample(Audit(examples=count), 100) for count in (3, 5))
        >>> few.tolist() == more[:3].tolist()
        True
    """
    generator, drawn = randomness.generator(settings.seed, Stream.AUDITED), np.zeros(0, np.int64)
    others = np.zeros(0, np.int64) if aside is None else aside
    if population <= PERMUTED:
        drawn = generator.permutation(population)
        return drawn[~np.isin(drawn, others)][: settings.examples]
    wanted = min(settings.examples, population - len(np.unique(others)))
    while len(drawn) < wanted:  # without numbers drawn before: the beginning of a random permutation
        drawn = np.concatenate([drawn, generator.integers(population, size=PIECE)])
        drawn = drawn[np.sort(np.unique(drawn, return_index=True)[1])]
        drawn = drawn[~np.isin(drawn, others)]
    return drawn[:wanted]


def absolute_damping(problem: Problem, damping: Damping, settings: Audit, shared: Shared = None) -> Float[Array, ""]:
    """Return λ as one number for the whole matrix, for certificates.

    A block-diagonal backend takes relative damping block by block, and so inverts another matrix: give it this λ as
    `Damping(absolute=…)` to compare it with certificates. From the rows of C the number is exact; without them the
    eigenvalues that it needs are estimated from `settings.probes` products.

    Args:
        problem: The problem whose curvature is inverted.
        damping: Relative or absolute damping.
        settings: The number of probes, and the seed.
        shared: The result of `prepare_shared`, or None.

    Raises:
        CurvatureError: The curvature is zero or not finite.
    """
    if isinstance(shared, RowsOfCurvature):
        return shared.damping(damping)
    if damping.of_spectrum:
        backend = CG(probes=settings.probes)
        return scalar(damping.resolve_by_spectrum(spectrum_by_products(problem, backend.probes, backend.lanczos_steps)))
    key = randomness.root(settings.seed, Stream.MEAN_EIGENVALUE)
    mean = jax.jit(mean_eigenvalue, static_argnums=2)(problem, key, settings.probes).value
    resolved = damping.resolve(mean)
    assert not isinstance(resolved, dict)
    if not 0 < float(resolved) < np.inf:
        raise CurvatureError(
            f"The mean eigenvalue of the curvature is {float(mean)}: damping relative to it has no meaning. Check the "
            "perturbation and the checkpoint, or give an absolute damping."
        )
    return resolved


def certify_examples(
    problem: Problem,
    source: OpenSource,
    transform: ToInput,
    indices: Int[np.ndarray, " count"],
    damping: Float[Array, ""],
    scoring: Scoring,
    settings: Audit = Audit(),
    measurement: Objective | None = None,
    shared: Shared = None,
) -> Iterator[CertifiedBatch]:
    """Certify the examples named by `indices`, batch by batch, in order.

    Columns: `index, id, lower, upper, products, reason`. `reason` is empty if the bounds are as narrow as asked, and
    says otherwise what is wrong; without a score, the bounds are NaN. The draws of each example are those of
    `scoring.stream` with the same `scoring`. Its `damping` and `leave_own_out` are ignored: the certificate is for
    `damping`, one number for the whole matrix, and for the whole curvature set.

    Args:
        problem: The problem whose curvature is inverted.
        source: The examples.
        transform: The transform of an image to the input.
        indices: Indices of examples; −1 leaves a row of a batch empty.
        damping: λ.
        scoring: Draws, their noise and the estimand.
        settings: How narrow the bounds are.
        measurement: The objective that is scored; the problem's own objective if None.
        shared: The result of `prepare_shared`; None computes it.

    Raises:
        CurvatureError: The curvature is a Hessian.
    """
    measurement = problem.objective if measurement is None else measurement
    run = jax.jit(certify, static_argnums=(1, 5, 6))
    shared = prepare_shared(problem, settings) if shared is None else shared
    key, noise = scoring.key, randomness.root(settings.seed, Stream.ROUNDING)
    size = min(settings.batch_size, max(1, len(indices)))
    for loaded in batches(source, transform, size, key, indices):
        bounds = run(problem, measurement, loaded.batch, damping, noise, scoring, settings.program, shared)
        yield CertifiedBatch(_table(loaded, bounds, settings), loaded.skipped)


def relative_width(lower: Float[np.ndarray, " n"], upper: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return (upper − lower) over the mean of their magnitudes.

    It is infinite without a bound on either side, zero if both are equal, never negative, and NaN without a score.

    Examples:
        >>> import numpy as np
        >>> relative_width(np.asarray([0.9, 2.0]), np.asarray([1.1, np.inf])).round(3).tolist()
        [0.2, inf]
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        width = (upper - lower) / ((np.abs(upper) + np.abs(lower)) / 2)
    endless = np.isinf(upper) | np.isinf(lower)
    return np.where(endless, np.inf, np.where(upper == lower, 0.0, width))


def _table(loaded: LoadedBatch, bounds: ScoreBounds, settings: Audit) -> pa.Table:
    """Return the valid rows of a certified batch."""
    valid = loaded.valid
    lower, upper, degenerate = (np.asarray(side)[valid] for side in bounds[:3])
    width = relative_width(lower.astype(np.float64), upper.astype(np.float64))
    # A thousandth more is accepted: the iteration compares widths with rounding of its own.
    reasons = [
        _reason(float(w), bool(undefined), settings.width * (1 + 1e-3))
        for w, undefined in zip(width, degenerate, strict=True)
    ]
    return pa.table(
        {
            "index": pa.array(np.asarray(loaded.batch.index)[valid].astype(np.int64)),
            "id": pa.array([name for name, ok in zip(loaded.ids, valid, strict=True) if ok], pa.string()),
            "lower": lower.astype(np.float64),
            "upper": upper.astype(np.float64),
            "products": pa.array(np.full(len(lower), int(bounds.steps), np.int64)),
            "reason": pa.array(reasons, pa.string()),
        }
    )


def _reason(width: float, undefined: bool, asked: float) -> str:
    """Say what is wrong with the bounds of an example.

    It is empty if nothing is.
    """
    if undefined:
        return "zero embedding: the cosine distance is undefined"
    if np.isnan(width):
        return "the score is not finite"
    if np.isinf(width):
        return "no bound: rounding is as large as the damping"
    return f"too wide: {100 * width:.2g} %" if width > asked else ""
