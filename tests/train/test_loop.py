"""Whole runs: what is written, what a kill loses (nothing), and what stops a run."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from influence_ssl_jax import checkpoint
from influence_ssl_jax.cli.console import Renderer
from influence_ssl_jax.data import Arrays
from influence_ssl_jax.data.arrays import InMemory
from influence_ssl_jax.errors import DataError, FullDiskError, StoreError, disk_of
from influence_ssl_jax.losses import BYOL, SimCLR
from influence_ssl_jax.run_log import RunLog, json_lines
from influence_ssl_jax.store.files import lock
from influence_ssl_jax.train import Kept, Probe, Sgd, TrainingError, export, pretrain
from influence_ssl_jax.train.resume import Checkpoints, Journal
from influence_ssl_jax.train.state import initial
from tests.train.small import INPUT, a_batch, coloured, small

PROBE = Probe(bank=16, queries=16, neighbours=3, linear=20)


def equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def run(settings, folder, source=None, **changes):
    train = coloured(48) if source is None else source
    return pretrain(settings, train, INPUT, folder, coloured(24, seed=1), PROBE, **changes)


def log_of(folder):
    return json_lines(folder / "log.jsonl")


class Interrupted(Exception):
    pass


class Breaking(InMemory):
    """A source that breaks after so many reads, as a kill in the middle of an epoch would."""

    def __init__(self, source, reads):
        examples = [source.read(index) for index in range(len(source))]
        super().__init__([each.image for each in examples], np.array([each.label for each in examples]))
        self._left = reads

    def read(self, index):
        self._left -= 1
        if self._left < 0:
            raise Interrupted
        return super().read(index)


def test_a_run_learns_and_reports(tmp_path):
    shown = Console(file=io.StringIO(), width=200)
    settings = small(SimCLR(0.5), epochs=3, optimiser=Sgd(0.05, warmup_epochs=1))
    trained = run(settings, tmp_path, progress=Renderer(shown))
    rows = Journal(tmp_path / "metrics.jsonl").rows()
    assert rows == list(trained.history)
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    assert rows[3]["loss"] < rows[1]["loss"]
    assert rows[3]["knn"] > 0.9
    assert set(rows[1]) == {
        "epoch", "loss", "gradient_norm", "learning_rate", "skipped", "images_per_second", "seconds", "knn", "linear"
    }  # fmt: skip
    assert "images/s" in shown.file.getvalue()
    assert "3 epochs, 9 steps in 1 runs, the last from step 0; 0 losses not finite" in shown.file.getvalue()
    assert "\nWaited for images " in shown.file.getvalue()
    assert 0 < log_of(tmp_path)[-1]["share_waiting_for_images"] < 1
    beat = json.loads((tmp_path / "heartbeat.json").read_text())
    assert (beat["doing"], beat["done"], beat["total"]) == ("finished", 3 * 48, 3 * 48)
    assert json.loads((tmp_path / "settings.json").read_text())["pretrain"]["epochs"] == 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Settings, folder and network of a finished run."""
    settings, folder = small(BYOL(), epochs=3), tmp_path_factory.mktemp("finished")
    return settings, folder, run(settings, folder, kept=Kept(folder / "encoders", frozenset({0, 1, 3})))


@pytest.mark.slow
def test_an_interrupted_run_ends_as_the_uninterrupted_one(finished, tmp_path):
    settings, folder, whole = finished
    per_epoch = 48 + 16  # a pass, and the bank of the probe
    broken = Breaking(coloured(48), 16 + per_epoch + 60)
    kept = Kept(tmp_path / "broken" / "encoders", frozenset({0, 1, 3}))
    with pytest.raises(Interrupted):
        run(settings, tmp_path / "broken", broken, kept=kept)
    assert [row["epoch"] for row in Journal(tmp_path / "broken" / "metrics.jsonl").rows()] == [0, 1]
    resumed = run(settings, tmp_path / "broken", kept=kept)
    for epoch in kept.epochs:
        described = [
            checkpoint.describe(each) for each in (kept.file(epoch), folder / f"encoders/epoch-{epoch}/encoder")
        ]
        assert described[0]["digest"] == described[1]["digest"]
        assert [len(each["history"]) for each in described] == [epoch + 1] * 2
    equal(resumed.params, whole.params)
    equal(resumed.frozen, whole.frozen)
    timeless = [
        [{k: v for k, v in row.items() if k not in ("images_per_second", "seconds")} for row in each.history]
        for each in (resumed, whole)
    ]
    assert timeless[0] == timeless[1]
    equal(run(settings, tmp_path / "broken").params, whole.params)
    told = [(line["event"], line.get("resumed_at_step", line.get("epoch"))) for line in log_of(tmp_path / "broken")]
    before, between, after = [("start", 0), ("epoch", 0), ("epoch", 1)], [("epoch", 2), ("epoch", 3)], ("finished", 3)
    assert told == [*before, ("stopped", None), ("start", 3), *between, after, ("start", 9), ("finished", 9)]
    last = log_of(tmp_path / "broken")[-1]
    names = ("epochs", "steps", "resumed_at_step", "runs", "nan", "skipped")
    assert [last[name] for name in names] == [3, 9, 9, 3, 0, 0]


