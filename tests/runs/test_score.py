"""Batches on their way to the disk."""

import json
import time

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import spearmanr

from influence_ssl_jax.data.examples import Skipped
from influence_ssl_jax.progress import silent
from influence_ssl_jax.run_log import RunLog
from influence_ssl_jax.runs import score as runs_score
from influence_ssl_jax.runs.score import curvature_set_agreement, write_parts
from influence_ssl_jax.runs.settings import Parts
from influence_ssl_jax.scoring.stream import Scored
from influence_ssl_jax.signals import Terminated
from influence_ssl_jax.store import ScoreStore


def scored(start, count, skipped=()):
    """One batch of scores."""
    index = np.array([k for k in range(start, start + count) if k not in skipped], np.int64)
    table = pa.table({"index": index, "id": index.astype(str).tolist(), "score": index / 7})
    return Scored(table, tuple(Skipped(k, str(k), "truncated") for k in skipped))


def test_batches_are_gathered_into_parts_and_none_is_lost(tmp_path):
    batches = [scored(0, 4), scored(4, 4, skipped=(5,)), scored(8, 4), scored(12, 4, skipped=(12, 13, 14, 15))]
    with ScoreStore.open(tmp_path, {}, 16) as store:
        assert list(write_parts(store, batches, 16, Parts(10), RunLog(tmp_path), silent)) == [4, 8, 12, 16]
        assert store.done().tolist() == list(range(16))
        store.finish()
    assert sorted(file.name for file in (tmp_path / "parts" / "0000").glob("*.parquet")) == [
        "000000.parquet",  # 11 rows and
        "000001.parquet",  # the skipped one among them,
        "000002.parquet",  # then only skipped ones
    ]


def test_the_log_and_the_heartbeat_say_how_far_it_is(tmp_path):
    with ScoreStore.open(tmp_path, {}, 12) as store:
        batches = [scored(0, 4), scored(4, 4, skipped=(5,)), scored(8, 4)]
        list(write_parts(store, batches, 12, Parts(4), RunLog(tmp_path), silent))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["event"], line["done"], line["rows"], line["skipped"]) for line in lines] == [
        ("part", 4, 4, 0),
        ("part", 12, 7, 1),
    ]
    assert lines[1]["examples_per_second"] > 0
    assert lines[1]["seconds_left"] == 0
    beat = json.loads((tmp_path / "heartbeat.json").read_text())
    assert (beat["doing"], beat["done"], beat["total"]) == ("scoring", 4, 12)  # the others came too soon after it
    assert abs(beat["time"] - time.time()) < 60


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Terminated, ValueError])
def test_a_stop_between_parts_costs_nothing_that_was_scored(tmp_path, stop):

    def stopped():
        yield scored(0, 4)
        yield scored(4, 3)
        raise stop

    with pytest.raises(stop), ScoreStore.open(tmp_path, {}, 8) as store:
        list(write_parts(store, stopped(), 8, Parts(4), RunLog(tmp_path), silent))
    with ScoreStore.open(tmp_path, {}, 8) as store:
        assert store.done().tolist() == list(range(7))
        list(write_parts(store, [scored(7, 1)], 8, Parts(4), RunLog(tmp_path), silent))
        store.finish()


def test_halves_of_the_curvature_set_are_compared_over_all_images_or_a_sample(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    score = draw.normal(size=300)
    halves = {"score_first_half": score + 0.1 * draw.normal(size=300), "score_second_half": score, "score": score}
    index = np.arange(300)
    table = pa.table({"index": index, "id": index.astype(str).tolist(), **halves, "score_se_curvature": 0.2 * score})
    unknown = {name: np.full(300, np.nan) for name in ("score_first_half", "score_second_half", "score_se_curvature")}
    outside = index >= 40  # scored without their own part of C, so that halves are unknown
    partly = {name: np.where(outside, each, table[name].to_numpy()) for name, each in unknown.items()}
    with ScoreStore.open(tmp_path, {}, 300) as store:
        assert curvature_set_agreement(store) == {}
        store.append(table.slice(100))
        store.append(table.slice(0, 100))
        whole = curvature_set_agreement(store)["curvature_set"]
        monkeypatch.setattr(runs_score, "SAMPLE", 200)
        sampled = curvature_set_agreement(store)["curvature_set"]
    right = spearmanr(halves["score_first_half"], score).statistic
    np.testing.assert_allclose([whole["halves"]["spearman"], whole["half and whole"]["spearman"]], right, rtol=1e-12)
    assert (whole["images"], sampled["images"]) == (300, 200)
    assert sampled["halves"]["spearman"] != whole["halves"]["spearman"]
    assert abs(sampled["halves"]["spearman"] - right) < 0.01
    np.testing.assert_allclose(whole["median relative standard error"], 0.2)
    monkeypatch.setattr(runs_score, "SAMPLE", 300)
    with ScoreStore.open(tmp_path / "partly", {}, 300) as store:
        store.append(pa.table({"index": index, "id": table["id"], "score": score, **partly}))
        assert curvature_set_agreement(store)["curvature_set"]["images"] == 40
