"""The resumable score store: parts with checksums while scores are made, one table when they all are."""

from influence_ssl_jax.errors import require

require("data")

from influence_ssl_jax.scoring.table import BASELINES, COLUMNS, CONTENT, MEASUREMENTS
from influence_ssl_jax.store.fitted import digest_of, load_fitted, save_fitted
from influence_ssl_jax.store.result import RUN, SCORES, recorded
from influence_ssl_jax.store.score_store import ScoreStore
from influence_ssl_jax.store.sealed import DamagedError, file_digest, read_sealed, write_sealed

__all__ = [
    "BASELINES",
    "COLUMNS",
    "CONTENT",
    "MEASUREMENTS",
    "RUN",
    "SCORES",
    "DamagedError",
    "ScoreStore",
    "digest_of",
    "file_digest",
    "load_fitted",
    "read_sealed",
    "recorded",
    "save_fitted",
    "write_sealed",
]
