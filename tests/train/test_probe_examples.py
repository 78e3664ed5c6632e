"""Which examples a probe asks about, and which ones answer."""

import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax.data import Arrays, ToInput
from influence_ssl_jax.losses import SimCLR
from influence_ssl_jax.train import Probe, evaluation, tiny
from influence_ssl_jax.train.evaluation import Evaluation, Labelled
from influence_ssl_jax.train.state import TrainState


@pytest.fixture
def read(monkeypatch):
    """Numbers of the examples of the bank and of the queries, in place of embeddings."""
    sides = []

    def note(_, batches):
        index = np.concatenate([np.asarray(batch.index) for batch in batches])
        sides.append(index[index >= 0])
        return Labelled(np.zeros((len(sides[-1]), 1)), np.zeros(len(sides[-1]), int))

    monkeypatch.setattr(evaluation, "embed_all", note)
    return sides


def source(count):
    return Arrays(np.zeros((count, 4, 4, 3), np.uint8), labels=np.zeros(count, int)).open()


def asked(train, test, probe):
    """Ask with a state that nothing reads."""
    evaluate = Evaluation(probe, tiny(SimCLR()), train, test, ToInput(4, 4))
    return evaluate(TrainState(jnp.zeros((), jnp.int32), {}, {}, {}))


def test_no_example_of_the_bank_is_asked_about(read):
    asked(source(30), None, Probe(bank=100, queries=9, neighbours=1, linear=0))
    bank, queries = map(set, read)
    assert (len(bank), len(queries)) == (15, 9)
    assert not bank & queries


def test_a_test_source_is_asked_about_and_the_whole_bank_answers(read):
    asked(source(12), source(7), Probe(bank=10, queries=5, neighbours=1, linear=0))
    bank, queries = read
    assert (len(set(bank)), len(set(queries))) == (10, 5)
    assert max(queries) < 7
