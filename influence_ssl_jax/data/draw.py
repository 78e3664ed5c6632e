"""Random examples: the resident curvature set, and shuffled epochs for training."""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from influence_ssl_jax import randomness
from influence_ssl_jax.data.loader import LoadedBatch, checked, chunks, in_order, load, stacked
from influence_ssl_jax.data.source import Example, OpenSource, Skipped, counted
from influence_ssl_jax.data.transform import ToInput
from influence_ssl_jax.errors import DataError
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.types import Batch

_log = logging.getLogger(__name__)


class Drawn(NamedTuple):
    """The curvature set and what it was read from.

    Attributes:
        batches: The examples, with leading axes [num_batches, batch].
        contents: The digest of every example of the set, by its index; those of other processes included.
    """

    batches: Batch
    contents: dict[int, bytes]


def resident(
    source: OpenSource,
    transform: ToInput,
    count: int,
    batch_size: int,
    seed: int,
    part: Callable[[int], range] | None = None,
) -> Batch:
    """The batches of `drawn`, with the same arguments."""
    return drawn(source, transform, count, batch_size, seed, part).batches


def drawn(
    source: OpenSource,
    transform: ToInput,
    count: int,
    batch_size: int,
    seed: int,
    part: Callable[[int], range] | None = None,
) -> Drawn:
    """The curvature set: `count` random examples as batches with leading axes [num_batches, batch].

    The order is a permutation fixed by `seed`; what cannot be used is passed over, logged and replaced by what follows
    it. The number of batches is `count // batch_size`. Where the source or `count` has less than one batch, there is
    one smaller batch. An example's key is numbered below a stream of the seed.

    Args:
        source: Where the examples are drawn from.
        transform: How an image becomes the input.
        count: How many.
        batch_size: Examples of a batch.
        seed: Fixes the draw.
        part: From the number of batches to those that are kept here, for a process that holds only a part of the set;
            a number beyond the last stands for a batch of padding (index −1 in every row).

    Raises:
        DataError: `count` is not positive, the source has no examples, or none of them can be used.
    """
    total = checked(source, batch_size)
    if count < 1:
        raise DataError(f"A curvature set has at least one example, got count={count}.")
    order = randomness.generator(seed, Stream.CURVATURE_ORDER).permutation(total)
    wanted = min(count, total)
    kept = (part or range)(max(1, wanted // batch_size))
    examples: dict[int, Example] = {}  # by place in the set, those of the kept batches alone
    contents: dict[int, bytes] = {}
    skipped: list[Skipped] = []
    found = 0
    for usable, missed in in_order(partial(load, source, transform), chunks(order, batch_size)):
        skipped += missed
        for example in usable[: wanted - found]:
            contents[example.index] = example.content
            if found // batch_size in kept or wanted < batch_size:
                examples[found] = example
            found += 1
        if found == wanted:
            break
    for note in counted("images that cannot be used, replaced by others in the curvature set", _named(skipped)):
        _log.warning("%s", note)
    if not found:
        raise DataError(f"None of the {total} examples can be used; the first: {_named(skipped)[0]}.")
    size = min(batch_size, found)
    if part is None:
        kept = range(found // size)
    whole = [[examples[k] for k in range(n * size, (n + 1) * size)] if n < found // size else [] for n in kept]
    key = randomness.root(seed, Stream.CURVATURE_EXAMPLES)
    loaded = [stacked(rows, (), transform, size, key).batch for rows in whole]
    used = itertools.islice(contents.items(), found // size * size)
    return Drawn(jax.tree.map(lambda *leaves: jnp.stack(leaves), *loaded), dict(used))


def epoch(
    source: OpenSource,
    transform: ToInput,
    batch_size: int,
    seed: int,
    epoch_number: int,
    start_step: int = 0,
    part: Callable[[int], range] = range,
    place: Callable[[Batch], Batch] = jax.device_put,
) -> Iterator[LoadedBatch]:
    """One pass over the examples in random order, in whole batches without padding, from batch `start_step` on.

    The order depends on `(seed, epoch_number)` alone, and batch `k` on nothing but its number: a run that stopped goes
    on with the batches it would have had. The remainder is dropped; a source smaller than a batch is one smaller batch.
    What cannot be used is listed in `skipped`, and another example, drawn with the same seed for that row of that batch,
    takes its place. An example's key is numbered below the epoch's, and the epoch's below a stream of the seed.

    Args:
        source: The examples.
        transform: How an image becomes the input.
        batch_size: Examples of a batch.
        seed: Fixes order and keys.
        epoch_number: Which pass.
        start_step: Batches that are left out at the beginning.
        part: From the size of a batch to the rows that are loaded here, for a process that holds only those.
        place: Brings a batch to where it is computed on.

    Raises:
        DataError: The source has no examples, or a batch cannot be filled.
    """
    total = checked(source, batch_size)
    size = min(batch_size, total)
    order = randomness.generator(seed, Stream.TRAINING_ORDER, epoch_number).permutation(total)
    key = jax.random.fold_in(randomness.root(seed, Stream.TRAINING_EXAMPLES), epoch_number)

    rows = part(size)

    def filled(step: int) -> LoadedBatch:
        chosen = order[step * size : (step + 1) * size]
        rng = randomness.generator(seed, Stream.TRAINING_SUBSTITUTES, epoch_number, step)
        examples, skipped = _filled(source, transform, chosen, rows, rng)
        must_be_full = total > batch_size or len(rows) < size
        if not examples or (len(examples) < len(rows) and must_be_full):
            raise DataError(
                f"A batch of {batch_size} cannot be filled: {len(skipped)} of {total} examples cannot be used, "
                f"the first: {_named(skipped)[0]}. Repair the data or use a smaller batch."
            )
        loaded = stacked(examples, skipped, transform, len(examples), key)
        return loaded._replace(batch=place(loaded.batch))

    yield from in_order(filled, range(start_step, total // size))


def _filled(
    source: OpenSource,
    transform: ToInput,
    chosen: Int[np.ndarray, " batch"],
    rows: range,
    rng: np.random.Generator,
) -> tuple[list[Example], list[Skipped]]:
    """The chosen examples of some rows; in the place of one that cannot be used, another, random and fixed by its row.

    A row draws its substitute, again until one can be used, from every `batch`-th example first, so that two rows find
    two, and what a row finds does not depend on which other rows are loaded beside it. The cost is that of the draws,
    whatever the size of the source.
    """
    examples, skipped = load(source, transform, chosen[rows.start : rows.stop])
    if not skipped:
        return examples, skipped
    loaded = {example.index: example for example in examples}
    unusable = {each.index for each in skipped}
    taken, size = set(chosen.tolist()), len(chosen)
    of_rows = rng.spawn(size)
    filled: list[Example] = []
    for row in rows:
        found = loaded.get(int(chosen[row]))
        drawn = of_rows[row]
        own = (row + size * k for k in _shuffled(len(range(row, len(source), size)), drawn))
        for index in itertools.chain(own, _shuffled(len(source), drawn)):
            if found is not None:
                break
            if index in taken or index in unusable:
                continue
            usable, missed = load(source, transform, np.array([index]))
            skipped += missed
            unusable |= {each.index for each in missed}
            found = usable[0] if usable else None
        filled += [] if found is None else [found]
    return filled, skipped


def _shuffled(count: int, rng: np.random.Generator) -> Iterator[int]:
    """Yield a random permutation of `range(count)` one number at a time, in the memory of those that were drawn.

    The shuffle of Fisher and Yates, whose exchanges alone are kept.
    """
    moved: dict[int, int] = {}
    for place in range(count):
        drawn = int(rng.integers(place, count))
        yield moved.get(drawn, drawn)
        moved[drawn] = moved.get(place, place)


def _named(skipped: Sequence[Skipped]) -> list[str]:
    return [f"{each.id} ({each.reason})" for each in skipped]
