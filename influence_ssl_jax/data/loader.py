"""Load batches of examples: in order, at random, or from memory."""

import dataclasses
import itertools
import logging
import os
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jaxtyping import Array, Bool, Int, Key

from influence_ssl_jax import randomness
from influence_ssl_jax.data.examples import (
    Example,
    OpenSource,
    Skipped,
    UnreadableExample,
    content_of,
    digest,
    note_names,
    read_all,
)
from influence_ssl_jax.data.to_input import ToInput, UnusableImage
from influence_ssl_jax.errors import DataError
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.types import Batch

Task = TypeVar("Task")
Result = TypeVar("Result")

THREADS = "INFLUENCE_SSL_THREADS"
"""The environment variable with the number of threads that decode."""
MOST_THREADS = 32
AHEAD = 4
"""Number of batches that are loaded in advance, or the number of threads if there are more."""
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


Reading: TypeAlias = Callable[[Int[np.ndarray, " count"]], tuple[list[Example], list[Skipped]]]
"""A function that returns examples as inputs with their digests, and those that cannot be used, as `load` does."""


class LoadedBatch(NamedTuple):
    """A batch with the names and digests of its examples.

    Attributes:
        batch: The examples; a padding row repeats a valid row with index −1 (zeros if no row is valid).
        ids: Names of the examples, empty for padding.
        valid: Which rows are examples and not padding.
        skipped: The examples of this batch that cannot be used.
        contents: Digests of what the examples were read from, empty for padding.
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
    indices: Int[np.ndarray, " count"] | Iterable[Int[np.ndarray, " batch"]] | None = None,
    workers: int | None = None,
    ahead: int | None = None,
    place: Callable[[Batch], Batch] = jax.device_put,
    read: Reading | None = None,
) -> Iterator[LoadedBatch]:
    """Yield examples in order, in batches of one shape.

    Batch `k` has the examples at positions `[k·batch_size, (k+1)·batch_size)` of the order, each in its own row. An
    example that cannot be read, and an index of −1, give a row of padding; the last batch is padded. Threads decode
    `ahead` batches in advance and start their transfer to the device. These batches bound the memory, whatever the size of
    the source. The key of an example is `fold_in(key, index)`: it depends neither on the batch nor on the order.

    Args:
        source: The examples.
        transform: How an image becomes the input.
        batch_size: Number of rows of a batch.
        key: The key that those of the examples are derived from.
        indices: The examples in their order, −1 for an empty row; or those of each batch, which need not be in memory
            together. None takes all examples in order.
        workers: Number of threads; None takes `decoding_threads()`.
        ahead: Number of batches in advance; None takes the number of threads, and at least `AHEAD`.
        place: Moves a batch to the device that computes on it.
        read: Reads examples of this source as inputs; None takes `load`.

    Raises:
        DataError: If the source has no examples, or `batch_size` is not positive.

    Examples:
        >>> import jax, numpy as np
        >>> from influence_ssl_jax.data import Arrays, ToInput, batches
        >>> source = Arrays(np.zeros((3, 4, 4), np.uint8), ids=["a", "b", "c"]).open()
        >>> [loaded.ids for loaded in batches(source, ToInput(4, 4), 2, jax.random.key(0))]
        [('a', 'b'), ('c', '')]
    """
    total = count_examples(source, batch_size)
    if indices is None:
        indices = (np.arange(start, min(start + batch_size, total)) for start in range(0, total, batch_size))
    elif isinstance(indices, np.ndarray):
        indices = chunks(indices, batch_size)

    reading = partial(load, source, transform) if read is None else read

    def ready(chosen: Int[np.ndarray, " chunk"]) -> LoadedBatch:
        examples, skipped = reading(chosen[chosen >= 0])
        places = {int(index): row for row, index in enumerate(chosen)}
        loaded = stack(examples, skipped, transform, batch_size, key, [places[each.index] for each in examples])
        return loaded._replace(batch=place(loaded.batch))

    yield from map_in_order(ready, indices, workers, ahead)


def time_waiting(loading: Iterator[LoadedBatch], spent: defaultdict[str, float]) -> Iterator[LoadedBatch]:
    """Yield batches, and add the seconds of waiting for them to `spent["images"]`."""
    while True:
        began = time.perf_counter()
        loaded = next(loading, None)
        spent["images"] += time.perf_counter() - began
        if loaded is None:
            return
        yield loaded


MUCH, LONG = 0.2, 10.0
"""Share of the time of a run, and seconds, from which on waiting for images is worth advice."""


def describe_waiting(share: float, seconds: float) -> str:
    """Say for how much of the time a run waited for images.

    If it is much, advice follows.

    Args:
        share: The share of the time of the run.
        seconds: The seconds for which it waited.

    Examples:
        >>> from influence_ssl_jax.data.loader import describe_waiting
        >>> describe_waiting(0.03, 12.0)
        'Waited for images 3 % of the time.'
    """
    said = f"Waited for images {100 * share:.0f} % of the time."
    if share < MUCH or seconds < LONG:
        return said
    return (
        f"{said} Reading and decoding them is slower than the computation: give the process more cores ({THREADS} sets the "
        f"number of threads, now {decoding_threads()}), a faster disk, or images nearer to the size of the input."
    )


def decoding_threads(environment: Mapping[str, str] = os.environ, quota: Path = _QUOTA) -> int:
    """Return the number of threads that decode.

    It is that of the cores, at most `MOST_THREADS`. The cores are those that the process may run on, or fewer if its
    control group has less time. The environment variable INFLUENCE_SSL_THREADS sets another number, for example if
    several processes share a machine.

    Raises:
        DataError: If the variable is not a whole number of at least 1.

    Examples:
        >>> from influence_ssl_jax.data.loader import decoding_threads
        >>> decoding_threads({"INFLUENCE_SSL_THREADS": "6"})
        6
    """
    asked = environment.get(THREADS)
    if asked is not None:
        if not asked.isdecimal() or int(asked) < 1:
            raise DataError(f"{THREADS} must be a number of threads, at least 1, got {asked!r}.")
        return int(asked)
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no such call
        cores = os.cpu_count() or 1
    try:
        granted, period = quota.read_text().split()
        cores = min(cores, -(-int(granted) // int(period)))
    except (OSError, ValueError):  # there is no control group, or it has no limit ("max")
        pass
    return max(1, min(cores, MOST_THREADS))


def count_examples(source: OpenSource, batch_size: int) -> int:
    """Return the number of examples.

    Raises:
        DataError: If the source has no examples, or the batch size is not positive.
    """
    if batch_size < 1:
        raise DataError(f"batch_size must be at least 1, got {batch_size}.")
    if not len(source):
        raise DataError("The data set has no images. Check its path, its split, or the ids that are kept.")
    return len(source)


def load(
    source: OpenSource, transform: ToInput, indices: Int[np.ndarray, " count"]
) -> tuple[list[Example], list[Skipped]]:
    """Read and transform examples.

    Return these with their digests, and those that cannot be used.

    Raises:
        DataError: As `data.examples.retry`.
    """
    examples, skipped = [], []
    for read in read_all(source, indices.tolist()):
        made = to_input(read, transform)
        if isinstance(made, Skipped):
            skipped.append(made)
        else:
            examples.append(made)
    return examples, skipped


def to_input(read: Example | Skipped, transform: ToInput) -> Example | Skipped:
    """Transform an example and keep its digest, or say why not."""
    if isinstance(read, Skipped):
        return read
    try:
        return dataclasses.replace(read, image=transform(read.image), content=content_of(read))
    except UnusableImage as error:
        return Skipped(read.index, read.id, str(error))


def chunks(order: Int[np.ndarray, " count"], size: int) -> Iterator[Int[np.ndarray, " chunk"]]:
    """Divide an order into chunks of `size`; the last may be smaller.

    Examples:
        >>> import numpy as np
        >>> from influence_ssl_jax.data.loader import chunks
        >>> [chunk.tolist() for chunk in chunks(np.arange(5), 2)]
        [[0, 1], [2, 3], [4]]
    """
    return (order[start : start + size] for start in range(0, len(order), size))


def map_in_order(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    workers: int | None = None,
    ahead: int | None = None,
) -> Iterator[Result]:
    """Yield `map(function, tasks)`, computed by threads at most `ahead` results in advance.

    An exception of `function` is raised in the position of its result. If the iterator is closed, tasks that have not
    begun are cancelled, and the others are waited for. The defaults of `workers` and `ahead` are those of `batches`.

    Examples:
        >>> from influence_ssl_jax.data.loader import map_in_order
        >>> list(map_in_order(str.upper, ["a", "b", "c"], workers=2))
        ['A', 'B', 'C']
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


