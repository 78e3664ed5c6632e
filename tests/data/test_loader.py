import collections
import dataclasses
import threading
import time
import weakref

import jax
import numpy as np
import pytest

from influence_ssl_jax import randomness
from influence_ssl_jax.data import (
    Arrays,
    Digits,
    Example,
    OpenSource,
    Synthetic,
    ToInput,
    UnreadableExample,
    batches,
    cache,
    epoch,
    loader,
    resident,
)
from influence_ssl_jax.data.loader import decoding_threads, describe_waiting, map_in_order, time_waiting
from influence_ssl_jax.errors import DataError
from influence_ssl_jax.randomness import Stream

INPUT, SMALL = ToInput(4, 4), ToInput(6, 6)


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
        with pytest.raises(DataError, match="INFLUENCE_SSL_THREADS must be a number of threads, at least 1"):
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


def test_the_time_of_waiting_for_batches_is_measured():
    def slow():
        for number in range(3):
            time.sleep(0.05)
            yield number

    spent = collections.defaultdict(float)
    for _ in time_waiting(slow(), spent):
        time.sleep(0.1)  # work on the batch, which does not count
    assert 0.15 <= spent["images"] < 0.3
    assert describe_waiting(0.034, 500.0) == "Waited for images 3 % of the time."
    assert describe_waiting(0.97, 2.0) == "Waited for images 97 % of the time."  # the first batch of a short run
    assert "Reading and decoding them is slower than the computation" in describe_waiting(0.25, 60.0)
    assert "INFLUENCE_SSL_THREADS" in describe_waiting(0.25, 60.0)


def test_results_come_in_order_and_errors_in_their_place():
    def inverse(x: int) -> float:
        return 1 / x

    assert list(map_in_order(inverse, [1, 2, 4], workers=3, ahead=2)) == [1, 0.5, 0.25]
    iterator = map_in_order(inverse, [2, 0, 1], workers=2, ahead=1)
    assert next(iterator) == 0.5
    with pytest.raises(ZeroDivisionError):
        next(iterator)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("load")]


def opened(count: int, broken: tuple[int, ...] = ()):
    return numbered(count, broken).open()


def order(source, seed: int, number: int, start: int = 0) -> list[list[int]]:
    return [each.batch.index.tolist() for each in epoch(source, INPUT, 4, seed, number, start)]


def test_the_curvature_set_is_a_random_set_of_whole_batches():
    batch = resident(opened(50), INPUT, count=21, batch_size=4, seed=3)
    assert batch.image.shape == (5, 4, 4, 4, 3)
    assert batch.key.shape == batch.index.shape == batch.label.shape == (5, 4)
    index = np.asarray(batch.index).ravel()
    assert len(set(index.tolist())) == 20
    np.testing.assert_array_equal(np.asarray(batch.image)[..., 0, 0, 0].ravel(), index)
    np.testing.assert_array_equal(batch.label.ravel(), index % 3)
    expected = jax.random.fold_in(randomness.root(3, Stream.CURVATURE_EXAMPLES), batch.index[2, 1])
    np.testing.assert_array_equal(jax.random.key_data(batch.key[2, 1]), jax.random.key_data(expected))
    again = resident(opened(50), INPUT, count=21, batch_size=4, seed=3)
    np.testing.assert_array_equal(again.index, batch.index)
    other = resident(opened(50), INPUT, count=21, batch_size=4, seed=4)
    assert (other.index != batch.index).any()


def test_every_example_is_as_likely_to_be_in_the_curvature_set():
    """Whatever its place in the source: 3 of 12, over seeds, within five standard errors."""
    source, seeds = opened(12), 160
    drawn = [resident(source, INPUT, count=3, batch_size=3, seed=seed).index for seed in range(seeds)]
    counts = np.bincount(np.ravel(drawn), minlength=12)
    assert (np.abs(counts - seeds / 4) < 5 * (seeds * 3 / 16) ** 0.5).all()


