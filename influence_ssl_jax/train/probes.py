"""How well classes can be read from embeddings: nearest neighbours and a linear classifier."""

import dataclasses
import warnings
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from influence_ssl_jax.losses.normalise import unit
from influence_ssl_jax.types import Batch

Embed = Callable[[Batch], Float[Array, "batch width"]]


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Embeddings with classes.

    Attributes:
        embeddings: One row per example.
        labels: Classes 0, 1, ….
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
    classes = int(max(bank.labels.max(), queries.labels.max())) + 1
    guesses = _vote(
        jnp.asarray(queries.embeddings),
        jnp.asarray(bank.embeddings),
        jax.nn.one_hot(bank.labels, classes),
        min(neighbours, len(bank.labels)),
        temperature,
    )
    return float(np.mean(np.asarray(guesses) == queries.labels))


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
    if len(np.unique(bank.labels)) < 2:
        return float(np.mean(queries.labels == bank.labels[0]))
    mean, std = bank.embeddings.mean(axis=0), bank.embeddings.std(axis=0)
    scale = np.where(std > 0, std, 1)
    with warnings.catch_warnings():
        # A probe is a gauge: after so many iterations its accuracy has settled, whatever the optimiser's tolerance.
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier = LogisticRegression(max_iter=iterations).fit((bank.embeddings - mean) / scale, bank.labels)
    return float(classifier.score((queries.embeddings - mean) / scale, queries.labels))
