"""Run by `test_devices.py` in a process with eight simulated devices; prints what it found as JSON."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from influence_ssl_jax import trees
from influence_ssl_jax.data import epoch
from influence_ssl_jax.influence.scores import Scorer
from influence_ssl_jax.losses import SimCLR
from influence_ssl_jax.losses.loss import Embeddings
from influence_ssl_jax.parallel import all_devices, batches_of, local_devices, spread
from influence_ssl_jax.train import state as training
from influence_ssl_jax.train.layout import Layout
from tests.parallel import rig
from tests.train.small import INPUT, coloured, small


def scored() -> dict:
    """Scores of every case, fitted and scored on one device and on eight."""
    found = {}
    for name, (backend, loss, module) in rig.CASES.items():
        whole = rig.problem(loss, module)
        plain = Scorer.fit(whole, backend, rig.SETTINGS, rig.measurement(module))
        sharded, divided, state = rig.on_mesh(backend, whole, batches_of(all_devices())(5))
        tables = {"plain": rig.scores(plain), "sharded": rig.scores(sharded, local_devices())}
        found[name] = {way: table["score"].to_pylist() for way, table in tables.items()}
        found[name]["batches"] = divided.count
        shapes = [leaf.shape for leaf in divided.shapes(backend, 0).leaves]
        found[name]["shapes"] = shapes == [leaf.shape for leaf in jax.tree.leaves(state)]
    return found


def trained() -> list[float]:
    """Largest relative difference of each gradient of a pretraining loss, in float64: one device against eight."""
    settings, layout = small(SimCLR(0.5), epochs=1, batch_size=16), Layout.of(16)
    objective = settings.objective()

    def loss(params, frozen, batch):
        images = objective.images(batch, jnp.float64)
        online, _ = training._embed_in_training(objective.network, params, frozen, images)
        return objective.loss(Embeddings(online, None, batch.label))

    gradient = jax.jit(jax.grad(loss))
    held = trees.astype(training.initial(settings, (8, 8, 3)), jnp.float64)
    plain, split = next(epoch(coloured(48), INPUT, 16, 0, 1)).batch, layout.everywhere(held)
    parts = next(epoch(coloured(48), INPUT, 16, 0, 1, part=layout.part, place=layout.place)).batch
    one, eight = gradient(held.params, held.frozen, plain), gradient(split.params, split.frozen, parts)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(eight))
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(one))
    return [
        float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) / largest
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True)
    ]


def decomposed() -> dict:
    """Eigendecompositions of matrices of many sizes spread over the devices: error, and collectives in the program."""
    sizes = [3, 17, 5, 40, 40, 2, 9, 31, 12, 6]
    matrices = [np.random.default_rng(size).normal(size=(size, size)) for size in sizes]
    matrices = [jnp.asarray(matrix @ matrix.T) for matrix in matrices]

    def apart(given):
        pairs = spread(lambda m: tuple(jnp.linalg.eigh(m)), given, [size**3 for size in sizes])
        return [(vectors * values[None]) @ vectors.T for values, vectors in pairs]

    with jax.set_mesh(all_devices()):
        found = jax.jit(apart)(matrices)
    return {"error": max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(matrices, found, strict=True))}


def main() -> None:
    """Everything, printed."""
    jax.config.update("jax_disable_most_optimizations", True)
    found = scored()
    with jax.enable_x64(True):
        report = {"devices": jax.device_count(), "scored": found, "trained": trained(), "decomposed": decomposed()}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
