"""What the processes of a test share: a small problem in float32, its images, and scores in every way there is."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from influence_ssl_jax import trees
from influence_ssl_jax.data import Arrays, ToInput
from influence_ssl_jax.ihvp import CG, EKFAC, Damping, Gram
from influence_ssl_jax.losses import CosineDistance, SimCLR
from influence_ssl_jax.parallel import all_devices, local_devices, replicate
from influence_ssl_jax.scoring.fitting import SplitProblem
from influence_ssl_jax.scoring.scores import Scorer, Scoring
from influence_ssl_jax.scoring.stream import stream
from tests import problems

TRANSFORM = ToInput(problems.SIZE, problems.SIZE, 3)
SETTINGS = Scoring(Damping(0.5), draws=2, batch_size=5, seed=5)


class OneConvolution(nn.Module):
    """Few layers: a process compiles all of this anew."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(3, (3, 3), strides=(2, 2), name="conv")(x)
        x = jnp.tanh(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


CASES = {
    "EKFAC": (EKFAC(), CosineDistance(), OneConvolution()),
    "Gram": (Gram(), CosineDistance(), OneConvolution()),
    "CG": (CG(probes=2, iterations=20), SimCLR(0.5), problems.Linear()),
}


def problem(loss, module, num_batches=5):
    """Five batches: no number of devices but one and five divides them."""
    made = problems.problem(loss, module=module, channels=3, num_batches=num_batches)
    return dataclasses.replace(
        made,
        params=trees.astype(made.params, jnp.float32),
        frozen=trees.astype(made.frozen, jnp.float32),
        batches=dataclasses.replace(made.batches, image=made.batches.image.astype(jnp.float32)),
    )


def source(count=203):
    shape = (count, problems.SIZE, problems.SIZE, 3)
    return Arrays(np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)).open()


def measurement(module):
    return problem(CosineDistance(), module).objective


def scores(scorer, mesh=None, indices=None):
    """Rows of all images in order of index."""
    parts = list(stream(scorer, source(), TRANSFORM, indices, mesh))
    return pa.concat_tables([part.table for part in parts]).sort_by("index")


def on_mesh(backend, whole, part):
    """A scorer fitted by all devices, ready to score on this process's.

    Args:
        backend: How.
        whole: The problem with all its batches.
        part: The batches that this process holds.
    """
    local = local_devices()
    count = whole.batches.index.shape[0]
    held = np.asarray(part)

    @jax.jit
    def cut(batches):
        padded = jax.tree.map(lambda leaf: leaf[np.minimum(held, count - 1)], batches)
        index = jnp.where((held < count)[:, None], padded.index, -1)
        return dataclasses.replace(padded, index=index), jax.tree.map(lambda leaf: leaf[:1], batches)

    padded, first = cut(whole.batches)
    divided = SplitProblem(dataclasses.replace(whole, batches=padded), all_devices())
    state = divided.fit(backend, SETTINGS.seed, local)
    here = dataclasses.replace(
        whole,
        params=replicate(whole.params, local),
        frozen=replicate(whole.frozen, local),
        batches=replicate(first, local),
    )
    return Scorer.of(here, state, backend, SETTINGS, measurement(whole.objective.network.module)), divided, state
