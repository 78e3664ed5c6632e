"""Scores of a whole data set by three backends: the exact one is compared with, and the same command goes on."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from experiments import score_exactly


def test_every_image_has_three_scores_and_the_exact_one_its_bounds(tmp_path):
    config = score_exactly.Config.tiny(tmp_path, Path("tests.small_encoder:load"))
    folder = score_exactly.run(config)
    table = pq.read_table(folder / "table.parquet")
    exact, low, high = (table[name].to_numpy().astype(np.float64) for name in ("score", "score_lo", "score_hi"))
    assert len(table) == len(config.source().open())
    assert np.all((low <= exact) & (exact <= high))
    record = json.loads((folder / "result.json").read_text())["found"]
    for name in ("score_logra", "score_ekfac", "gradient_norm"):
        ranks = [np.argsort(np.argsort(each)) for each in (table[name].to_numpy(), exact)]
        expected = np.corrcoef(*ranks)[0, 1]
        assert abs(record["compared with the exact score"][name]["spearman"][0] - expected) < 1e-4
