"""One small instance of every loss, with embeddings for it."""

import jax
import numpy as np

from influence_ssl_jax.losses import (
    BYOL,
    MEASUREMENTS,
    TRAINING_LOSSES,
    BarlowTwins,
    CosineDistance,
    Embeddings,
    SimCLR,
    SimSiam,
    SquaredEuclid,
    Supervised,
    VICReg,
)

BATCH, WIDTH = 4, 3
LOSSES = (
    SimCLR(0.5),
    BYOL(),
    BarlowTwins(),
    SimSiam(),
    VICReg(1.0, 1.0, 0.1),
    Supervised(),
    CosineDistance(),
    SquaredEuclid(),
)
REGISTERED = {*TRAINING_LOSSES, *MEASUREMENTS}
assert {type(loss) for loss in LOSSES} == REGISTERED, f"LOSSES is not the list of {REGISTERED}"
TRAINED = tuple(loss for loss in LOSSES if type(loss) in TRAINING_LOSSES)


def name(loss):
    return type(loss).__name__


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def embeddings(loss, seed=0, batch=BATCH, width=WIDTH):
    """Embeddings of everything that any loss reads."""
    return Embeddings(
        jax.numpy.asarray(draw(seed, loss.views, batch, width)),
        jax.numpy.asarray(draw(seed + 1, loss.views, batch, width)),
        jax.numpy.arange(batch) % width,
    )


value = jax.jit(lambda loss, given: loss(given), static_argnums=0)
"""A loss of embeddings, compiled: many small cases are then cheap."""
