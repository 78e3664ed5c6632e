"""List the losses, convex heads on outputs of the embeddings.

`TRAINING_LOSSES` and `MEASUREMENTS` are the registries that the command line, the tests and the documents read.
"""

from influence_ssl_jax.losses.alignment import CosineDistance, Measurement, SquaredEuclid
from influence_ssl_jax.losses.barlow_twins import BarlowTwins
from influence_ssl_jax.losses.byol import BYOL
from influence_ssl_jax.losses.loss import Embeddings, Loss
from influence_ssl_jax.losses.simclr import SimCLR
from influence_ssl_jax.losses.simsiam import SimSiam
from influence_ssl_jax.losses.supervised import Supervised
from influence_ssl_jax.losses.vicreg import VICReg

TRAINING_LOSSES: tuple[type[Loss], ...] = (SimCLR, BYOL, BarlowTwins, SimSiam, VICReg, Supervised)
"""Losses that a network is trained with, self-supervised or by labels."""

MEASUREMENTS: tuple[type[Measurement], ...] = (CosineDistance, SquaredEuclid)
"""Losses whose gradient is scored."""

__all__ = [
    "BYOL",
    "MEASUREMENTS",
    "TRAINING_LOSSES",
    "BarlowTwins",
    "CosineDistance",
    "Embeddings",
    "Loss",
    "Measurement",
    "SimCLR",
    "SimSiam",
    "SquaredEuclid",
    "Supervised",
    "VICReg",
]
