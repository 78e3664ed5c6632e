"""Measure an encoder by its neighbours and by a linear probe."""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from influence_ssl_jax import randomness
from influence_ssl_jax.data import OpenSource, ToInput, batches
from influence_ssl_jax.losses.functions import unit
from influence_ssl_jax.nets.network import Network
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.train.settings import Pretrain
from influence_ssl_jax.train.state import TrainState
from influence_ssl_jax.types import Batch, Frozen, Params

Embed = Callable[[Batch], Float[Array, "batch width"]]


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Embeddings with classes.

    Attributes:
        embeddings: One row per example.
        labels: A number for each class.
    """

    embeddings: Float[np.ndarray, "count width"]
    labels: Int[np.ndarray, " count"]


def embed_all(embed: Embed, batches: Iterable[Batch]) -> Labelled:
    """Embed the labelled examples of all batches; padding and unlabelled examples are left out."""
    rows, labels = [], []
    for batch in batches:
        kept = np.asarray(batch.index) >= 0
        classes = np.full(kept.shape, -1) if batch.label is None else np.asarray(batch.label)
        kept &= classes >= 0
        rows.append(np.asarray(embed(batch))[kept])
        labels.append(classes[kept])
    return Labelled(np.concatenate(rows), np.concatenate(labels))


def knn_accuracy(bank: Labelled, queries: Labelled, neighbours: int = 20, temperature: float = 0.07) -> float:
    """Share of queries whose class wins the vote of their nearest neighbours in the bank by cosine similarity.

    A neighbour of similarity `s` has `exp(s / temperature)` votes.
    Reference: arXiv 1805.01978, section 3.4.
    """
    present, numbered = np.unique(bank.labels, return_inverse=True)  # numbers of classes may have gaps of any size
    guesses = _vote(
        jnp.asarray(queries.embeddings),
        jnp.asarray(bank.embeddings),
        jax.nn.one_hot(numbered, len(present)),
        min(neighbours, len(bank.labels)),
        temperature,
    )
    return float(np.mean(present[np.asarray(guesses)] == queries.labels))


@jax.jit(static_argnames=("neighbours", "temperature"))
def _vote(
    queries: Float[Array, "queries width"],
    bank: Float[Array, "bank width"],
    classes: Float[Array, "bank classes"],
    neighbours: int,
    temperature: float,
) -> Int[Array, " queries"]:
    similarity, nearest = jax.lax.top_k(unit(queries) @ unit(bank).T, neighbours)
    # Similarities relative to the best keep exp in range; a common factor changes no vote.
    weights = jnp.exp((similarity - similarity[:, :1]) / temperature)
    return jnp.argmax(jnp.einsum("qk,qkc->qc", weights, classes[nearest]), axis=1)


def linear_accuracy(bank: Labelled, queries: Labelled, iterations: int = 200) -> float:
    """Share of queries that logistic regression, fitted to the standardised bank, classifies correctly."""
    from sklearn.exceptions import ConvergenceWarning  # slow to import, and only this probe needs it
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(bank.labels)) < 2:
        return float(np.mean(queries.labels == bank.labels[0]))
    mean, std = bank.embeddings.mean(axis=0), bank.embeddings.std(axis=0)
    scale = np.where(std > 0, std, 1)
    with warnings.catch_warnings():
        # A probe is a gauge: after so many iterations its accuracy has settled, whatever the optimiser's tolerance.
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier = LogisticRegression(max_iter=iterations).fit((bank.embeddings - mean) / scale, bank.labels)
    return float(classifier.score((queries.embeddings - mean) / scale, queries.labels))


@dataclasses.dataclass(frozen=True)
class Probe:
    """How representations are tried after every epoch, where labels exist; it never influences training.

    Attributes:
        bank: Training examples that are voted with and fitted to.
        queries: Examples that are classified: of the test source, or where there is none, training examples that are
            not in the bank.
        neighbours: Votes per query.
        linear: Iterations of the linear probe; 0 leaves it out.
    """

    bank: int = 5000
    queries: int = 2000
    neighbours: int = 20
    linear: int = 100


class Evaluation:
    """The probe's examples, fixed for a run."""

    def __init__(
        self, probe: Probe, settings: Pretrain, train: OpenSource, test: OpenSource | None, transform: ToInput
    ) -> None:
        self._probe, self._transform, self._batch_size = probe, transform, settings.batch_size
        self._bank, self._queries = train, train if test is None else test
        order = randomness.generator(settings.seed, Stream.PROBE_TRAIN).permutation(len(train))
        # Without a test source at most half of the training examples are asked about, the others answer.
        bank = min(probe.bank, len(train) if test is not None else max(1, len(train) // 2))
        self._bank_indices = order[:bank]
        rest = order[bank:]
        if test is not None:
            rest = randomness.generator(settings.seed, Stream.PROBE_TEST).permutation(len(test))
        self._query_indices = rest[: probe.queries]
        self._network = settings.network("encode")
        self._key = randomness.root(settings.seed, Stream.PROBE_TEST)

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Accuracies of the representation by `knn` and, where asked for, `linear`; empty without labels."""

        def embed(batch: Batch) -> Float[Array, "batch features"]:
            return _embed(self._network, state.params, state.frozen, batch)

        bank = embed_all(embed, self._read(self._bank, self._bank_indices))
        queries = embed_all(embed, self._read(self._queries, self._query_indices))
        if not len(bank.labels) or not len(queries.labels):
            return {}
        accuracies = {"knn": knn_accuracy(bank, queries, self._probe.neighbours)}
        if self._probe.linear:
            accuracies["linear"] = linear_accuracy(bank, queries, self._probe.linear)
        return accuracies

    def _read(self, source: OpenSource, indices: Int[np.ndarray, " count"]) -> Iterator[Batch]:
        loaded = batches(source, self._transform, self._batch_size, self._key, indices)
        return (each.batch for each in loaded)


@jax.jit(static_argnums=0)
def _embed(network: Network, params: Params, frozen: Frozen, batch: Batch) -> Float[Array, "batch features"]:
    return network(params, frozen, batch.image.astype(jnp.float32) / 255)
