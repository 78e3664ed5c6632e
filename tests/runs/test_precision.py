"""Scoring in 16 bits ranks the bundled images as float32 does, and says how far."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from scipy.stats import spearmanr

from influence_ssl_jax.cli.console import Renderer
from influence_ssl_jax.data import Digits
from influence_ssl_jax.ihvp import LoGra
from influence_ssl_jax.losses import SimCLR
from influence_ssl_jax.runs.score import score
from influence_ssl_jax.runs.settings import CurvatureSet, ScoreRun
from influence_ssl_jax.scoring.scores import Scoring
from influence_ssl_jax.train import export
from tests.train.small import Small, saved, small

SOURCE = Digits(size=8, digits=240)


def test_bfloat16_scores_of_real_images_rank_as_float32_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "Pretrain", Small)
    encoder = saved(tmp_path / "encoder", small(SimCLR(0.5)))
    single = ScoreRun(
        encoder,
        tmp_path / "float32",
        SOURCE,
        curvature=CurvatureSet(examples=32, batch_size=32),
        backend=LoGra(rank=2),
        scoring=Scoring(draws=1, batch_size=32),
    )
    half = dataclasses.replace(single, out=tmp_path / "bfloat16", precision="bfloat16")
    told = Console(width=200)
    with told.capture() as said:
        score(half, Renderer(told))
    score(single)
    scores = [pq.read_table(each.out / "scores.parquet")["score"].to_numpy() for each in (half, single)]
    record = json.loads((half.out / "run.json").read_text())["bfloat16"]
    known = np.isfinite(scores[0]) & np.isfinite(scores[1])
    assert record["images"] == known.sum() > 0.95 * len(SOURCE.open())
    scores = [each[known] for each in scores]
    np.testing.assert_allclose(record["rank_correlation"], spearmanr(*scores).statistic, rtol=1e-3)
    assert not np.array_equal(*scores)
    assert 0.99 < record["rank_correlation"] < 1
    assert f"rank correlation {record['rank_correlation']:.4f}" in said.get()
