"""Random examples: the resident curvature set, and shuffled epochs for training."""

import logging
from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from influence_ssl_jax.data.loader import LoadedBatch, checked, chunks, in_order, load, stacked
from influence_ssl_jax.data.source import Example, OpenSource, Skipped, counted
from influence_ssl_jax.data.transform import ToInput
from influence_ssl_jax.errors import DataError
from influence_ssl_jax.types import Batch

_log = logging.getLogger(__name__)


def resident(source: OpenSource, transform: ToInput, count: int, batch_size: int, seed: int) -> Batch:
    """The curvature set: `count` random examples as batches with leading axes [num_batches, batch].

    The order is a permutation fixed by `seed`; what cannot be used is passed over, logged and replaced by what follows
    it. The number of batches is `count // batch_size`. Where the source or `count` has less than one batch, there is
    one smaller batch. An example's key is `fold_in(jax.random.key(seed), index)`.

    Raises:
        DataError: `count` is not positive, the source has no examples, or none of them can be used.
    """
    total = checked(source, batch_size)
    if count < 1:
        raise DataError(f"A curvature set has at least one example, got count={count}.")
    order = np.random.default_rng(seed).permutation(total)
    wanted = min(count, total)
    examples: list[Example] = []
    skipped: list[Skipped] = []
    for usable, missed in in_order(partial(load, source, transform), chunks(order, batch_size)):
        examples, skipped = examples + usable, skipped + missed
        if len(examples) >= wanted:
            break
    examples = examples[:wanted]
    for note in counted("images that cannot be used, replaced by others in the curvature set", _named(skipped)):
        _log.warning("%s", note)
    if not examples:
        raise DataError(f"None of the {total} examples can be used; the first: {_named(skipped)[0]}.")
    size = min(batch_size, len(examples))
    whole = [examples[start : start + size] for start in range(0, len(examples) - size + 1, size)]
    loaded = [stacked(rows, (), transform, size, jax.random.key(seed)).batch for rows in whole]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *loaded)


def epoch(
    source: OpenSource,
    transform: ToInput,
    batch_size: int,
    seed: int,
    epoch_number: int,
    start_step: int = 0,
) -> Iterator[LoadedBatch]:
    """One pass over the examples in random order, in whole batches without padding, from batch `start_step` on.

    The order depends on `(seed, epoch_number)` alone, and batch `k` on nothing but its number: a run that stopped goes
    on with the batches it would have had. The remainder is dropped; a source smaller than a batch is one smaller batch.
    What cannot be used is listed in `skipped`, and other examples, drawn with the same seed, take its place. An
    example's key is `fold_in(fold_in(jax.random.key(seed), epoch_number), index)`.

    Raises:
        DataError: The source has no examples, or a batch cannot be filled.
    """
    total = checked(source, batch_size)
    size = min(batch_size, total)
    order = np.random.default_rng([seed, epoch_number]).permutation(total)
    key = jax.random.fold_in(jax.random.key(seed), epoch_number)

    def filled(step: int) -> tuple[list[Example], list[Skipped]]:
        chosen = order[step * size : (step + 1) * size]
        return _filled(source, transform, chosen, np.random.default_rng([seed, epoch_number, step]))

    for examples, skipped in in_order(filled, range(start_step, total // size)):
        if not examples or (len(examples) < size and total > batch_size):
            raise DataError(
                f"A batch of {batch_size} cannot be filled: {len(skipped)} of {total} examples cannot be used, "
                f"the first: {_named(skipped)[0]}. Repair the data or use a smaller batch."
            )
        yield stacked(examples, skipped, transform, len(examples), key)


def _filled(
    source: OpenSource, transform: ToInput, chosen: Int[np.ndarray, " batch"], rng: np.random.Generator
) -> tuple[list[Example], list[Skipped]]:
    """The chosen examples; in place of those that cannot be used, others in random order."""
    examples, skipped = load(source, transform, chosen)
    if not skipped:
        return examples, skipped
    others = rng.permutation(np.setdiff1d(np.arange(len(source)), chosen))
    while len(examples) < len(chosen) and len(others):
        missing = len(chosen) - len(examples)
        usable, missed = load(source, transform, others[:missing])
        examples, skipped, others = examples + usable, skipped + missed, others[missing:]
    return examples, skipped


def _named(skipped: Sequence[Skipped]) -> list[str]:
    return [f"{each.id} ({each.reason})" for each in skipped]
