"""What is said while a run works: compiling, then one rate, on a terminal and without one."""

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from influence_ssl_jax.cli import console, main
from influence_ssl_jax.cli.console import Renderer, duration
from influence_ssl_jax.progress import Note, Written, stage
from influence_ssl_jax.run_log import Pace, RunLog, watch_stage


def said(out: Console) -> str:
    return out.file.getvalue()


def until(out: Console, word: str) -> str:
    """What is said once `word` is among it."""
    end = time.monotonic() + 20
    while word not in said(out):
        assert time.monotonic() < end, said(out)
        time.sleep(0.01)
    return said(out)


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(console, "EVERY", 0.02)


def test_without_a_terminal_a_line_at_the_beginning_and_then_again_and_again(tmp_path):
    out = Console(file=io.StringIO(), width=200)
    with watch_stage(Renderer(out), RunLog(tmp_path), "scoring", Pace(1000, 0)) as watch:
        assert said(out).startswith("scoring …\n")
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
    with watch_stage(Renderer(out), RunLog(tmp_path), "scoring", Pace(1000, 0)):
        assert "compiling …" in until(out, "compiling …")
    assert "0 images/s" not in said(out)
    assert "scoring: " not in said(out)


def test_work_without_images_is_said_too():
    out = Console(file=io.StringIO(), width=200)
    with stage(Renderer(out), "fitting the curvature"):
        until(out, "fitting the curvature: 0 s so far\n")
    assert said(out).startswith("fitting the curvature …\n")
    quiet = Console(file=io.StringIO(), quiet=True)
    with stage(Renderer(quiet), "fitting"):
        time.sleep(0.05)
    assert said(quiet) == ""


def test_a_reader_that_has_gone_ends_the_lines():
    class Ending(io.StringIO):
        def write(self, text):
            if self.getvalue():
                raise BrokenPipeError
            return super().write(text)

    out = main._Output(file=Ending(), width=200)
    with stage(Renderer(out), "fitting the curvature"):  # an error in the thread of the lines would fail the test
        time.sleep(0.1)
    assert said(out) == "fitting the curvature …\n"
    with pytest.raises(BrokenPipeError):
        Renderer(out)(Note("the next line"))


def test_the_rate_counts_what_comes_between_batches(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace = Pace(100, 0)
    now[0] = 30.0  # compiling
    pace.advance(10)
    now[0] = 40.0  # ten seconds of probing and saving
    pace.advance(10)
    assert pace.speed == 1.0


def test_notes_are_plain_text_and_a_caution_is_called_a_note():
    out = Console(file=io.StringIO(), width=200)
    for kind in ("fact", "caution", "detail"):
        Renderer(out)(Note("[red]one[/red] of 3", kind))
    assert said(out) == "[red]one[/red] of 3\nnote: [red]one[/red] of 3\n[red]one[/red] of 3\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_note_stands_above_the_bar_and_an_error_ends_the_stage(tmp_path, terminal):
    out = Console(file=io.StringIO(), width=200, force_terminal=terminal)
    show = Renderer(out)

    def broken():
        with watch_stage(show, RunLog(tmp_path), "training", Pace(10, 0)) as watch:
            watch.advance(5, loss=0.25)
            watch.say("epoch 1: loss 0.25")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        broken()
    assert "epoch 1: loss 0.25\n" in said(out)
    assert "training · loss 0.25" in said(out)
    assert "first batch done" in said(out)
    with stage(show, "nearest neighbours"):  # a second stage of the same renderer
        until(out, "nearest neighbours")


def test_a_path_is_shown_as_text_whatever_is_in_it():
    out = Console(file=io.StringIO(), width=200)
    Renderer(out)(Written("Scores", Path("a\x1b[2J\udcff")))
    assert said(out) == "Scores: a\\x1b[2J\\xff\n"


def test_durations():
    assert [duration(s) for s in (0.4, 119.0, 121.0, 7300.0)] == ["0 s", "119 s", "2 min", "2 h 2 min"]
