"""What is said while a run works: compiling, then one rate, on a terminal and without one."""

import io
import time

import pytest
from rich.console import Console

from influence_ssl_jax import run_log
from influence_ssl_jax.run_log import Pace, RunLog, duration, under_way, watched


def said(console: Console) -> str:
    return console.file.getvalue()


def until(console: Console, word: str) -> str:
    """What is said once `word` is among it."""
    end = time.monotonic() + 20
    while word not in said(console):
        assert time.monotonic() < end, said(console)
        time.sleep(0.01)
    return said(console)


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(run_log, "EVERY", 0.02)


def test_without_a_terminal_a_line_at_the_beginning_and_then_again_and_again(tmp_path):
    out = Console(file=io.StringIO(), width=200)
    with watched(out, RunLog(tmp_path), "scoring", Pace(1000, 0)) as watch:
        assert said(out) == "scoring …\n"
        until(out, "scoring: 0 of 1,000 images, compiling …\n")
        watch.advance(10)
        time.sleep(0.05)
        watch.advance(10)
        told = until(out, "scoring: 20 of 1,000 images, ")
        assert "images/s" in until(out, " left")
        assert "0 images/s," not in told.replace("00 images/s", "")
    lines = said(out)
    time.sleep(0.1)
    assert said(out) == lines  # nobody speaks after the end


def test_the_bar_says_compiling_and_not_zero(tmp_path):
    out = Console(file=io.StringIO(), width=200, force_terminal=True)
    with watched(out, RunLog(tmp_path), "scoring", Pace(1000, 0)):
        assert "compiling …" in until(out, "compiling …")
    assert "0 images/s" not in said(out)
    assert "scoring: " not in said(out)


def test_work_without_images_is_said_too():
    out = Console(file=io.StringIO(), width=200)
    with under_way(out, "fitting the curvature"):
        until(out, "fitting the curvature: 0 s so far\n")
    assert said(out).startswith("fitting the curvature …\n")
    quiet = Console(file=io.StringIO(), quiet=True)
    with under_way(quiet, "fitting"):
        time.sleep(0.05)
    assert said(quiet) == ""


def test_the_rate_counts_what_comes_between_batches(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace = Pace(100, 0)
    now[0] = 30.0  # compiling
    pace.advance(10)
    now[0] = 40.0  # ten seconds of probing and saving
    pace.advance(10)
    assert pace.speed == 1.0
    assert pace.line() == "20 of 100 images, 1 images/s, 80 s left"


def test_durations():
    assert [duration(s) for s in (0.4, 119.0, 121.0, 7300.0)] == ["0 s", "119 s", "2 min", "2 h 2 min"]
