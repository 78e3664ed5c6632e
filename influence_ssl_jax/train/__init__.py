"""Pretrain networks: settings and recipes, training loop, and files of networks."""

from influence_ssl_jax.errors import require

require("train")

from influence_ssl_jax.train.export import Kept, Trained, load, save
from influence_ssl_jax.train.loop import pretrain
from influence_ssl_jax.train.optimisers import Lars, Sgd
from influence_ssl_jax.train.probes import Probe
from influence_ssl_jax.train.resume import TrainingError
from influence_ssl_jax.train.settings import RECIPES, Architecture, Pretrain, tiny

__all__ = [
    "RECIPES",
    "Architecture",
    "Kept",
    "Lars",
    "Pretrain",
    "Probe",
    "Sgd",
    "Trained",
    "TrainingError",
    "load",
    "pretrain",
    "save",
    "tiny",
]