def stack(
    examples: Sequence[Example],
    skipped: Sequence[Skipped],
    transform: ToInput,
    batch_size: int,
    key: Key[Array, ""],
    places: Sequence[int] | None = None,
) -> LoadedBatch:
    """Stack transformed examples to `batch_size` rows; missing rows are padding.

    Args:
        examples: The examples.
        skipped: The examples that cannot be used.
        transform: The transform that made the images.
        batch_size: Number of rows of the batch.
        key: The key that those of the examples are derived from.
        places: The row of each example; None takes the first rows.
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
    """Return an array of NumPy as a leaf of a batch.

    It is not yet on a device.
    """
    return array


def _shape(transform: ToInput) -> tuple[int, int, int]:
    """Return height, width and channels of the input."""
    return transform.height, transform.width, transform.channels


@jax.jit
def example_keys(key: Key[Array, ""], index: Int[Array | np.ndarray, " batch"]) -> Key[Array, " batch"]:
    """Return `fold_in(key, index)` for each example.

    Such a key does not depend on the batch.
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


MAX_BYTES = 4 * 2**30
_CHUNK = 256


class Cached(OpenSource):
    """Transformed images in memory, in one uint8 array.

    Indices, ids, attributes and skipped examples are those of the source.
    """

    def __init__(self, source: OpenSource, transform: ToInput, examples: list[Example | Skipped]) -> None:
        self._source, self._transform = source, transform
        self._examples = examples

    @property
    def source(self) -> OpenSource:
        """The source that the images were read from."""
        return self._source

    @property
    def transform(self) -> ToInput:
        """The transform of the images."""
        return self._transform

    @property
    def examples(self) -> list[Example | Skipped]:
        """Every example, or why it cannot be used."""
        return self._examples

    def __len__(self) -> int:
        return len(self._examples)

    def read(self, index: int) -> Example:
        """Return a transformed example."""
        example = self._examples[index]
        if isinstance(example, Skipped):
            raise UnreadableExample(example.index, example.id, example.reason)
        return example

    def class_names(self) -> tuple[str, ...] | None:
        """Return the names of the classes of the source."""
        return self._source.class_names()

    def ids(self) -> Sequence[str]:
        """Return the ids of the source."""
        return self._source.ids()

    def labels(self) -> Int[np.ndarray, " examples"]:
        """Return the classes of the source."""
        return self._source.labels()

    def truth(self) -> tuple[str, ...]:
        """Return the names of the attributes that say what the source planted."""
        return self._source.truth()

    def attributes(self) -> pa.Table | None:
        """Return the attributes of the source."""
        return self._source.attributes()

    def fingerprint(self) -> str:
        """Return a hash of the fingerprint of the source and the transform."""
        return digest("cached", self._source.fingerprint(), repr(self._transform))

    def members(self) -> str:
        """Return a hash of the members of the source and the transform."""
        return digest("cached", self._source.members(), repr(self._transform))

    def notes(self) -> tuple[str, ...]:
        """Return the notes of the source."""
        return self._source.notes()