@pytest.mark.slow
def test_a_killed_process_goes_on_where_it_was(tmp_path):
    settings = small(SimCLR(0.5), epochs=6)
    script = textwrap.dedent(f"""
        import sys, pathlib, jax
        jax.config.update("jax_enable_x64", {jax.config.read("jax_enable_x64")})
        jax.config.update("jax_disable_most_optimizations", {jax.config.read("jax_disable_most_optimizations")})
        from influence_ssl_jax.losses import SimCLR
        from tests.train.small import coloured, small
        from tests.train.test_loop import run
        run(small(SimCLR(0.5), epochs=6), pathlib.Path(sys.argv[1]))
    """)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "killed")], env=environment)
    journal = Journal(tmp_path / "killed" / "metrics.jsonl")
    try:
        deadline = time.monotonic() + 120
        while len(journal.rows()) < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    beat, epochs = json.loads((tmp_path / "killed" / "heartbeat.json").read_text()), len(journal.rows()) - 1
    assert (beat["pid"], beat["total"]) == (process.pid, 6 * 48)
    assert [line["event"] for line in log_of(tmp_path / "killed")].count("finished") == 0
    resumed, whole = run(settings, tmp_path / "killed"), run(settings, tmp_path / "whole")
    starts = [line for line in log_of(tmp_path / "killed") if line["event"] == "start"]
    assert [start["pid"] for start in starts] == [process.pid, os.getpid()]
    assert starts[1]["resumed_at_step"] in (
        3 * (epochs - 1),
        3 * epochs,
    )  # the last epoch's state may not have been kept
    assert log_of(tmp_path / "killed")[-1]["runs"] == 2
    assert json.loads((tmp_path / "killed" / "heartbeat.json").read_text())["pid"] == os.getpid()
    equal(resumed.params, whole.params)
    equal(resumed.frozen, whole.frozen)
    assert [row["epoch"] for row in resumed.history] == list(range(7))


def test_networks_of_epochs_are_kept_and_one_that_is_gone_is_refused(finished, monkeypatch):
    settings, folder, trained = finished
    monkeypatch.setattr(export, "Pretrain", type(settings))
    untrained, first, last = (export.load(folder / f"encoders/epoch-{epoch}/encoder") for epoch in (0, 1, 3))
    equal(untrained.params, initial(settings, (8, 8, 3)).params)
    equal((last.params, last.frozen), (trained.params, trained.frozen))
    assert last.history == trained.history
    assert first.history == trained.history[:2]
    kernels = [each.params["projector"]["output"]["kernel"] for each in (untrained, first, last)]
    assert not np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[1], kernels[2])
    with pytest.raises(
        TrainingError, match=r"finished 3 epochs and has not kept its network after epoch 2\. Leave 2 out"
    ):
        run(settings, folder, kept=Kept(folder / "encoders", frozenset({1, 2, 3})))


def test_a_kill_between_a_kept_network_and_its_state_costs_nothing(finished, tmp_path, monkeypatch):
    settings, folder, _ = finished
    kept = Kept(tmp_path / "run" / "encoders", frozenset({1}))
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", lambda *_: (_ for _ in ()).throw(Interrupted()))
        with pytest.raises(Interrupted):
            run(settings, tmp_path / "run", kept=kept)
    assert checkpoint.Files.of(kept.file(1)).arrays.exists()
    run(settings, tmp_path / "run", kept=kept)
    mine, theirs = (checkpoint.describe(each) for each in (kept.file(1), folder / "encoders/epoch-1/encoder"))
    assert mine["digest"] == theirs["digest"]


def test_another_run_in_the_folder_is_refused_with_the_difference(finished):
    settings, folder, _ = finished
    with pytest.raises(TrainingError, match=r"pretrain\.seed: 0 → 7"):
        run(dataclasses.replace(settings, seed=7), folder)
    with pytest.raises(TrainingError, match="data: "):
        run(settings, folder, coloured(48, seed=1))
    with pytest.raises(TrainingError, match="test: "):  # accuracies of two test sets are not one history
        pretrain(settings, coloured(48), INPUT, folder, coloured(24, seed=2), PROBE)


