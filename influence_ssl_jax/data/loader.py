"""Load batches of examples: in order, at random, or from memory."""

import dataclasses
import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jaxtyping import Array, Bool, Int, Key

from influence_ssl_jax import randomness
from influence_ssl_jax.data.source import (
    Example,
    OpenSource,
    Skipped,
    UnreadableExample,
    content_of,
    counted,
    digest,
    read_all,
)
from influence_ssl_jax.data.transform import ToInput, UnusableImage
from influence_ssl_jax.errors import DataError
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.types import Batch

Task = TypeVar("Task")
Result = TypeVar("Result")

THREADS = "INFLUENCE_SSL_THREADS"
"""The environment variable that sets the number of threads that decode."""
MOST_THREADS = 32
AHEAD = 4
"""Batches that are held ready beside the one in use, or one for each thread where there are more."""
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


class LoadedBatch(NamedTuple):
    """A batch and what it is made of.

    Attributes:
        batch: The examples; a padding row repeats a valid one under index −1 (zeros where none is valid).
        ids: The examples' names, empty for padding.
        valid: Which rows are examples and not padding.
        skipped: The examples that belong here and could not be used.
        contents: The digests of what the examples were read from, empty for padding.
    """

    batch: Batch
    ids: tuple[str, ...]
    valid: Bool[np.ndarray, " batch"]
    skipped: tuple[Skipped, ...]
    contents: tuple[bytes, ...]


def batches(
    source: OpenSource,
    transform: ToInput,
    batch_size: int,
    key: Key[Array, ""],
    indices: Int[np.ndarray, " count"] | None = None,
    workers: int | None = None,
    ahead: int | None = None,
    place: Callable[[Batch], Batch] = jax.device_put,
) -> Iterator[LoadedBatch]:
    """Every example once, in the order of `indices` (all, in order, where None), in batches of one shape.

    Batch `k` holds the examples at places `[k·batch_size, (k+1)·batch_size)` of the order, each in its own row. What
    cannot be read, and an index of −1, leaves padding in its row; the last batch is padded. Threads decode `ahead`
    batches in advance and begin their transfer to the device; memory is bounded by them, whatever the size of the
    source. An example's key is `fold_in(key, index)`: it depends neither on the batch nor on the order.

    Args:
        source: The examples.
        transform: How an image becomes the input.
        batch_size: Rows of a batch.
        key: Of all examples together.
        indices: Which examples, in which order; −1 for an empty row.
        workers: Threads; `decoding_threads()` where None.
        ahead: Batches in advance; as many as threads, and at least AHEAD, where None.
        place: Brings a batch to where it is computed on.

    Raises:
        DataError: The source has no examples, or `batch_size` is not positive.
    """
    checked(source, batch_size)
    order = np.arange(len(source)) if indices is None else np.asarray(indices)

    def ready(chosen: Int[np.ndarray, " chunk"]) -> LoadedBatch:
        examples, skipped = load(source, transform, chosen[chosen >= 0])
        places = {int(index): row for row, index in enumerate(chosen)}
        loaded = stacked(examples, skipped, transform, batch_size, key, [places[each.index] for each in examples])
        return loaded._replace(batch=place(loaded.batch))

    yield from in_order(ready, chunks(order, batch_size), workers, ahead)


