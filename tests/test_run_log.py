"""The log and the heartbeat of a run."""

import json
import threading
import time

import jax
import pytest

from influence_ssl_jax import run_log
from influence_ssl_jax.run_log import Pace, RunLog, json_lines


def beat_of(folder, name="heartbeat.json"):
    return json.loads((folder / name).read_text())


def test_lines_that_are_no_objects_are_passed_over(tmp_path):
    (tmp_path / "log.jsonl").write_text('null\n1\n["a"]\n{"event": "start"}\n' + "[" * 100_000 + '\n{"event": "fini')
    assert json_lines(tmp_path / "log.jsonl") == [{"event": "start"}]
    log = RunLog(tmp_path)
    log.event("start")
    assert len(log.events("start")) == 2


def test_the_heart_beats_while_the_work_is_one_long_step(tmp_path, monkeypatch):
    monkeypatch.setattr(run_log, "BEAT", 0.02)
    with RunLog(tmp_path) as log:
        log.beat("fitting", total=10)
        first = beat_of(tmp_path)
        deadline = time.monotonic() + 30
        while beat_of(tmp_path)["time"] <= first["time"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        later = beat_of(tmp_path)
        assert (later["doing"], later["total"], later["moved"]) == ("fitting", 10, first["moved"])
    assert beat_of(tmp_path)["doing"] == "finished"
    assert not [thread for thread in threading.enumerate() if thread.name == "heartbeat"]


def test_a_run_that_fails_says_so_in_log_and_heartbeat(tmp_path):
    def failing():
        with RunLog(tmp_path) as log:
            log.beat("scoring")
            raise ValueError("no image")

    with pytest.raises(ValueError, match="no image"):
        failing()
    assert json_lines(tmp_path / "log.jsonl")[-1]["reason"] == "ValueError: no image"
    assert beat_of(tmp_path)["doing"] == "stopped: ValueError: no image"


def test_the_bar_of_the_first_process_counts_what_the_others_have_done(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    first = RunLog(tmp_path)
    for number, advanced in ((1, 40), (2, 2)):
        monkeypatch.setattr(jax, "process_index", lambda number=number: number)
        pace = Pace(100, 10)
        pace.advance(advanced)
        RunLog(tmp_path).beat("scoring", **pace.facts())
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    assert first.of_others() == 42
    stale = json.loads((tmp_path / "heartbeat-2.json").read_text())
    (tmp_path / "heartbeat-2.json").write_text(json.dumps({**stale, "moved": stale["moved"] - 3600}))
    (tmp_path / "heartbeat-1.json").write_text("null")
    assert first.of_others() == 0
