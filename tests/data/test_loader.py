import dataclasses
import threading
import weakref

import jax
import numpy as np
import pytest

from influence_ssl_jax.data import Arrays, Synthetic, ToInput, batches
from influence_ssl_jax.data.loader import decoding_threads, in_order
from influence_ssl_jax.errors import DataError

INPUT = ToInput(4, 4)


def numbered(count: int, broken: tuple[int, ...] = ()) -> Arrays:
    """Images that are their own number, some with a NaN."""
    images = np.repeat(np.arange(count) / 255, 48).reshape(count, 4, 4, 3)
    images[list(broken), 0, 0, 0] = np.nan
    return Arrays(images, labels=np.arange(count) % 3, ids=[f"n{k}" for k in range(count)])


@pytest.fixture
def key():
    return jax.random.key(7)


def test_batches_have_one_shape_and_hold_everything_in_order(key):
    loaded = list(batches(numbered(10).open(), INPUT, 4, key))
    assert [each.batch.image.shape for each in loaded] == [(4, 4, 4, 3)] * 3
    assert [each.batch.index.tolist() for each in loaded] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, -1, -1]]
    assert [each.batch.label.tolist() for each in loaded] == [[0, 1, 2, 0], [1, 2, 0, 1], [2, 0, -1, -1]]
    assert loaded[2].ids == ("n8", "n9", "", "")
    assert loaded[2].valid.tolist() == [True, True, False, False]
    assert loaded[2].batch.image[:, 0, 0, 0].tolist() == [8, 9, 9, 9]  # padding repeats
    assert str(loaded[0].batch.image.dtype) == "uint8"
    assert str(loaded[0].batch.index.dtype) == str(loaded[0].batch.label.dtype) == "int32"


def test_a_key_belongs_to_the_example(key):
    opened = numbered(10).open()
    expected = {k: jax.random.key_data(jax.random.fold_in(key, k)) for k in range(10)}
    order = np.random.default_rng(0).permutation(10)
    for size, indices in ((4, None), (3, order)):
        for each in batches(opened, INPUT, size, key, indices=indices):
            for k, drawn in zip(each.batch.index.tolist(), jax.random.key_data(each.batch.key), strict=True):
                if k >= 0:
                    np.testing.assert_array_equal(drawn, expected[k])


def test_what_cannot_be_used_is_named_and_padded(key):
    loaded = list(batches(numbered(9, broken=(1, 4, 5, 6, 7)).open(), INPUT, 4, key))
    assert [each.batch.index.tolist() for each in loaded] == [[0, -1, 2, 3], [-1] * 4, [8, -1, -1, -1]]
    assert [[skipped.id for skipped in each.skipped] for each in loaded] == [["n1"], ["n4", "n5", "n6", "n7"], []]
    assert loaded[0].skipped[0].reason == "non-finite pixels: 1 of 48 are NaN or infinite"
    assert not np.asarray(loaded[1].batch.image).any()
    assert not loaded[1].valid.any()


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_examples_than_a_batch(key, count):
    (loaded,) = batches(numbered(count).open(), INPUT, 4, key)
    assert loaded.batch.index.tolist() == [*range(count), *[-1] * (4 - count)]


def test_no_labels_are_minus_one(key):
    (loaded,) = batches(Arrays(np.zeros((2, 4, 4))).open(), INPUT, 2, key)
    assert loaded.batch.label.tolist() == [-1, -1]


def test_nothing_to_load_is_an_error(key):
    with pytest.raises(DataError, match="no images"):
        next(batches(Arrays(np.zeros((0, 4, 4, 3))).open(), INPUT, 4, key))
    with pytest.raises(DataError, match="batch_size must be at least 1, got 0"):
        next(batches(numbered(3).open(), INPUT, 0, key))


def test_an_empty_selection_is_no_batch(key):
    assert list(batches(numbered(3).open(), INPUT, 2, key, indices=np.array([], int))) == []


def test_only_a_bounded_part_is_read_ahead_and_leaving_stops_the_threads(key):
    opened = Synthetic(count=1_000_000, size=4).open()
    reads = []
    read = opened.read
    opened.read = lambda index: reads.append(index) or read(index)
    iterator = batches(opened, INPUT, 10, key, workers=2, ahead=3)
    next(iterator)
    next(iterator)
    iterator.close()
    assert len(reads) <= (2 + 3) * 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("load")]


def test_decoding_threads_follow_cores_quota_and_the_variable(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    quota = tmp_path / "cpu.max"
    assert decoding_threads({}, quota) == 16
    for said, threads in (("max 100000", 16), ("250000 100000", 3), ("1000 100000", 1)):
        quota.write_text(said)
        assert decoding_threads({}, quota) == threads
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(256)))
    assert decoding_threads({}, tmp_path / "absent") == 32
    assert decoding_threads({"INFLUENCE_SSL_THREADS": "48"}, quota) == 48
    for wrong in ("0", "-1", "many", ""):
        with pytest.raises(DataError, match="INFLUENCE_SSL_THREADS is a number of threads, at least 1"):
            decoding_threads({"INFLUENCE_SSL_THREADS": wrong})


def test_every_thread_that_there_is_decodes(key, monkeypatch):
    """Twelve batches meet, each in its own thread: with fewer threads, or fewer batches ahead, none could go on."""
    monkeypatch.setenv("INFLUENCE_SSL_THREADS", "12")
    together, opened = threading.Barrier(12, timeout=20), Synthetic(count=24, size=4).open()
    read = opened.read

    def meet(index: int):
        if index % 2 == 0:
            together.wait()
        return read(index)

    opened.read = meet
    assert len(list(batches(opened, INPUT, 2, key))) == 12


def test_one_decoded_image_of_a_batch_is_in_memory_at_a_time(key):
    held = []

    class Photograph(np.ndarray):
        pass

    opened = Synthetic(count=6, size=4).open()
    read = opened.read

    def counted(index: int):
        example = read(index)
        held.append(sum(reference() is not None for reference in alive))
        image = example.image.view(Photograph)
        alive.append(weakref.ref(image))
        return dataclasses.replace(example, image=image)

    alive: list[weakref.ref] = []
    opened.read = counted
    list(batches(opened, ToInput(3, 3), 6, key, workers=1))
    assert max(held) <= 1


def test_results_come_in_order_and_errors_in_their_place():
    def inverse(x: int) -> float:
        return 1 / x

    assert list(in_order(inverse, [1, 2, 4], workers=3, ahead=2)) == [1, 0.5, 0.25]
    iterator = in_order(inverse, [2, 0, 1], workers=2, ahead=1)
    assert next(iterator) == 0.5
    with pytest.raises(ZeroDivisionError):
        next(iterator)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("load")]