def decoding_threads(environment: Mapping[str, str] = os.environ, quota: Path = _QUOTA) -> int:
    """Return how many threads decode: as many as this process has cores, at most MOST_THREADS.

    Cores are those that the process may run on, or fewer where a control group grants less time. The environment
    variable INFLUENCE_SSL_THREADS sets another number, as for several processes that share a machine.

    Raises:
        DataError: The variable is no whole number of at least 1.
    """
    asked = environment.get(THREADS)
    if asked is not None:
        if not asked.isdecimal() or int(asked) < 1:
            raise DataError(f"{THREADS} is a number of threads, at least 1, got {asked!r}.")
        return int(asked)
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no such call
        cores = os.cpu_count() or 1
    try:
        granted, period = quota.read_text().split()
        cores = min(cores, -(-int(granted) // int(period)))
    except (OSError, ValueError):  # no control group, or one without a limit ("max")
        pass
    return max(1, min(cores, MOST_THREADS))


def checked(source: OpenSource, batch_size: int) -> int:
    """The number of examples, where there are any and the batch size is a size."""
    if batch_size < 1:
        raise DataError(f"batch_size must be at least 1, got {batch_size}.")
    if not len(source):
        raise DataError("The data set has no images; there is nothing to load. Check its path, split or filter.")
    return len(source)


def load(
    source: OpenSource, transform: ToInput, indices: Int[np.ndarray, " count"]
) -> tuple[list[Example], list[Skipped]]:
    """The transformed examples with the digests of what they were read from, and those that cannot be used.

    Raises:
        DataError: Reading failed again and again for a reason that is not an image's.
    """
    examples, skipped = [], []
    for read in read_all(source, indices.tolist()):
        if isinstance(read, Skipped):
            skipped.append(read)
            continue
        try:
            examples.append(dataclasses.replace(read, image=transform(read.image), content=content_of(read)))
        except UnusableImage as error:
            skipped.append(Skipped(read.index, read.id, str(error)))
    return examples, skipped


def chunks(order: Int[np.ndarray, " count"], size: int) -> Iterator[Int[np.ndarray, " chunk"]]:
    """An order in pieces of `size`, the last one maybe smaller."""
    return (order[start : start + size] for start in range(0, len(order), size))


def in_order(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    workers: int | None = None,
    ahead: int | None = None,
) -> Iterator[Result]:
    """`map(function, tasks)` on threads that work at most `ahead` results in advance; None as in `batches`.

    An exception of `function` is raised in its place. Leaving the iterator cancels what has not begun and waits for the
    rest.
    """
    workers = workers or decoding_threads()
    ahead = max(AHEAD, workers) if ahead is None else ahead
    pool = ThreadPoolExecutor(workers, thread_name_prefix="load")
    pending: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            pending.append(pool.submit(function, task))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def stacked(
    examples: Sequence[Example],
    skipped: Sequence[Skipped],
    transform: ToInput,
    batch_size: int,
    key: Key[Array, ""],
    places: Sequence[int] | None = None,
) -> LoadedBatch:
    """Transformed examples as one batch of `batch_size` rows; the rows that are missing are padding.

    Args:
        examples: What there is.
        skipped: What could not be used.
        transform: What made the images.
        batch_size: Rows of the batch.
        key: Of all examples together.
        places: The row of each example; the first rows where None.
    """
    padding = examples[-1] if examples else Example(0, "", np.zeros(_shape(transform), np.uint8))
    rows, ids, valid = [padding] * batch_size, [""] * batch_size, np.zeros(batch_size, bool)
    contents = [b""] * batch_size
    for place, example in zip(range(len(examples)) if places is None else places, examples, strict=True):
        rows[place], ids[place], valid[place], contents[place] = example, example.id, True, example.content
    named = np.array([row.index for row in rows], np.int32)
    labels = np.array([-1 if row.label is None else row.label for row in rows], np.int32)
    batch = Batch(
        image=_host(np.stack([row.image for row in rows])),
        key=example_keys(key, named),
        index=_host(np.where(valid, named, np.int32(-1))),
        label=_host(np.where(valid, labels, np.int32(-1))),
    )
    return LoadedBatch(batch, tuple(ids), valid, tuple(skipped), tuple(contents))


def _host(array: np.ndarray) -> Any:
    """An array of NumPy's, which a batch may hold until it is placed on a device."""
    return array


def _shape(transform: ToInput) -> tuple[int, int, int]:
    return transform.height, transform.width, transform.channels


@jax.jit
def example_keys(key: Key[Array, ""], index: Int[Array | np.ndarray, " batch"]) -> Key[Array, " batch"]:
    """`fold_in(key, index)`: an example's own key, whatever batch it is in."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


MAX_BYTES = 4 * 2**30
_CHUNK = 256


class Cached(OpenSource):
    """Transformed images in one uint8 array; indices, ids and what cannot be used are those of the source."""

    def __init__(self, source: OpenSource, transform: ToInput, examples: list[Example | Skipped]) -> None:
        self._source, self._transform = source, transform
        self._examples = examples

    @property
    def source(self) -> OpenSource:
        """Where the images were read from."""
        return self._source

    @property
    def transform(self) -> ToInput:
        """What they went through."""
        return self._transform

    @property
    def examples(self) -> list[Example | Skipped]:
        """Every example as it was read, or why it could not be used."""
        return self._examples

    def __len__(self) -> int:
        return len(self._examples)

    def read(self, index: int) -> Example:
        """The transformed example."""
        example = self._examples[index]
        if isinstance(example, Skipped):
            raise UnreadableExample(example.index, example.id, example.reason)
        return example

    def class_names(self) -> tuple[str, ...] | None:
        """Those of the source."""
        return self._source.class_names()

    def ids(self) -> Sequence[str]:
        """Those of the source."""
        return self._source.ids()

    def labels(self) -> Int[np.ndarray, " examples"]:
        """Those of the source."""
        return self._source.labels()

    def truth(self) -> tuple[str, ...]:
        """Those of the source."""
        return self._source.truth()

    def attributes(self) -> pa.Table | None:
        """Those of the source."""
        return self._source.attributes()

    def fingerprint(self) -> str:
        """That of the source, and the transform."""
        return digest("cached", self._source.fingerprint(), repr(self._transform))

    def notes(self) -> tuple[str, ...]:
        """Those of the source."""
        return self._source.notes()


def cached(source: OpenSource, transform: ToInput, max_bytes: int = MAX_BYTES) -> Cached:
    """The source decoded and transformed once, for many epochs with the same transform.

    Raises:
        DataError: The transformed images need more than `max_bytes`.
    """
    need = len(source) * transform.height * transform.width * transform.channels
    if need > max_bytes:
        shape = f"{transform.height}×{transform.width}×{transform.channels}"
        raise DataError(
            f"{len(source)} images of {shape} need {need / 2**30:.1f} GiB, more than the {max_bytes / 2**30:.1f} GiB "
            "allowed; stream from the source itself, or raise max_bytes."
        )
    pixels = np.empty((len(source), transform.height, transform.width, transform.channels), np.uint8)

    entries: dict[int, Example | Skipped] = {}
    for examples, skipped in in_order(partial(load, source, transform), chunks(np.arange(len(source)), _CHUNK)):
        for example in examples:
            pixels[example.index] = example.image
            entries[example.index] = dataclasses.replace(example, image=pixels[example.index])
        entries.update({each.index: each for each in skipped})
    return Cached(source, transform, [entries[index] for index in range(len(source))])


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
