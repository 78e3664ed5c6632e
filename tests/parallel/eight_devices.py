"""Run by `test_devices.py` in a process with eight simulated devices; prints what it found as JSON."""

import dataclasses
import json
import shutil
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jax.sharding import Mesh

from influence_ssl_jax import trees
from influence_ssl_jax.data import Synthetic, epoch
from influence_ssl_jax.ihvp import Gram, LoGra, gram
from influence_ssl_jax.losses import CosineDistance, SimCLR
from influence_ssl_jax.losses.loss import Embeddings
from influence_ssl_jax.parallel import (
    AXIS,
    all_devices,
    batches_of,
    everywhere,
    gather_on_host,
    local_devices,
    replicate,
    spread,
)
from influence_ssl_jax.run_log import json_lines
from influence_ssl_jax.runs.score import score
from influence_ssl_jax.runs.settings import CurvatureSet, Parts, ScoreRun
from influence_ssl_jax.scoring.memory import bytes_on_device
from influence_ssl_jax.scoring.scores import Scorer, Scoring
from influence_ssl_jax.store import ScoreStore, digest_of
from influence_ssl_jax.train import export
from influence_ssl_jax.train import state as training
from influence_ssl_jax.train.resume import Layout
from tests import problems
from tests.parallel import rig
from tests.train.small import INPUT, Small, coloured, saved, small


def scored() -> dict:
    """Scores of every case, fitted and scored on one device and on eight."""
    scores = {}
    for name, (backend, loss, module) in rig.CASES.items():
        whole = rig.problem(loss, module)
        plain = Scorer.fit(whole, backend, rig.SETTINGS, rig.measurement(module))
        sharded, divided, state = rig.on_mesh(backend, whole, batches_of(all_devices())(5))
        tables = {"plain": rig.scores(plain), "sharded": rig.scores(sharded, local_devices())}
        scores[name] = {way: table["score"].to_pylist() for way, table in tables.items()}
        scores[name]["batches"] = divided.count
        shapes = [leaf.shape for leaf in divided.shapes(backend, 0).leaves]
        scores[name]["shapes"] = shapes == [leaf.shape for leaf in jax.tree.leaves(gather_on_host(state))]
    return scores


def shared_rows() -> dict:
    """Gram in float64, whose rows (in bfloat16) eight devices share, against one device that has them all.

    At three λ: the largest differences of scores and of their bounds. With the first λ no batch is computed in the way that
    does not cancel, with the second some are, with the third all. Also: bytes of the rows on each device, and by the formula
    for eight devices and for one; whether a score depends on the device that its batch is on, or on whether the state was
    kept in one piece in between.
    """
    backend = Gram(samples=2, storage="bfloat16", accuracy=3.65e-13)
    problem = rig.problem(CosineDistance(), problems.Linear())
    problem = dataclasses.replace(problem, params=trees.astype(problem.params, jnp.float64))
    one = Scorer.fit(problem, backend, rig.SETTINGS, problem.objective)
    eight, _, state = rig.on_mesh(backend, problem, batches_of(all_devices())(5))
    mean, mesh = float(backend.mean_eigenvalue(one.state)), local_devices()
    loaded, turned = (
        replicate(gather_on_host(state), mesh),
        np.roll(np.arange(203), 5),
    )  # each batch of five goes elsewhere
    gaps = {"apart": []}
    for share in (10.0, 1.0, 1e-7):
        one, eight = (dataclasses.replace(each, damping=jnp.asarray(share * mean)) for each in (one, eight))
        plain, sharded = rig.scores(one), rig.scores(eight, mesh)
        gaps["apart"].append([apart(plain[name], sharded[name]) for name in ("score", "score_lo", "score_hi")])
    parts = [node.array.addressable_shards for node in state.rows.values()]
    half = everywhere(
        state, all_devices(), Mesh(all_devices().devices[:4], (AXIS,))
    )  # as of two processes with four each
    rows = [node.array for node in half.rows.values()]
    return gaps | {
        "of four": digest_of(gather_on_host(half)) == digest_of(gather_on_host(state)),
        "bytes of four": [len(array.sharding.device_set) for array in rows] == [4] * len(rows)
        and sum(array.addressable_shards[0].data.nbytes for array in rows) == bytes_on_device(half.rows, 4),
        "elsewhere": sharded.equals(rig.scores(eight, mesh, turned)),
        "taken up": sharded.equals(rig.scores(dataclasses.replace(eight, state=loaded), mesh)),
        "bytes": [sum(part[device].data.nbytes for part in parts) for device in range(jax.device_count())],
        "formula": [bytes_on_device(state.rows, count) for count in (jax.device_count(), 1)],
    }


