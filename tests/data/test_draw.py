import collections

import jax
import numpy as np
import pytest

from influence_ssl_jax import randomness
from influence_ssl_jax.data import Arrays, Example, OpenSource, ToInput, UnreadableExample, draw, epoch, resident
from influence_ssl_jax.errors import DataError
from influence_ssl_jax.randomness import Stream

INPUT = ToInput(4, 4)


def numbered(count: int, broken: tuple[int, ...] = ()):
    images = np.repeat(np.arange(count) / 255, 48).reshape(count, 4, 4, 3)
    images[list(broken), 0, 0, 0] = np.nan
    return Arrays(images, labels=np.arange(count) % 3).open()


def order(source, seed: int, number: int, start: int = 0) -> list[list[int]]:
    return [each.batch.index.tolist() for each in epoch(source, INPUT, 4, seed, number, start)]


def test_the_curvature_set_is_a_random_set_of_whole_batches():
    batch = resident(numbered(50), INPUT, count=21, batch_size=4, seed=3)
    assert batch.image.shape == (5, 4, 4, 4, 3)
    assert batch.key.shape == batch.index.shape == batch.label.shape == (5, 4)
    index = np.asarray(batch.index).ravel()
    assert len(set(index.tolist())) == 20
    np.testing.assert_array_equal(np.asarray(batch.image)[..., 0, 0, 0].ravel(), index)
    np.testing.assert_array_equal(batch.label.ravel(), index % 3)
    expected = jax.random.fold_in(randomness.root(3, Stream.CURVATURE_EXAMPLES), batch.index[2, 1])
    np.testing.assert_array_equal(jax.random.key_data(batch.key[2, 1]), jax.random.key_data(expected))
    again = resident(numbered(50), INPUT, count=21, batch_size=4, seed=3)
    np.testing.assert_array_equal(again.index, batch.index)
    other = resident(numbered(50), INPUT, count=21, batch_size=4, seed=4)
    assert (other.index != batch.index).any()


def test_every_example_is_as_likely_to_be_in_the_curvature_set():
    """Whatever its place in the source: 3 of 12, over seeds, within five standard errors."""
    source, seeds = numbered(12), 160
    drawn = [resident(source, INPUT, count=3, batch_size=3, seed=seed).index for seed in range(seeds)]
    counts = np.bincount(np.ravel(drawn), minlength=12)
    assert (np.abs(counts - seeds / 4) < 5 * (seeds * 3 / 16) ** 0.5).all()


def test_unusable_examples_are_passed_over_and_counted(caplog):
    batch = resident(numbered(12, broken=(2, 3, 5)), INPUT, count=12, batch_size=3, seed=0)
    assert sorted(batch.index.ravel().tolist()) == [0, 1, 4, 6, 7, 8, 9, 10, 11]
    assert "replaced by others in the curvature set: 3 (" in caplog.text
    assert "non-finite pixels" in caplog.text


def test_less_than_a_batch_is_one_smaller_batch():
    assert resident(numbered(3), INPUT, count=100, batch_size=8, seed=0).image.shape == (1, 3, 4, 4, 3)
    assert resident(numbered(30), INPUT, count=5, batch_size=8, seed=0).image.shape == (1, 5, 4, 4, 3)
    assert resident(numbered(1), INPUT, count=1, batch_size=1, seed=0).image.shape == (1, 1, 4, 4, 3)


def test_no_curvature_set_without_images():
    with pytest.raises(DataError, match="None of the 2 examples can be used; the first: "):
        resident(numbered(2, broken=(0, 1)), INPUT, count=2, batch_size=2, seed=0)
    with pytest.raises(DataError, match="no images"):
        resident(numbered(0), INPUT, count=2, batch_size=2, seed=0)
    with pytest.raises(DataError, match="got count=0"):
        resident(numbered(2), INPUT, count=0, batch_size=2, seed=0)


def test_an_epoch_holds_every_example_at_most_once_in_whole_batches():
    batches = order(numbered(22), seed=1, number=0)
    assert [len(each) for each in batches] == [4] * 5
    flat = [k for each in batches for k in each]
    assert len(set(flat)) == 20
    assert flat != sorted(flat)


def test_the_order_is_fixed_by_seed_and_epoch():
    source = numbered(22)
    assert order(source, 1, 0) == order(source, 1, 0)
    assert order(source, 1, 0) != order(source, 1, 1)
    assert order(source, 1, 0) != order(source, 2, 0)


def test_an_epoch_resumes_where_it_stopped():
    source = numbered(22, broken=(3, 9, 17))
    whole = order(source, 5, 2)
    assert order(source, 5, 2, start=3) == whole[3:]
    assert order(source, 5, 2, start=5) == []


def test_views_differ_from_epoch_to_epoch():
    source = numbered(8)
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
    loaded = list(epoch(numbered(20, broken=(3, 9, 17)), INPUT, 4, 0, 0))
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
    found, skipped = draw._filled(source, INPUT, chosen, range(5), np.random.default_rng(0))
    assert [example.index % 3 for example in found].count(0) == 0
    assert found[1].index == 1
    assert len({example.index for example in found}) == 5
    assert [example.index % 5 for example in found[2:]] == [2, 3, 4]  # each row draws from its own fifth
    assert source.reads == 5 + 4 + len(skipped) - 4
    assert source.reads < 60
    alone, _ = draw._filled(source, INPUT, chosen, range(3, 5), np.random.default_rng(0))
    assert [example.index for example in alone] == [example.index for example in found[3:]]


def test_a_shuffle_one_at_a_time_is_a_uniform_permutation():
    seen = collections.Counter()
    for seed in range(1200):
        order = tuple(draw._shuffled(4, np.random.default_rng(seed)))
        assert sorted(order) == [0, 1, 2, 3]
        seen[order] += 1
    assert len(seen) == 24
    assert max(abs(count - 50) for count in seen.values()) < 5 * 50**0.5


def test_a_small_source_is_one_smaller_batch():
    (loaded,) = epoch(numbered(3, broken=(1,)), INPUT, 4, 0, 0)
    assert sorted(loaded.batch.index.tolist()) == [0, 2]
    assert loaded.valid.all()


def test_a_batch_that_cannot_be_filled_is_an_error():
    with pytest.raises(DataError, match="A batch of 4 cannot be filled: 3 of 5 examples"):
        list(epoch(numbered(5, broken=(0, 1, 2)), INPUT, 4, 0, 0))
    with pytest.raises(DataError, match="cannot be filled"):
        list(epoch(numbered(1, broken=(0,)), INPUT, 4, 0, 0))
