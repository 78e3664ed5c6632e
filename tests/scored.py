"""A finished run with everything that a report can meet, and one with nothing."""

import numpy as np
import pyarrow as pa

from influence_ssl_jax import data
from influence_ssl_jax.configuration import describe
from influence_ssl_jax.data.examples import Skipped
from influence_ssl_jax.store import ScoreStore

SOURCE = data.Digits(digits=120, size=12, exact_duplicates=0.1, near_duplicates=0.1, blanks=0.1, noise=0.1)
HOSTILE = '<script>alert("x")</script>'


def write_run(folder):
    """Scores of digits: low for duplicates, high for blanks; one not finite, two skipped."""
    source = SOURCE.open()
    size, generator = len(source), np.random.default_rng(0)
    planted = np.array(source.attributes()["planted"].to_pylist())
    latent = generator.normal(size=size) - 2 * (planted == "exact_duplicate") + 3 * (planted == "blank")
    kept = np.arange(2, size)
    score = np.exp(latent)
    score[5] = np.nan
    columns = {
        "index": kept,
        "id": [HOSTILE if k == np.nanargmax(score) else source.read(int(k)).id for k in kept],
        "score": score[kept],
        "score_se": 0.2 * score[kept],
        "alignment_loss": np.exp(latent + generator.normal(size=size))[kept],
        "gradient_norm": generator.normal(size=size)[kept] ** 2,
        "pixel_variance": np.array([source.read(int(k)).image.var() for k in kept]),
        "reason": pa.array(["zero embedding" if k == 5 else None for k in kept], pa.string()),
    }
    attributes = source.attributes().append_column("age", pa.array(latent))
    attributes = attributes.append_column("$group$ & co", pa.array([[HOSTILE, "b", None][k % 3] for k in range(size)]))
    attributes = attributes.append_column("file", pa.array([f"{k}.png" for k in range(size)]))
    distance = np.zeros(size)
    distance[kept] = generator.exponential(size=len(kept))
    with ScoreStore.open(folder, {"source": describe(SOURCE)}, size) as store:
        store.append(pa.table(columns))
        store.skip([Skipped(0, "zero", HOSTILE), Skipped(1, "one", "truncated")])
        store.finish(
            attributes,
            lambda index: {"knn_distance": distance[index]},
            {
                "configuration": {"class": "Score", "source": describe(SOURCE), "draws": 4},
                "command": ["influence-ssl", "score", "--out", "my scores"],
                "versions": {"jax": "1.2.3"},
                "damping": {"relative": 0.1, "resolved": 0.025},
            },
        )
    return folder


def write_bare(folder):
    """Four scores and nothing else: no attributes, baselines, errors or record."""
    with ScoreStore.open(folder, {}, 4) as store:
        store.append(pa.table({"index": np.arange(4), "id": list("abcd"), "score": [1.0, 2.0, 3.0, 4.0]}))
        store.finish()
    return folder
