"""Readers that share one reading: each image is read once, nothing is kept, and nobody waits for ever."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from influence_ssl_jax.data import Arrays, ToInput
from influence_ssl_jax.data.arrays import InMemory
from influence_ssl_jax.data.examples import UnreadableExample
from influence_ssl_jax.data.loader import load
from influence_ssl_jax.data.sharing import SharedReading

SIZE = 60
IMAGES = np.random.default_rng(0).integers(0, 256, (SIZE, 6, 5, 3)).astype(np.uint8)
TRANSFORMS = ToInput(4, 4), ToInput(4, 4), ToInput(5, 3, 1)


def same(one, other):
    for left, right in zip(one, other, strict=True):
        assert [each.index for each in left] == [each.index for each in right]
    for left, right in zip(one[0], other[0], strict=True):
        np.testing.assert_array_equal(left.image, right.image)
        assert (left.id, left.label, left.content) == (right.id, right.label, right.content)
    assert one[1] == other[1]


def test_readers_in_threads_have_what_each_would_read_alone(monkeypatch):
    """Chunks of several sizes overlap, some images are damaged, and each reader leaves out some."""
    counted, read = [], InMemory.read

    def counting(source, index):
        counted.append(index)
        if index % 7 == 3:
            raise UnreadableExample(index, str(index), "truncated")
        return read(source, index)

    monkeypatch.setattr(InMemory, "read", counting)
    source = Arrays(IMAGES, labels=np.arange(SIZE) % 4).open()
    wanted = [np.arange(SIZE) % 5 != reader for reader in range(3)]
    wanted[2][:20] = wanted[1][:20] = wanted[0][:20] = False
    wanted[1][10:20] = True
    shared = SharedReading(source)
    readers = [shared.join(*each) for each in zip(TRANSFORMS, wanted, strict=True)]
    tasks = []
    for reader, size in enumerate((4, 7, 9)):
        chosen = np.flatnonzero(wanted[reader])
        tasks += [(reader, chosen[k : k + size]) for k in range(0, len(chosen), size)]
    order = np.random.default_rng(1).permutation(len(tasks))
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(readers[reader], chosen) for reader, chosen in (tasks[k] for k in order)]
        results = [each.result(timeout=60) for each in futures]
    assert sorted(counted) == list(range(10, SIZE))
    assert not shared._entries
    for k, result in zip(order, results, strict=True):
        reader, chosen = tasks[k]
        same(result, load(source, TRANSFORMS[reader], chosen))


def test_an_error_of_reading_is_that_of_every_reader(monkeypatch):
    def lost(*_):
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(InMemory, "read_many", lost)
    shared = SharedReading(Arrays(IMAGES).open())
    readers = [shared.join(transform, np.ones(SIZE, bool)) for transform in TRANSFORMS]
    for reader in readers:
        with pytest.raises(RuntimeError, match="the disk is gone"):
            reader(np.arange(4))