def test_a_folder_of_something_else_is_refused_untouched(tmp_path):
    (tmp_path / "scores.parquet").write_text("mine")
    with pytest.raises(TrainingError, match=r"not empty and holds no training run \(scores.parquet, …\)"):
        run(small(SimCLR(0.5), epochs=1), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["scores.parquet"]


def test_a_diverging_run_names_the_step_and_what_to_do(tmp_path):
    settings = small(SimCLR(0.5), epochs=1, optimiser=Sgd(1e30, momentum=0.0))
    with pytest.raises(TrainingError, match=r"step [23] of 3 in epoch 1: loss nan.*Lower the learning rate"):
        run(settings, tmp_path)
    last, stopped = log_of(tmp_path)[-2:]
    assert (last["event"], last["epoch"], stopped["event"]) == ("diverged", 1, "stopped")
    assert "Lower the learning rate" in last["reason"]


def test_two_runs_do_not_share_a_folder(finished):
    settings, folder, _ = finished
    with lock(folder), pytest.raises(StoreError, match="being written by another run"):
        run(settings, folder)


def test_accuracies_are_measured_every_so_many_epochs_and_never_without_test_examples(tmp_path):
    settings = small(SimCLR(0.5), epochs=3)
    every = dataclasses.replace(PROBE, every=2)
    rows = pretrain(settings, coloured(48), INPUT, tmp_path / "two", coloured(24, seed=1), every).history
    assert [row["epoch"] for row in rows if "knn" in row and "linear" in row] == [0, 2, 3]
    without = pretrain(settings, coloured(48), INPUT, tmp_path / "none", probe=PROBE)
    assert not any("knn" in row or "linear" in row for row in without.history)
    assert not {"probe", "test"} & json.loads((tmp_path / "none" / "settings.json").read_text()).keys()


def test_without_labels_nothing_is_probed_and_with_few_examples_a_small_batch_trains(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, size=(12, 8, 8, 3)).astype(np.uint8)
    trained = run(small(SimCLR(0.5), epochs=1), tmp_path, Arrays(images).open())
    assert all("knn" not in row for row in trained.history)
    assert len(trained.history) == 2


@pytest.mark.parametrize(("count", "error"), [(0, DataError), (1, TrainingError)])
def test_too_few_examples_are_refused(tmp_path, count, error):
    images = np.zeros((count, 8, 8, 3), np.uint8)
    with pytest.raises(error):
        run(small(SimCLR(0.5), epochs=1), tmp_path, Arrays(images).open())


def test_a_trained_network_is_saved_and_loaded_with_its_objective(finished, tmp_path, monkeypatch):
    settings, _, trained = finished
    export.save(tmp_path / "net", trained, command="as here")
    monkeypatch.setattr(export, "Pretrain", type(settings))
    loaded = export.load(tmp_path / "net")
    assert loaded.settings == settings
    assert loaded.history == trained.history
    equal(loaded.params, trained.params)
    equal(loaded.frozen, trained.frozen)
    assert loaded.frozen["target"]["params"].keys() == {"backbone", "projector"}
    batch = a_batch(settings)
    value = settings.objective()(loaded.params, loaded.frozen, batch)
    np.testing.assert_array_equal(value, settings.objective()(trained.params, trained.frozen, batch))
    assert bool(jnp.isfinite(value))


def test_a_torn_line_of_the_journal_is_no_row(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    assert journal.rows() == []
    journal.append({"epoch": 0, "knn": 0.5})
    journal.append({"epoch": 1, "loss": 2.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "lo')
    assert [row["epoch"] for row in journal.rows()] == [0, 1]
    assert journal.keep(0) == [{"epoch": 0, "knn": 0.5}]
    assert journal.rows() == [{"epoch": 0, "knn": 0.5}]


def test_a_full_disk_is_named_and_the_journal_stays_what_it_was(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.append({"epoch": 0})
    (tmp_path / "metrics.jsonl.tmp").symlink_to("/dev/full")  # the kernel's own ENOSPC, without privileges
    with pytest.raises(
        FullDiskError, match=r"The disk of .*metrics.jsonl cannot take more data: No space left on device"
    ):
        journal.keep(0)
    assert journal.rows() == [{"epoch": 0}]
    log = RunLog(tmp_path)
    (tmp_path / "log.jsonl").symlink_to("/dev/full")  # written to only: it never ends when it is read
    with pytest.raises(FullDiskError, match="give the same command again"):
        log.event("start")
    with pytest.raises(FullDiskError), disk_of(tmp_path / "a"):
        raise ValueError("RESOURCE_EXHAUSTED: a/b: No space left on device")  # as orbax's writer reports it
    with pytest.raises(ValueError, match="anything else"), disk_of(tmp_path / "a"):
        raise ValueError("anything else")


def test_a_line_that_a_kill_cut_short_does_not_spoil_the_next_one(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"event": "start"}\n{"event": "epo')
    log = RunLog(tmp_path)
    log.event("start")
    assert len(log.events("start")) == 2