def cache(source: OpenSource, transform: ToInput, max_bytes: int = MAX_BYTES) -> Cached:
    """Read and transform every image once, and keep it in memory.

    This is for many epochs.

    Raises:
        DataError: If the transformed images need more than `max_bytes`.

    Examples:
        >>> import numpy as np
        >>> from influence_ssl_jax.data import Arrays, ToInput, cache
        >>> kept = cache(Arrays(np.zeros((3, 8, 8), np.uint8)).open(), ToInput(4, 4))
        >>> kept.read(2).image.shape
        (4, 4, 3)
    """
    need = len(source) * transform.height * transform.width * transform.channels
    if need > max_bytes:
        shape = f"{transform.height}×{transform.width}×{transform.channels}"
        raise DataError(
            f"{len(source)} images of {shape} need {need / 2**30:.1f} GiB, more than the limit of "
            f"{max_bytes / 2**30:.1f} GiB. Read from the source itself, or set max_bytes to more."
        )
    pixels = np.empty((len(source), transform.height, transform.width, transform.channels), np.uint8)

    entries: dict[int, Example | Skipped] = {}
    for examples, skipped in map_in_order(partial(load, source, transform), chunks(np.arange(len(source)), _CHUNK)):
        for example in examples:
            pixels[example.index] = example.image
            entries[example.index] = dataclasses.replace(example, image=pixels[example.index])
        entries.update({each.index: each for each in skipped})
    return Cached(source, transform, [entries[index] for index in range(len(source))])


