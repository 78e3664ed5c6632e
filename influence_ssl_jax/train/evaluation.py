"""Probing a network on a labelled part of a data set while it is trained."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from influence_ssl_jax.data import OpenSource, ToInput, batches
from influence_ssl_jax.nets.network import Network
from influence_ssl_jax.train.probes import embed_all, knn_accuracy, linear_accuracy
from influence_ssl_jax.train.settings import Pretrain
from influence_ssl_jax.train.state import TrainState
from influence_ssl_jax.types import Batch, Frozen, Params


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
        order = np.random.default_rng(settings.seed).permutation(len(train))
        # Without a test source at most half of the training examples are asked about, the others answer.
        bank = min(probe.bank, len(train) if test is not None else max(1, len(train) // 2))
        self._bank_indices = order[:bank]
        rest = order[bank:] if test is None else np.random.default_rng(settings.seed).permutation(len(test))
        self._query_indices = rest[: probe.queries]
        self._network = settings.network("encode")

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
        loaded = batches(source, self._transform, self._batch_size, jax.random.key(0), indices)
        return (each.batch for each in loaded)


@jax.jit(static_argnums=0)
def _embed(network: Network, params: Params, frozen: Frozen, batch: Batch) -> Float[Array, "batch features"]:
    return network(params, frozen, batch.image.astype(jnp.float32) / 255)
