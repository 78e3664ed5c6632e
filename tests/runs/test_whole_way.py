"""Pretrain, score and report through the command line, stopped on the way and gone on with."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from influence_ssl_jax import data
from influence_ssl_jax.cli import main
from influence_ssl_jax.cli.console import Renderer
from influence_ssl_jax.errors import StoreError
from influence_ssl_jax.ihvp import Identity
from influence_ssl_jax.losses import SimCLR
from influence_ssl_jax.runs.pretrain import pretrain
from influence_ssl_jax.runs.score import score
from influence_ssl_jax.runs.settings import CurvatureSet, Parts, PretrainRun, ScoreRun
from influence_ssl_jax.scoring.scores import Scoring
from influence_ssl_jax.store import COLUMNS, ScoreStore
from influence_ssl_jax.train import Probe, export
from tests.train.small import INPUT, Small, small

SOURCE = data.Digits(size=8, digits=18, exact_duplicates=0.1, near_duplicates=0.1, blanks=0.1, noise=0.1)
SIZE = 26


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    """A network of one convolution, pretrained by the command."""
    monkeypatch.setattr(export, "Pretrain", Small)
    folder, training = tmp_path / "encoder", small(SimCLR(0.5), epochs=1, batch_size=13)
    pretrain(PretrainRun(folder, SOURCE, training, INPUT, probe=Probe(linear=0)))
    return folder


def command(encoder, out, **changes):
    """A scoring run of two batches of draws, cheap to compile."""
    chosen = CurvatureSet(examples=13, batch_size=13)
    score = ScoreRun(
        encoder, out, SOURCE, curvature=chosen, backend=Identity(), scoring=Scoring(draws=2, batch_size=13)
    )
    return dataclasses.replace(score, **changes)


@pytest.mark.slow
def test_the_whole_way(encoder, tmp_path, monkeypatch):
    told = Console(width=200)
    fresh = command(encoder, tmp_path / "fresh")
    with told.capture() as said:
        score(fresh, Renderer(told))
    assert f"Scores: {tmp_path / 'fresh' / 'scores.parquet'}" in said.get()
    table = pq.read_table(tmp_path / "fresh" / "scores.parquet")
    assert table.column_names == [*COLUMNS, "in_curvature_set", "label", "planted", "original"]
    assert table["index"].to_pylist() == list(range(SIZE))
    for name in COLUMNS[2:8]:
        assert np.isfinite(table[name].to_numpy()).all(), name
    record = json.loads((tmp_path / "fresh" / "run.json").read_text())
    assert record["counts"]["scored"] == SIZE
    assert record["configuration"]["source"] == {"class": "Digits", **dataclasses.asdict(SOURCE)}
    assert record["configuration"]["input"]["height"] == 8
    assert record["damping"]["resolved"] > 0

    # stopped after the first batch, gone on with: the same bits
    appended = ScoreStore.append

    def append_once(store, table):
        if len(store.done()):
            raise KeyboardInterrupt
        appended(store, table)

    monkeypatch.setattr(ScoreStore, "append", append_once)
    with pytest.raises(KeyboardInterrupt):
        score(command(encoder, tmp_path / "resumed", parts=Parts(1)), Renderer(told))
    monkeypatch.setattr(ScoreStore, "append", appended)
    with told.capture() as said:
        score(command(encoder, tmp_path / "resumed", parts=Parts(1)), Renderer(told))
    assert f"Continuing: 13 of {SIZE} images are done." in said.get()
    both = [(tmp_path / name / "scores.parquet").read_bytes() for name in ("fresh", "resumed")]
    assert both[0] == both[1]
    assert json.loads((tmp_path / "resumed" / "run.json").read_text())["counts"]["resumed"] == 13
    events = [json.loads(line)["event"] for line in (tmp_path / "resumed" / "log.jsonl").read_text().splitlines()]
    assert events == ["start", "fitted", "part", "stopped", "start", "fit taken up", "part", "finished"]

    # finished: nothing to do; other settings: refused
    with told.capture() as said:
        score(fresh, Renderer(told))
    assert "Nothing to do" in said.get()
    with pytest.raises(StoreError, match=r"configuration.scoring.draws: 2 → 3"):
        score(command(encoder, tmp_path / "fresh", scoring=Scoring(draws=3, batch_size=13)), Renderer(told))

    assert main.run(["report", str(tmp_path / "fresh"), "--images", "4", "--resamples", "5"]) == 0
    page = (tmp_path / "fresh" / "report.html").read_text()
    assert page.count("data:image/png") == 8
    assert ">Planted truth</h2>" in page


def test_an_encoder_that_is_not_there_is_named(tmp_path):
    told = Console(width=300)
    with told.capture() as said:
        assert main.run(["score", "--encoder", str(tmp_path), "--out", str(tmp_path / "o")], err=told) == 2
    assert "No saved network at" in said.get()
    assert not (tmp_path / "o").exists()