_log = logging.getLogger(__name__)


class CurvatureDraw(NamedTuple):
    """The curvature set with the digests of what it was read from.

    Attributes:
        batches: The examples, with leading axes [num_batches, batch].
        contents: Digests of all examples of the set by index, those of other processes included.
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
    """Return the batches of `draw_curvature_set`.

    The arguments are the same but for an earlier draw.

    Examples:
        >>> import numpy as np
        >>> from influence_ssl_jax.data import Arrays, ToInput, resident
        >>> source = Arrays(np.zeros((10, 4, 4), np.uint8)).open()
        >>> resident(source, ToInput(4, 4), count=6, batch_size=2, seed=0).image.shape
        (3, 2, 4, 4, 3)
    """
    return draw_curvature_set(source, transform, count, batch_size, seed, part).batches


def draw_curvature_set(
    source: OpenSource,
    transform: ToInput,
    count: int,
    batch_size: int,
    seed: int,
    part: Callable[[int], range] | None = None,
    among: Int[np.ndarray, " members"] | None = None,
) -> CurvatureDraw:
    """Draw the curvature set: `count` random examples, in batches.

    The leading axes are [num_batches, batch]. `seed` determines a permutation of the source, and the first usable
    examples of it are taken; those that cannot be used are left out and logged. There are `count // batch_size`
    batches, or one smaller batch if `count` or the source has fewer examples than a batch. The key of an example is
    derived from the seed and its index.

    Args:
        source: The examples to draw from.
        transform: How an image becomes the input.
        count: Number of examples.
        batch_size: Number of examples of a batch.
        seed: Seed of the draw.
        part: A function from the number of batches to those that this process keeps; None keeps all. A number beyond the
            last batch stands for a batch of padding (index −1 in every row).
        among: The examples of an earlier draw: only they are taken, so that an example that could not be used then and
            can be used now does not change the set. None draws from all.

    Raises:
        DataError: If `count` is not positive, the source has no examples, or none of them can be used.
    """
    total = count_examples(source, batch_size)
    if count < 1:
        raise DataError(f"A curvature set needs at least one example, got count={count}.")
    order = randomness.generator(seed, Stream.CURVATURE_ORDER).permutation(total)
    if among is not None:
        order = order[np.isin(order, among)]
    wanted = min(count, len(order))
    kept = (part or range)(max(1, wanted // batch_size))
    examples: dict[int, Example] = {}  # by position in the set, only those of the kept batches
    contents: dict[int, bytes] = {}
    skipped: list[Skipped] = []
    drawn = 0
    for usable, missed in map_in_order(partial(load, source, transform), chunks(order, batch_size)):
        skipped += missed
        for example in usable[: wanted - drawn]:
            contents[example.index] = example.content
            if drawn // batch_size in kept or wanted < batch_size:
                examples[drawn] = example
            drawn += 1
        if drawn == wanted:
            break
    for note in note_names(
        "images that cannot be used, replaced by others in the curvature set", _name_reasons(skipped)
    ):
        _log.warning("%s", note)
    if not drawn:
        raise DataError(
            f"None of the {total} examples can be used. The first is {_name_reasons(skipped)[0]}. Check the data set."
        )
    size = min(batch_size, drawn)
    if part is None:
        kept = range(drawn // size)
    whole = [[examples[k] for k in range(n * size, (n + 1) * size)] if n < drawn // size else [] for n in kept]
    key = randomness.root(seed, Stream.CURVATURE_EXAMPLES)
    loaded = [stack(rows, (), transform, size, key).batch for rows in whole]
    used = itertools.islice(contents.items(), drawn // size * size)
    if drawn // size * size < count:
        _log.warning(
            "The curvature set has %s images, not the %s that were asked for: %s can be used, in whole batches of %s.",
            *(f"{number:,}" for number in (drawn // size * size, count, drawn if drawn < count else count, size)),
        )
    return CurvatureDraw(jax.tree.map(lambda *leaves: jnp.stack(leaves), *loaded), dict(used))


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
    """Yield one pass over the examples in random order, in full batches.

    `(seed, epoch_number)` determines the order, and each batch is determined by its number: a run that was stopped
    continues with the same batches. The remainder of the order is dropped; a source smaller than a batch is one smaller
    batch. Examples that cannot be used are listed in `skipped`, and random substitutes, determined by the seed, the batch
    and the row, take their rows. The key of an example is derived from the seed, the epoch and its index.

    Args:
        source: The examples.
        transform: How an image becomes the input.
        batch_size: Number of examples of a batch.
        seed: Seed of order and keys.
        epoch_number: Number of the pass.
        start_step: Number of the first batch.
        part: A function from the size of a batch to the rows that this process loads.
        place: Moves a batch to the device that computes on it.

    Raises:
        DataError: If the source has no examples, or a batch cannot be filled.
    """
    total = count_examples(source, batch_size)
    size = min(batch_size, total)
    order = randomness.generator(seed, Stream.TRAINING_ORDER, epoch_number).permutation(total)
    key = jax.random.fold_in(randomness.root(seed, Stream.TRAINING_EXAMPLES), epoch_number)

    rows = part(size)

    def fill(step: int) -> LoadedBatch:
        chosen = order[step * size : (step + 1) * size]
        rng = randomness.generator(seed, Stream.TRAINING_SUBSTITUTES, epoch_number, step)
        examples, skipped = _fill_rows(source, transform, chosen, rows, rng)
        must_be_full = total > batch_size or len(rows) < size
        if not examples or (len(examples) < len(rows) and must_be_full):
            raise DataError(
                f"A batch of {batch_size} cannot be filled: {len(skipped)} of {total} examples cannot be used, the first "
                f"is {_name_reasons(skipped)[0]}. Repair the data or use a smaller batch."
            )
        loaded = stack(examples, skipped, transform, len(examples), key)
        return loaded._replace(batch=place(loaded.batch))

    yield from map_in_order(fill, range(start_step, total // size))


def _fill_rows(
    source: OpenSource,
    transform: ToInput,
    chosen: Int[np.ndarray, " batch"],
    rows: range,
    rng: np.random.Generator,
) -> tuple[list[Example], list[Skipped]]:
    """Load rows of a batch, with random substitutes for unusable examples.

    A row draws substitutes until one can be used: first from the examples `row, row + batch, row + 2 batch, …`, then from
    all. In the first step two rows cannot take the same example, and no row depends on the other rows that are loaded. The
    cost is that of the draws, whatever the size of the source.
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
        kept = loaded.get(int(chosen[row]))
        generator = of_rows[row]
        own = (row + size * k for k in _shuffle(len(range(row, len(source), size)), generator))
        for index in itertools.chain(own, _shuffle(len(source), generator)):
            if kept is not None:
                break
            if index in taken or index in unusable:
                continue
            usable, missed = load(source, transform, np.array([index]))
            skipped += missed
            unusable |= {each.index for each in missed}
            kept = usable[0] if usable else None
        filled += [] if kept is None else [kept]
    return filled, skipped


def _shuffle(count: int, rng: np.random.Generator) -> Iterator[int]:
    """Yield a random permutation of `range(count)` one number at a time.

    This is the shuffle of Fisher and Yates. Only its exchanges are stored, so memory grows with the numbers drawn.
    """
    moved: dict[int, int] = {}
    for place in range(count):
        drawn = int(rng.integers(place, count))
        yield moved.get(drawn, drawn)
        moved[drawn] = moved.get(place, place)


def _name_reasons(skipped: Sequence[Skipped]) -> list[str]:
    """Return the name of each skipped example with its reason."""
    return [f"{each.id} ({each.reason})" for each in skipped]