def test_unusable_examples_are_passed_over_and_counted(caplog):
    batch = resident(opened(12, broken=(2, 3, 5)), INPUT, count=12, batch_size=3, seed=0)
    assert sorted(batch.index.ravel().tolist()) == [0, 1, 4, 6, 7, 8, 9, 10, 11]
    assert "replaced by others in the curvature set: 3 (" in caplog.text
    assert "non-finite pixels" in caplog.text


def test_less_than_a_batch_is_one_smaller_batch():
    assert resident(opened(3), INPUT, count=100, batch_size=8, seed=0).image.shape == (1, 3, 4, 4, 3)
    assert resident(opened(30), INPUT, count=5, batch_size=8, seed=0).image.shape == (1, 5, 4, 4, 3)
    assert resident(opened(1), INPUT, count=1, batch_size=1, seed=0).image.shape == (1, 1, 4, 4, 3)


@pytest.mark.parametrize(
    ("images", "count", "says"),
    [
        (22, 100, "has 20 images, not the 100 that were asked for: 22 can be used, in whole batches of 4"),
        (50, 21, "has 20 images, not the 21 that were asked for: 21 can be used, in whole batches of 4"),
        (50, 20, None),
        (3, 100, "has 3 images, not the 100 that were asked for: 3 can be used"),
    ],
)
def test_a_curvature_set_smaller_than_asked_for_says_so(images, count, says, caplog):
    resident(opened(images), INPUT, count=count, batch_size=4, seed=0)
    assert (says in caplog.text) if says else not caplog.text


def test_no_curvature_set_without_images():
    with pytest.raises(DataError, match=r"None of the 2 examples can be used. The first is "):
        resident(opened(2, broken=(0, 1)), INPUT, count=2, batch_size=2, seed=0)
    with pytest.raises(DataError, match="no images"):
        resident(opened(0), INPUT, count=2, batch_size=2, seed=0)
    with pytest.raises(DataError, match="got count=0"):
        resident(opened(2), INPUT, count=0, batch_size=2, seed=0)


def test_an_epoch_holds_every_example_at_most_once_in_whole_batches():
    batches = order(opened(22), seed=1, number=0)
    assert [len(each) for each in batches] == [4] * 5
    flat = [k for each in batches for k in each]
    assert len(set(flat)) == 20
    assert flat != sorted(flat)


def test_the_order_is_fixed_by_seed_and_epoch():
    source = opened(22)
    assert order(source, 1, 0) == order(source, 1, 0)
    assert order(source, 1, 0) != order(source, 1, 1)
    assert order(source, 1, 0) != order(source, 2, 0)


def test_an_epoch_resumes_where_it_stopped():
    source = opened(22, broken=(3, 9, 17))
    whole = order(source, 5, 2)
    assert order(source, 5, 2, start=3) == whole[3:]
    assert order(source, 5, 2, start=5) == []


def test_views_differ_from_epoch_to_epoch():
    source = opened(8)
    keys = []
    for number in (0, 1):
        (first, _) = epoch(source, INPUT, 4, 1, number)
        expected = jax.random.fold_in(
            jax.random.fold_in(randomness.root(1, Stream.TRAINING_EXAMPLES), number), first.batch.index[0]
        )
        np.testing.assert_array_equal(jax.random.key_data(first.batch.key[0]), jax.random.key_data(expected))
        keys.append(jax.random.key_data(expected))
    assert (keys[0] != keys[1]).any()


def test_others_take_the_place_of_what_cannot_be_used():
    loaded = list(epoch(opened(20, broken=(3, 9, 17)), INPUT, 4, 0, 0))
    assert {skipped.index for each in loaded for skipped in each.skipped} == {3, 9, 17}
    for each in loaded:
        index = each.batch.index.tolist()
        assert each.valid.all()
        assert len(set(index)) == 4
        assert not {3, 9, 17} & set(index)


