"""Keep scores in a resumable store.

It has parts with checksums during the run, and one table at its end.
"""

from influence_ssl_jax.errors import require

require("data")

from influence_ssl_jax.scoring.table import BASELINES, COLUMNS, CONTENT, MEASUREMENTS, NEAREST
from influence_ssl_jax.store.files import DamagedError, file_digest, read_sealed, write_sealed
from influence_ssl_jax.store.fitted import digest_of, load_fitted, read_notes, save_fitted
from influence_ssl_jax.store.result import RUN, RUN_KEYS, SCORES, read_record
from influence_ssl_jax.store.score_store import ScoreStore

__all__ = [
    "BASELINES",
    "COLUMNS",
    "CONTENT",
    "MEASUREMENTS",
    "NEAREST",
    "RUN",
    "RUN_KEYS",
    "SCORES",
    "DamagedError",
    "ScoreStore",
    "digest_of",
    "file_digest",
    "load_fitted",
    "read_notes",
    "read_record",
    "read_sealed",
    "save_fitted",
    "write_sealed",
]
