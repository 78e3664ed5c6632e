"""Measure an encoder by its nearest neighbours and by a linear probe."""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from influence_ssl_jax import randomness
from influence_ssl_jax.configuration import COUNT, check_numbers
from influence_ssl_jax.data import OpenSource, ToInput, batches
from influence_ssl_jax.losses.loss import unit
from influence_ssl_jax.nets.network import Network
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.train.settings import Pretrain
from influence_ssl_jax.train.state import TrainState
from influence_ssl_jax.types import Batch, Frozen, Params

TOGETHER = 1000
"""Number of queries whose similarities with the whole bank are in memory together."""
Embed = Callable[[Batch], Float[Array, "batch width"]]


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Embeddings and their classes.

    Attributes:
        embeddings: One row for each example.
        labels: The number of each example's class.
    """

    embeddings: Float[np.ndarray, "count width"]
    labels: Int[np.ndarray, " count"]


def embed_all(embed: Embed, batches: Iterable[Batch]) -> Labelled:
    """Embed the labelled examples of all batches, without padding."""
    rows, labels = [], []
    for batch in batches:
        kept = np.asarray(batch.index) >= 0
        classes = np.full(kept.shape, -1) if batch.label is None else np.asarray(batch.label)
        kept &= classes >= 0
        rows.append(np.asarray(embed(batch))[kept])
        labels.append(classes[kept])
    return Labelled(np.concatenate(rows), np.concatenate(labels))


def knn_accuracy(bank: Labelled, queries: Labelled, neighbours: int = 20, temperature: float = 0.07) -> float:
    """Measure the share of queries that nearest neighbours classify correctly.

    The neighbours are those of largest cosine similarity `s` in the bank; each has `exp(s / temperature)` votes.
    Reference: arXiv 1805.01978, section 3.4.

    Args:
        bank: Examples that vote.
        queries: Examples that are classified.
        neighbours: Number of neighbours of a query.
        temperature: Temperature of the votes.

    Examples:
        >>> import numpy as np
        >>> from influence_ssl_jax.train.probes import Labelled, knn_accuracy
        >>> bank = Labelled(np.asarray([[1.0, 0.0], [0.0, 1.0]]), np.asarray([3, 7]))
        >>> queries = Labelled(np.asarray([[2.0, 0.1], [0.1, 2.0]]), np.asarray([3, 3]))
        >>> knn_accuracy(bank, queries, neighbours=1)
        0.5
    """
    present, numbered = np.unique(bank.labels, return_inverse=True)  # numbers of classes may have gaps of any size
    known, classes = jnp.asarray(bank.embeddings), jax.nn.one_hot(numbered, len(present))
    count = min(neighbours, len(bank.labels))
    guesses = [
        np.asarray(_vote(jnp.asarray(some), known, classes, count, temperature))
        for some in (queries.embeddings[start : start + TOGETHER] for start in range(0, len(queries.labels), TOGETHER))
    ]
    return float(np.mean(present[np.concatenate(guesses)] == queries.labels))


@jax.jit(static_argnames=("neighbours", "temperature"))
def _vote(
    queries: Float[Array, "queries width"],
    bank: Float[Array, "bank width"],
    classes: Float[Array, "bank classes"],
    neighbours: int,
    temperature: float,
) -> Int[Array, " queries"]:
    """Return the position of every query's class with most votes."""
    similarity, nearest = jax.lax.top_k(unit(queries) @ unit(bank).T, neighbours)
    # Subtracting the largest similarity keeps exp in range; it multiplies all votes by the same factor.
    weights = jnp.exp((similarity - similarity[:, :1]) / temperature)
    return jnp.argmax(jnp.einsum("qk,qkc->qc", weights, classes[nearest]), axis=1)


def linear_accuracy(bank: Labelled, queries: Labelled, iterations: int = 200) -> float:
    """Measure the share of queries that logistic regression classifies correctly.

    It is fitted to the bank, standardised to mean 0 and standard deviation 1.

    Args:
        bank: Examples that the classifier is fitted to.
        queries: Examples that are classified.
        iterations: Largest number of iterations of the fit.
    """
    from sklearn.exceptions import ConvergenceWarning  # slow to import, and only this probe needs it
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(bank.labels)) < 2:
        return float(np.mean(queries.labels == bank.labels[0]))
    mean, std = bank.embeddings.mean(axis=0), bank.embeddings.std(axis=0)
    scale = np.where(std > 0, std, 1)
    with warnings.catch_warnings():
        # After this many iterations the accuracy is stable, even if the optimiser's tolerance is not reached.
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier = LogisticRegression(max_iter=iterations).fit((bank.embeddings - mean) / scale, bank.labels)
    return float(classifier.score((queries.embeddings - mean) / scale, queries.labels))


@dataclasses.dataclass(frozen=True)
class Probe:
    """Settings of the probes between epochs, for test examples with classes.

    Probes never influence training.

    Attributes:
        bank: Number of training examples that vote and that the linear probe is fitted to.
        queries: Number of test examples that are classified.
        neighbours: Number of neighbours that vote on a query.
        linear: Iterations of the linear probe; 0 leaves it out.
        every: Epochs between two probes; the untrained and the last network are probed too. 0 leaves probes out.
    """

    bank: int = 5000
    queries: int = 2000
    neighbours: int = 20
    linear: int = 100
    every: int = 1

    def __post_init__(self) -> None:
        """Refuse numbers of nothing."""
        check_numbers(self, bank=COUNT, queries=COUNT, neighbours=COUNT, linear=(0, COUNT[1]), every=(0, COUNT[1]))

    def is_due(self, epoch: int, epochs: int) -> bool:
        """Test whether the network is probed after this many of all epochs.

        Examples:
            >>> from influence_ssl_jax.train import Probe
            >>> [epoch for epoch in range(6) if Probe(every=2).is_due(epoch, 5)]
            [0, 2, 4, 5]
        """
        return self.every > 0 and (epoch % self.every == 0 or epoch == epochs)


class Evaluation:
    """The probe of a run, on examples fixed for all of it."""

    def __init__(
        self, probe: Probe, settings: Pretrain, train: OpenSource, test: OpenSource, transform: ToInput
    ) -> None:
        self._probe, self._transform, self._batch_size = probe, transform, settings.batch_size
        self._bank, self._queries = train, test
        bank, queries = (
            randomness.generator(settings.seed, stream).permutation(len(source))
            for stream, source in ((Stream.PROBE_TRAIN, train), (Stream.PROBE_TEST, test))
        )
        self._bank_indices, self._query_indices = bank[: probe.bank], queries[: probe.queries]
        self._network = settings.network("encode")
        self._key = randomness.root(settings.seed, Stream.PROBE_TEST)

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Measure accuracies `knn` and, if enabled, `linear`; empty without labels."""

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
        """Read batches of the examples with these indices."""
        loaded = batches(source, self._transform, self._batch_size, self._key, indices)
        return (each.batch for each in loaded)


@jax.jit(static_argnums=0)
def _embed(network: Network, params: Params, frozen: Frozen, batch: Batch) -> Float[Array, "batch features"]:
    """Compute representations of a batch."""
    return network(params, frozen, batch.image.astype(jnp.float32) / 255)
