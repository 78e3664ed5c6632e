"""kNN and linear probes against plain loops and scikit-learn, and on embeddings whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from influence_ssl_jax.data import Arrays, ToInput
from influence_ssl_jax.losses import SimCLR
from influence_ssl_jax.train import Probe, probes, tiny
from influence_ssl_jax.train.probes import Evaluation, Labelled, embed_all, knn_accuracy, linear_accuracy
from influence_ssl_jax.train.state import TrainState
from influence_ssl_jax.types import Batch


def drawn(seed, count, classes=3, width=5):
    draw = np.random.default_rng(seed)
    return Labelled(draw.normal(size=(count, width)), draw.integers(0, classes, count))


@given(seed=st.integers(0, 1000))
def test_knn_is_the_weighted_vote(seed):
    bank, queries = drawn(seed, 40), drawn(seed + 1, 30)
    right = 0
    for query, label in zip(queries.embeddings, queries.labels, strict=True):
        cosines = [query @ row / np.linalg.norm(query) / np.linalg.norm(row) for row in bank.embeddings]
        votes = np.zeros(3)
        for near in np.argsort(cosines)[::-1][:7]:
            votes[bank.labels[near]] += np.exp(cosines[near] / 0.07)
        right += int(np.argmax(votes) == label)
    assert knn_accuracy(bank, queries, 7, 0.07) == right / 30


def test_one_neighbour_is_scikit_learns():
    bank, queries = drawn(0, 60), drawn(1, 50)
    theirs = KNeighborsClassifier(1, metric="cosine").fit(bank.embeddings, bank.labels)
    assert knn_accuracy(bank, queries, 1) == theirs.score(queries.embeddings, queries.labels)


def test_separated_classes_are_read_and_a_small_bank_is_enough():
    centres = np.eye(3) * 10
    labels = np.arange(30) % 3
    noise = np.random.default_rng(0).normal(size=(30, 3))
    given_ = Labelled(centres[labels] + noise, labels)
    assert knn_accuracy(given_, given_, neighbours=100) == 1
    assert linear_accuracy(given_, given_) == 1


def test_numbers_of_classes_may_have_gaps_of_any_size():
    bank, queries = drawn(0, 40), drawn(1, 30)
    far = np.array([7, 100_000_000, 2**31 - 1])
    apart = Labelled(bank.embeddings, far[bank.labels]), Labelled(queries.embeddings, far[queries.labels])
    assert knn_accuracy(*apart) == knn_accuracy(bank, queries)
    unseen = Labelled(queries.embeddings, np.full(30, 5))
    assert knn_accuracy(bank, unseen) == 0


def test_a_bank_of_one_class_and_a_constant_feature():
    bank = Labelled(np.ones((4, 2)), np.zeros(4, int))
    queries = Labelled(np.ones((4, 2)), np.array([0, 0, 0, 1]))
    assert linear_accuracy(bank, queries) == 0.75
    assert knn_accuracy(bank, queries) == 0.75
    two = Labelled(np.array([[0.0, 1.0], [1.0, 1.0]]), np.array([0, 1]))
    assert linear_accuracy(two, two) == 1


def test_padding_and_unlabelled_examples_are_left_out():
    batch = Batch(jnp.arange(8.0).reshape(4, 2, 1, 1), jax.random.split(jax.random.key(0), 4), jnp.array([5, 6, 7, -1]))
    embed = lambda batch: batch.image.reshape(4, 2)  # noqa: E731
    labelled = Batch(batch.image, batch.key, batch.index, jnp.array([1, -1, 2, 0]))
    embedded = embed_all(embed, [labelled, batch])
    np.testing.assert_array_equal(embedded.labels, [1, 2])
    np.testing.assert_array_equal(embedded.embeddings, [[0, 1], [4, 5]])


@pytest.fixture
def read(monkeypatch):
    """Numbers of the examples of the bank and of the queries, in place of embeddings."""
    sides = []

    def note(_, batches):
        index = np.concatenate([np.asarray(batch.index) for batch in batches])
        sides.append(index[index >= 0])
        return Labelled(np.zeros((len(sides[-1]), 1)), np.zeros(len(sides[-1]), int))

    monkeypatch.setattr(probes, "embed_all", note)
    return sides


def source(count):
    return Arrays(np.zeros((count, 4, 4, 3), np.uint8), labels=np.zeros(count, int)).open()


def asked(train, test, probe):
    """Ask with a state that nothing reads."""
    evaluate = Evaluation(probe, tiny(SimCLR()), train, test, ToInput(4, 4))
    return evaluate(TrainState(jnp.zeros((), jnp.int32), {}, {}, {}))


def test_a_test_source_is_asked_about_and_the_bank_is_of_training_examples(read):
    asked(source(12), source(7), Probe(bank=10, queries=5, neighbours=1, linear=0))
    bank, queries = read
    assert (len(set(bank)), len(set(queries))) == (10, 5)
    assert max(queries) < 7
