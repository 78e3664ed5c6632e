"""The resumable score store: parts with checksums while scores are made, one table when they all are."""

from influence_ssl_jax.store.fitted import digest_of, load_fitted, save_fitted
from influence_ssl_jax.store.result import BASELINES, COLUMNS, MEASUREMENTS, RUN, SCORES
from influence_ssl_jax.store.score_store import ScoreStore

__all__ = [
    "BASELINES",
    "COLUMNS",
    "MEASUREMENTS",
    "RUN",
    "SCORES",
    "ScoreStore",
    "digest_of",
    "load_fitted",
    "save_fitted",
]