class Endless(OpenSource):
    """A billion images, of which every third cannot be read."""

    def __init__(self) -> None:
        self.reads = 0

    def __len__(self) -> int:
        return 10**9

    def read(self, index: int) -> Example:
        self.reads += 1
        if index % 3 == 0:
            raise UnreadableExample(index, str(index), "broken")
        return Example(index, str(index), np.zeros((4, 4, 3), np.uint8))

    def attributes(self) -> None:
        return None

    def fingerprint(self) -> str:
        return ""


def test_a_substitute_costs_a_draw_and_not_a_pass_over_the_source():
    source, chosen = Endless(), np.array([3, 1, 9, 30, 600])
    filled, skipped = loader._fill_rows(source, INPUT, chosen, range(5), np.random.default_rng(0))
    assert [example.index % 3 for example in filled].count(0) == 0
    assert filled[1].index == 1
    assert len({example.index for example in filled}) == 5
    assert [example.index % 5 for example in filled[2:]] == [2, 3, 4]  # each row draws from its own fifth
    assert source.reads == 5 + 4 + len(skipped) - 4
    assert source.reads < 60
    alone, _ = loader._fill_rows(source, INPUT, chosen, range(3, 5), np.random.default_rng(0))
    assert [example.index for example in alone] == [example.index for example in filled[3:]]


def test_a_shuffle_one_at_a_time_is_a_uniform_permutation():
    seen = collections.Counter()
    for seed in range(1200):
        order = tuple(loader._shuffle(4, np.random.default_rng(seed)))
        assert sorted(order) == [0, 1, 2, 3]
        seen[order] += 1
    assert len(seen) == 24
    assert max(abs(count - 50) for count in seen.values()) < 5 * 50**0.5


def test_a_small_source_is_one_smaller_batch():
    (loaded,) = epoch(opened(3, broken=(1,)), INPUT, 4, 0, 0)
    assert sorted(loaded.batch.index.tolist()) == [0, 2]
    assert loaded.valid.all()


def test_a_batch_that_cannot_be_filled_is_an_error():
    with pytest.raises(DataError, match="A batch of 4 cannot be filled: 3 of 5 examples"):
        list(epoch(opened(5, broken=(0, 1, 2)), INPUT, 4, 0, 0))
    with pytest.raises(DataError, match="cannot be filled"):
        list(epoch(opened(1, broken=(0,)), INPUT, 4, 0, 0))


def test_the_cache_holds_what_the_source_would_give():
    images = np.random.default_rng(0).random((7, 9, 8, 3))
    images[2, 0, 0, 0] = np.inf
    source = Arrays(images, labels=np.arange(7), ids=list("abcdefg"), columns={"age": list(range(7))}).open()
    kept = cache(source, SMALL)
    for fresh, held in zip(
        batches(source, SMALL, 4, jax.random.key(0)), batches(kept, SMALL, 4, jax.random.key(0)), strict=True
    ):
        np.testing.assert_array_equal(fresh.batch.image, held.batch.image)
        np.testing.assert_array_equal(fresh.batch.index, held.batch.index)
        np.testing.assert_array_equal(fresh.batch.label, held.batch.label)
        assert fresh.ids == held.ids
        assert fresh.skipped == held.skipped
    assert kept.attributes() is source.attributes()
    assert kept.notes() == source.notes()


def test_images_are_decoded_once():
    source = Digits(size=8, digits=10).open()
    kept = cache(source, SMALL)
    source.read = source.read_many = None
    assert len(list(batches(kept, SMALL, 4, jax.random.key(0)))) > 0


def test_the_fingerprint_names_the_transform():
    source = Digits(size=8, digits=10).open()
    prints = {source.fingerprint(), cache(source, SMALL).fingerprint(), cache(source, ToInput(5, 5)).fingerprint()}
    assert len(prints) == 3


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match=r"12 images of 6×6×3 need .* GiB, more than the limit"):
        cache(Arrays(np.zeros((12, 6, 6))).open(), SMALL, max_bytes=12 * 108 - 1)