def apart(one: pa.ChunkedArray, other: pa.ChunkedArray) -> float:
    """The largest difference of two columns of positive numbers or zeros, relative to the number itself."""
    one, other = one.to_numpy(), other.to_numpy()
    return float(np.max(np.abs(other - one) / np.maximum(np.abs(one), np.finfo(float).tiny)))


def continued(folder: Path) -> dict:
    """The command on one device, stopped after its first part and gone on with on one and on eight; and eight, then one."""
    export.Pretrain = Small
    with first_device():
        encoder = saved(folder / "encoder", small(SimCLR(0.5)))
    same = ScoreRun(
        encoder,
        folder / "same",
        Synthetic(count=203, size=8),
        curvature=CurvatureSet(examples=24, batch_size=8),
        backend=LoGra(rank=2),
        scoring=Scoring(draws=2, batch_size=5),
        parts=Parts(40),
    )
    grown, shrunk = (dataclasses.replace(same, out=folder / name) for name in ("grown", "shrunk"))
    with first_device():
        begin(same)
    shutil.copytree(same.out, grown.out)
    begin(shrunk)
    score(grown)
    with first_device():
        score(same)
        score(shrunk)
    return {run.out.name: told(run.out) for run in (same, grown, shrunk)}


def begin(run: ScoreRun) -> None:
    """Score the first part only."""
    with mock.patch.object(ScoreStore, "append", append_once), suppress(KeyboardInterrupt):
        score(run)


def first_device() -> ExitStack:
    """As if there were but one."""
    stack, real = ExitStack(), jax.devices()[:1]
    for name, value in (("devices", real), ("local_devices", real), ("device_count", 1), ("local_device_count", 1)):
        stack.enter_context(mock.patch.object(jax, name, lambda *_, value=value: value))
    return stack


_append = ScoreStore.append


def append_once(store, table):
    if len(store.done()):
        raise KeyboardInterrupt
    _append(store, table)


def told(folder: Path) -> dict:
    """What is in a finished folder."""
    table = pq.read_table(folder / "scores.parquet")
    parts = (folder / "parts" / "0000").glob("*.parquet")
    return {
        "index": table["index"].to_pylist(),
        "score": table["score"].to_pylist(),
        "rows": sum(pq.read_metadata(part).num_rows for part in parts),
        "resumed": json.loads((folder / "run.json").read_text())["counts"]["resumed"],
        "devices": [line["devices"] for line in json_lines(folder / "log.jsonl") if line["event"].startswith("fit")],
    }


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
    pairs = list(zip(*(jax.tree.leaves(jax.device_get(state)) for state in (one, eight)), strict=True))
    largest = max(float(np.max(np.abs(leaf))) for leaf, _ in pairs)
    return [float(np.max(np.abs(a - b))) / largest for a, b in pairs]


def decomposed() -> dict:
    """Eigendecompositions of matrices of many sizes spread over the devices: error, and collectives in the program."""
    sizes = [3, 17, 5, 40, 40, 2, 9, 31, 12, 6]
    matrices = [np.random.default_rng(size).normal(size=(size, size)) for size in sizes]
    matrices = [matrix @ matrix.T for matrix in matrices]

    def apart(given):
        pairs = spread(lambda m: tuple(jnp.linalg.eigh(m)), given, [size**3 for size in sizes])
        return [(vectors * values[None]) @ vectors.T for values, vectors in pairs]

    with jax.set_mesh(all_devices()):
        rebuilt = jax.device_get(jax.jit(apart)(matrices))
    return {"error": max(float(np.max(np.abs(a - b))) for a, b in zip(matrices, rebuilt, strict=True))}


def main() -> None:
    """Everything, printed."""
    jax.config.update("jax_disable_most_optimizations", True)
    gram.SPAN = 16  # every block of a small network then has parameters on several devices
    scores = scored()
    with tempfile.TemporaryDirectory() as folder:
        moved = continued(Path(folder))
    with jax.enable_x64(True):
        report = {
            "devices": jax.device_count(),
            "scored": scores,
            "shared rows": shared_rows(),
            "continued": moved,
            "trained": trained(),
            "decomposed": decomposed(),
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
