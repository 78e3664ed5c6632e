"""The store under every interruption that a disk and a scheduler can think of."""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influence_ssl_jax.data.examples import Skipped
from influence_ssl_jax.errors import FailingDiskError, FullDiskError, StoreError
from influence_ssl_jax.report.scored_run import ScoredRun
from influence_ssl_jax.scoring.neighbours import Neighbours
from influence_ssl_jax.scoring.stream import embedding_matrix
from influence_ssl_jax.scoring.table import LIGHT, neighbour_columns
from influence_ssl_jax.store import (
    COLUMNS,
    ScoreStore,
    files,
    identity,
    manifest,
    read_sealed,
    result,
    score_store,
    write_sealed,
)
from influence_ssl_jax.store.manifest import Manifest

IDENTITY = {"configuration": {"class": "Score", "draws": 4, "backend": {"class": "LoGra", "rank": 8}}, "data": "abc"}
SIZE = 10
ATTRIBUTES = pa.table({"label": pa.array(np.arange(SIZE) % 3), "score": pa.array(np.arange(SIZE) / 2)})


def part(indices, scale=1.0):
    """Scores of some examples, with every column and an embedding."""
    indices = np.asarray(indices, np.int64)
    numbers = {name: scale * (indices + k) for k, name in enumerate(COLUMNS[2:7])}
    embedding = np.stack([indices, indices**2], axis=1).astype(np.float32)
    return pa.table(
        {
            "index": indices,
            "id": [f"image_{index}" for index in indices],
            **numbers,
            "reason": pa.nulls(len(indices), pa.string()),
            "content": pa.array([bytes([index]) * 16 for index in indices], pa.binary(16)),
            **{name: scale * (indices + k) for k, name in enumerate(LIGHT)},
            "embedding": pa.FixedSizeListArray.from_arrays(embedding.ravel(), 2),
        }
    )


def fill(folder, batches, finish=True):
    """Score what is missing, batch by batch, as a run does."""
    with ScoreStore.open(folder, IDENTITY, SIZE) as store:
        for batch in batches:
            todo = np.setdiff1d(batch, store.done())
            store.append(part(todo[todo != 6]))
            store.skip([Skipped(6, "image_6", "truncated")] if 6 in todo else [])
        if finish:
            distances = store.distances(lambda: squares(store))
            return store.finish(ATTRIBUTES, lambda index: neighbour_columns(distances.of(index)), {"damping": 0.5})
    return None


def squares(store):
    """The second number of every embedding, in place of a distance, and the next example as the nearest."""
    for table in store.windows(["embedding"]):
        index = table["index"].to_numpy()
        yield Neighbours(
            index, embedding_matrix(table["embedding"])[:, 1].astype(float), np.where(index < 9, index + 1, -1)
        )


BATCHES = [np.array([0, 1, 2, 3]), np.array([4, 5, 6, 7]), np.array([8, 9])]


def run_json(folder):
    return json.loads((folder / "run.json").read_text())


def test_a_run_writes_every_example_once_in_order(tmp_path):
    table = pq.read_table(fill(tmp_path / "out", [BATCHES[2], BATCHES[0], BATCHES[1]]))
    assert table.column_names == [*COLUMNS, "label", "source_score"]
    assert table["index"].to_pylist() == list(range(SIZE))
    assert table["id"].to_pylist() == [f"image_{k}" for k in range(SIZE)]
    assert table["score"].to_pylist() == [None if k == 6 else float(k) for k in range(SIZE)]
    assert table["knn_distance"].to_pylist() == [None if k == 6 else float(k**2) for k in range(SIZE)]
    assert table["nearest_index"].to_pylist() == [None if k in (6, 9) else k + 1 for k in range(SIZE)]
    assert table["reason"].to_pylist() == ["truncated" if k == 6 else None for k in range(SIZE)]
    assert table["label"].to_pylist() == [k % 3 for k in range(SIZE)]
    assert table["source_score"].to_pylist() == [k / 2 for k in range(SIZE)]
    assert table["content"].to_pylist() == [None if k == 6 else bytes([k]) * 16 for k in range(SIZE)]
    assert run_json(tmp_path / "out")["renamed"] == {"score": "source_score"}


def test_the_record_counts_every_example(tmp_path):
    with ScoreStore.open(tmp_path, IDENTITY, 4) as store:
        broken = part([0, 1, 2]).set_column(2, "score", pa.array([np.nan, np.inf, 2.0]))
        store.append(broken.set_column(7, "reason", pa.array(["zero embedding", None, None])))
        store.skip([Skipped(3, "three", "missing")])
        table = pq.read_table(store.finish(facts={"damping": 0.5}))
    assert table["reason"].to_pylist() == ["zero embedding", "the score is not finite", None, "missing"]
    record = run_json(tmp_path)
    assert record["counts"] == {"size": 4, "scored": 1, "nan": 2, "skipped": 1, "resumed": 0, "recomputed": 0}
    assert record["identity"] == {"size": 4, **IDENTITY}
    assert record["damping"] == 0.5
    assert record["wall_seconds"] > 0


def test_a_table_of_many_windows_is_the_table_of_one(tmp_path, monkeypatch):
    whole = pq.read_table(fill(tmp_path / "one", BATCHES))
    monkeypatch.setattr(manifest, "WINDOW", 3)
    monkeypatch.setattr(result, "WINDOW", 3)
    cut = fill(tmp_path / "many", [BATCHES[1], BATCHES[0], BATCHES[2]])
    assert pq.ParquetFile(cut).num_row_groups == 4
    assert pq.read_table(cut).equals(whole)
    with ScoreStore.open(tmp_path / "many", IDENTITY, SIZE) as store:
        assert [len(table) for table in store.windows(["score"])] == [3, 3, 2, 1]


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_resumed_is_fresh_bit_for_bit_wherever_it_stopped(tmp_path_factory, seed):
    folder = tmp_path_factory.mktemp("store")
    generator = np.random.default_rng(seed)
    fresh = fill(folder / "fresh", BATCHES).read_bytes()
    order = [BATCHES[k] for k in generator.permutation(3)]
    fill(folder / "resumed", order[: generator.integers(4)], finish=False)
    resumed = fill(folder / "resumed", BATCHES)
    assert resumed.read_bytes() == fresh
    assert fill(folder / "resumed", BATCHES).read_bytes() == fresh
    assert run_json(folder / "resumed")["counts"]["resumed"] == SIZE


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "emptied": lambda path: path.write_bytes(b""),
    "one bit": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "missing": lambda path: path.unlink(),
}


def flipped(path, rng):
    """The file with one random bit changed."""
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    path.write_bytes(bytes(content))


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_a_bit_flipped_anywhere_in_parts_or_manifest_costs_time_and_nothing_else(tmp_path_factory, seed):
    folder, rng = tmp_path_factory.mktemp("store"), np.random.default_rng(seed)
    fresh = fill(folder, BATCHES).read_bytes()
    files_of_parts = sorted((folder / "parts" / "0000").glob("*.*"))
    flipped(files_of_parts[rng.integers(len(files_of_parts))], rng)
    assert fill(folder, BATCHES).read_bytes() == fresh


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_a_bit_flipped_anywhere_in_table_or_record_is_noticed_and_made_again(tmp_path_factory, seed):
    folder, rng = tmp_path_factory.mktemp("store"), np.random.default_rng(seed)
    fresh, record = fill(folder, BATCHES).read_bytes(), ScoredRun.load(folder).record
    name = ("scores.parquet", "run.json")[rng.integers(2)]
    flipped(folder / name, rng)
    try:
        read = ScoredRun.load(folder)
    except StoreError as error:
        assert "Repeat the `influence-ssl score` command" in str(error)  # noqa: PT017
    else:  # white space between two values
        assert name == "run.json"
        assert read.record == record
    assert fill(folder, []).read_bytes() == fresh
    assert ScoredRun.load(folder).record["counts"] == {**record["counts"], "resumed": SIZE}


@pytest.mark.parametrize("name", ["scores.parquet", "run.json"])
def test_a_deleted_table_or_record_is_made_again_from_the_parts(tmp_path, name):
    fresh = fill(tmp_path, BATCHES).read_bytes()
    (tmp_path / name).unlink()
    with ScoreStore.open(tmp_path, IDENTITY, SIZE):
        assert not (tmp_path / "run.json").exists()  # so that nobody says that there is nothing to do
    assert fill(tmp_path, []).read_bytes() == fresh


def test_parts_of_another_run_are_refused_and_stay(tmp_path):
    fill(tmp_path / "two", BATCHES, finish=False)
    with ScoreStore.open(tmp_path / "four", {**IDENTITY, "draws": 2}, SIZE) as store:
        store.append(part([0, 1]))
    shutil.copytree(tmp_path / "two" / "parts" / "0000", tmp_path / "four" / "parts" / "0001")
    with pytest.raises(StoreError, match=r"0001 holds 4 parts of another run \(10 rows"):
        ScoreStore.open(tmp_path / "four", {**IDENTITY, "draws": 2}, SIZE)
    assert len(list((tmp_path / "four" / "parts" / "0001").glob("*.parquet"))) == 4


def test_rows_that_two_processes_made_stop_the_table_and_are_dropped_by_the_next_run(tmp_path, monkeypatch):
    fresh = fill(tmp_path / "fresh", BATCHES).read_bytes()
    first = ScoreStore.open(tmp_path / "out", IDENTITY, SIZE)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    mine = files.lock
    monkeypatch.setattr(score_store, "first_only", lambda _: None)  # it joins the first one's run
    second = ScoreStore.open(tmp_path / "out", IDENTITY, SIZE)
    monkeypatch.undo()
    assert files.lock is mine
    with first, second:
        for batch in BATCHES:
            first.append(part(batch[batch != 6]))
        first.skip([Skipped(6, "image_6", "truncated")])
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        second.append(part([2, 3]))
        monkeypatch.undo()
        first.refresh(12)
        with pytest.raises(StoreError, match="2 of 10 examples are in two parts, 2 first"):
            first.finish(ATTRIBUTES, zeros, {})
    assert not (tmp_path / "out" / "scores.parquet").exists()
    assert fill(tmp_path / "out", []).read_bytes() == fresh


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 4)), max_size=6))
def test_gaps_and_repeats_are_those_of_counting(starts):
    runs = [[first, min(first + length, 10)] for first, length in starts]
    times = np.zeros(10, int)
    for first, end in runs:
        times[first:end] += 1
    missing, repeated = manifest.gaps_and_repeats(runs, 10)
    for ranges, right in ((missing, times == 0), (repeated, times > 1)):
        assert [k for first, end in ranges for k in range(first, end)] == np.flatnonzero(right).tolist()


def test_rows_that_a_shared_disk_does_not_show_stop_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(score_store, "LATE", 0.0)
    with ScoreStore.open(tmp_path, IDENTITY, SIZE) as store:
        store.append(part([0, 1]))
        with pytest.raises(StoreError, match="shows 2 finished rows and the processes wrote 5"):
            store.refresh(5)


def test_processes_that_were_given_different_work_are_refused_with_the_difference(tmp_path, monkeypatch):
    other = json.dumps({"size": SIZE - 1, **IDENTITY})
    monkeypatch.setattr(identity, "gather", lambda text: [text, other])
    with pytest.raises(StoreError, match=r"(?s)not started for the same work.*process 0 → process 1.*size: 10 → 9"):
        ScoreStore.open(tmp_path, IDENTITY, SIZE)
    assert list(tmp_path.iterdir()) == []


def test_wall_time_is_that_of_processes_side_by_side(tmp_path):
    with ScoreStore.open(tmp_path, IDENTITY, SIZE) as store:
        store.append(part(np.arange(SIZE)))
        for writer in (0, 1):
            row = dataclasses.replace(store._parts.manifests[0].parts[0], seconds=100.0)
            store._parts.manifests[writer] = Manifest(tmp_path, [row], "")
        assert store._parts.seconds() == 100


def test_examples_that_are_forgotten_are_made_again(tmp_path):
    fresh = fill(tmp_path, BATCHES).read_bytes()
    with ScoreStore.open(tmp_path, IDENTITY, SIZE) as store:
        store.forget(np.array([1, 6, 8, 9]))
        assert np.flatnonzero(store.todo()).tolist() == [1, 6, 8, 9]
        assert not (tmp_path / "scores.parquet").exists()
    with ScoreStore.open(tmp_path, IDENTITY, SIZE) as store:
        assert (np.flatnonzero(store.todo()).tolist(), store.lost) == ([1, 6, 8, 9], 0)
    assert fill(tmp_path, BATCHES).read_bytes() == fresh


@pytest.mark.parametrize("crash_at", range(6))
def test_a_crash_while_examples_are_forgotten_costs_no_other_one(tmp_path, monkeypatch, crash_at):
    fresh = fill(tmp_path, BATCHES).read_bytes()
    with ScoreStore.open(tmp_path, IDENTITY, SIZE) as store:
        crash(monkeypatch, crash_at)
        with contextlib.suppress(KeyboardInterrupt):
            store.forget(np.array([1]))
        monkeypatch.undo()
    with ScoreStore.open(tmp_path, IDENTITY, SIZE) as store:
        assert set(np.flatnonzero(store.todo()).tolist()) <= {1}
    assert fill(tmp_path, BATCHES).read_bytes() == fresh


def test_a_whole_table_of_another_run_or_of_earlier_parts_is_made_again(tmp_path):
    products, kept = ("scores.parquet", "run.json"), tmp_path / "kept"
    fresh = fill(tmp_path / "out", BATCHES).read_bytes()
    other = {**IDENTITY, "data": "other"}
    with ScoreStore.open(tmp_path / "other", other, SIZE) as store:
        store.append(part(np.arange(SIZE), scale=2.0))
        store.finish()
    for name in products:
        shutil.copy(tmp_path / "other" / name, tmp_path / "out" / name)
    assert fill(tmp_path / "out", []).read_bytes() == fresh
    shutil.copytree(tmp_path / "out", kept)
    with ScoreStore.open(tmp_path / "out", IDENTITY, SIZE) as store:
        store.forget(np.array([1]))
        store.append(part([1], scale=3.0))  # its image has changed, and was scored again
        new = store.finish(ATTRIBUTES).read_bytes()
    for name in products:
        shutil.copy(kept / name, tmp_path / "out" / name)
    with ScoreStore.open(tmp_path / "out", IDENTITY, SIZE) as store:
        assert not (tmp_path / "out" / "run.json").exists()
        assert store.finish(ATTRIBUTES).read_bytes() == new


def test_distances_of_another_run_are_none(tmp_path):
    for name, value in (("ours", 0.5), ("other", 0.25)):
        with ScoreStore.open(tmp_path / name, {"name": name}, 1) as store:
            store.append(part([0]))
            store.distances(lambda value=value: [Neighbours(np.array([0]), np.array([value]), np.array([0]))])
            store.drop_embeddings()
    for name in ("distances.parquet", "distances.json"):
        shutil.copy(tmp_path / "other" / name, tmp_path / "ours" / name)
    with ScoreStore.open(tmp_path / "ours", {"name": "ours"}, 1) as store:
        assert np.isnan(store.distances(refuse).of(np.array([0])).distance).all()


def test_scores_of_two_fits_are_not_mixed(tmp_path):
    with ScoreStore.open(tmp_path, IDENTITY, SIZE) as store:
        store.bind("one fit")
        store.append(part([0, 1]))
    with ScoreStore.open(tmp_path, IDENTITY, SIZE) as store:
        store.bind("one fit")
        with pytest.raises(StoreError, match="another fitted curvature"):
            store.bind("another")


def test_parts_of_other_processes_count_and_an_example_in_two_parts_counts_once(tmp_path, monkeypatch):
    fresh = fill(tmp_path / "fresh", BATCHES).read_bytes()
    for process, batch in ((1, BATCHES[0]), (2, BATCHES[1])):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        fill(tmp_path / "out", [batch], finish=False)
    monkeypatch.undo()
    assert fill(tmp_path / "out", BATCHES).read_bytes() == fresh
    shutil.copytree(tmp_path / "out" / "parts" / "0001", tmp_path / "out" / "parts" / "0007")
    assert fill(tmp_path / "out", BATCHES).read_bytes() == fresh
    assert run_json(tmp_path / "out")["counts"]["recomputed"] == 4


def test_a_file_that_may_not_grow_stops_the_run_and_loses_nothing(tmp_path):
    fresh = fill(tmp_path / "fresh", BATCHES).read_bytes()
    with ScoreStore.open(tmp_path / "out", IDENTITY, SIZE) as store:
        store.append(part(BATCHES[0]))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))  # the kernel refuses to write further
        try:
            with pytest.raises(FullDiskError, match="File too large"):
                store.append(part(BATCHES[1]))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in (tmp_path / "out" / "parts" / "0000").glob("*.tmp")] == []
    assert fill(tmp_path / "out", BATCHES).read_bytes() == fresh


def zeros(index):
    return {"knn_distance": np.zeros(len(index))}


def go_on(store):
    """The batches after the first, and the table."""
    for batch in BATCHES[1:]:
        store.append(part(batch[batch != 6]))
        store.skip([Skipped(6, "image_6", "truncated")] if 6 in batch else [])
    store.finish(ATTRIBUTES, zeros, {})


@pytest.mark.parametrize("file", ["parts/0000/000001.parquet.tmp", "parts/0000/manifest.jsonl", "scores.parquet.tmp"])
def test_a_full_disk_is_named_and_loses_nothing(tmp_path, file):
    """What is written through a link to /dev/full meets the kernel's own ENOSPC, without privileges."""
    fresh, out = fill(tmp_path / "fresh", BATCHES).read_bytes(), tmp_path / "out"
    fill(out, BATCHES[:1], finish=False)
    here = out / file
    held = here.read_bytes() if here.exists() else None
    store = ScoreStore.open(out, IDENTITY, SIZE)  # before the disk is full: opening tidies up
    here.unlink(missing_ok=True)
    here.symlink_to("/dev/full")
    with store, pytest.raises(FullDiskError) as error:
        go_on(store)
    named = str(here).removesuffix(".tmp")
    assert f"The disk of {named} cannot take more data: No space left on device" in str(error.value)
    assert "give the same command again" in str(error.value)
    here.unlink(missing_ok=True)
    if held is not None:
        here.write_bytes(held)
    assert list(out.rglob("*.tmp")) == []
    assert fill(out, BATCHES).read_bytes() == fresh


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_is_named_and_loses_nothing(tmp_path, monkeypatch, number, call):
    fresh, out = fill(tmp_path / "fresh", BATCHES).read_bytes(), tmp_path / "out"
    fill(out, BATCHES[:1], finish=False)

    def fail(*_):
        raise OSError(number, os.strerror(number))

    with ScoreStore.open(out, IDENTITY, SIZE) as store:
        monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (pathlib.Path, "replace")), fail)
        with pytest.raises(
            FailingDiskError, match=f"cannot be read or written: {os.strerror(number)}. Repair the disk"
        ):
            go_on(store)
        monkeypatch.undo()
    assert fill(out, BATCHES).read_bytes() == fresh


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_part_is_made_again_and_counted(tmp_path, damage):
    fresh = fill(tmp_path, BATCHES).read_bytes()
    DAMAGE[damage](tmp_path / "parts" / "0000" / "000001.parquet")
    with ScoreStore.open(tmp_path, IDENTITY, SIZE) as store:
        assert store.done().tolist() == [0, 1, 2, 3, 6, 8, 9]
        assert not (tmp_path / "scores.parquet").exists()
    with pytest.raises(StoreError, match="3 of 10 examples have no score yet"):
        fill(tmp_path, [])
    DAMAGE[damage](tmp_path / "parts" / "0000" / "000000.parquet")
    assert fill(tmp_path, BATCHES).read_bytes() == fresh
    assert run_json(tmp_path)["counts"]["recomputed"] == 4
    assert run_json(tmp_path)["counts"]["resumed"] == 3


def test_a_part_that_changes_under_the_run_is_noticed(tmp_path):
    with ScoreStore.open(tmp_path, IDENTITY, SIZE) as store:
        store.append(part(np.arange(SIZE)))
        DAMAGE["truncated"](tmp_path / "parts" / "0000" / "000000.parquet")
        with pytest.raises(StoreError, match="10 examples will be computed again"):
            store.finish()
    fill(tmp_path, BATCHES)


def test_files_that_no_line_promises_do_not_count(tmp_path):
    fill(tmp_path, BATCHES[:2], finish=False)
    manifest = tmp_path / "parts" / "0000" / "manifest.jsonl"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines[:-1]) + lines[-1][:20])
    (tmp_path / "parts" / "0000" / "000009.parquet.tmp").write_bytes(b"half a part")
    with ScoreStore.open(tmp_path, IDENTITY, SIZE) as store:
        assert store.done().tolist() == [0, 1, 2, 3, 4, 5, 7]
    assert len(pq.read_table(fill(tmp_path, BATCHES))) == SIZE


def crash(monkeypatch, at):
    """Stop at that wait for the disk."""
    synced, calls = os.fsync, iter(range(10**6))

    def fsync(descriptor):
        if next(calls) == at:
            raise KeyboardInterrupt
        synced(descriptor)

    monkeypatch.setattr(files.os, "fsync", fsync)


@pytest.mark.parametrize("crash_at", range(15))
def test_a_crash_at_any_write_loses_nothing_that_was_finished(tmp_path, monkeypatch, crash_at):
    fresh = fill(tmp_path / "fresh", BATCHES).read_bytes()
    crash(monkeypatch, crash_at)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "out", BATCHES)
    monkeypatch.undo()
    assert fill(tmp_path / "out", BATCHES).read_bytes() == fresh


def test_a_killed_process_leaves_the_folder_free_and_its_parts_whole(tmp_path):
    script = textwrap.dedent(f"""
        import time
        from tests.store.test_score_store import *
        store = ScoreStore.open({str(tmp_path / "out")!r}, IDENTITY, SIZE)
        store.append(part(BATCHES[0]))
        print("ready", flush=True)
        time.sleep(60)
    """)
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(StoreError, match=f"another run .process {process.pid}"):
            ScoreStore.open(tmp_path / "out", IDENTITY, SIZE)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    with ScoreStore.open(tmp_path / "out", IDENTITY, SIZE) as store:
        assert store.done().tolist() == [0, 1, 2, 3]


def test_two_runs_do_not_share_a_folder(tmp_path):
    with ScoreStore.open(tmp_path, IDENTITY, SIZE), pytest.raises(StoreError, match="being written by another run"):
        ScoreStore.open(tmp_path, IDENTITY, SIZE)
    ScoreStore.open(tmp_path, IDENTITY, SIZE).close()


def test_another_configuration_is_refused_with_the_difference(tmp_path):
    fill(tmp_path, BATCHES)
    other = {"configuration": {"class": "Score", "draws": 8, "backend": {"class": "CG", "steps": 5}}, "data": "abc"}
    with pytest.raises(StoreError) as error:
        ScoreStore.open(tmp_path, other, SIZE + 1)
    message = str(error.value)
    assert "size: 10 → 11" in message
    assert "configuration.draws: 4 → 8" in message
    assert "configuration.backend: LoGra → CG" in message
    assert "configuration.backend.rank: 8 → (absent)" in message
    assert "data" not in message.split("there → now")[1]
    assert (tmp_path / "scores.parquet").exists()


def test_a_folder_of_something_else_is_refused_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match=r"is not empty and holds no scores [(]thesis"):
        ScoreStore.open(tmp_path, IDENTITY, SIZE)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(StoreError, match="is a file"):
        ScoreStore.open(tmp_path / "thesis.tex", IDENTITY, SIZE)


@pytest.mark.parametrize("content", [None, "", "{", "null", "[]", '{"size": 10}', "another run"])
def test_an_identity_that_is_lost_is_written_again_for_the_run_of_the_parts_alone(tmp_path, content):
    fill(tmp_path, BATCHES)
    path = tmp_path / "identity.json"
    whole = path.read_bytes()
    if content is None:
        path.unlink()
    elif content == "another run":
        write_sealed(path, {**read_sealed(path), "seed": -1})
    else:
        path.write_text(content)
    with pytest.raises(StoreError, match=r"are not those of this command|holds the results of another run"):
        ScoreStore.open(tmp_path, {**IDENTITY, "other": 1}, SIZE)
    with ScoreStore.open(tmp_path, IDENTITY, SIZE) as store:
        assert store.finished == sum(map(len, BATCHES))
    assert path.read_bytes() == whole


def test_a_damaged_identity_without_results_is_written_again(tmp_path):
    ScoreStore.open(tmp_path, IDENTITY, SIZE).close()
    (tmp_path / "identity.json").write_text("")
    ScoreStore.open(tmp_path, {**IDENTITY, "other": 1}, SIZE).close()
    assert read_sealed(tmp_path / "identity.json")["other"] == 1


def test_rows_that_would_repeat_or_lie_outside_are_refused(tmp_path):
    with ScoreStore.open(tmp_path, IDENTITY, SIZE) as store:
        store.append(part([1, 2]))
        for wrong, message in [([2, 3], "once; got again .2"), ([4, 4], "got again .4, 4"), ([10], "0…9, got .10")]:
            with pytest.raises(ValueError, match=message):
                store.append(part(wrong))
        with pytest.raises(ValueError, match=r"got again .1"):
            store.skip([Skipped(1, "one", "late")])
        with pytest.raises(ValueError, match=r"got none of score"):
            store.append(part([3]).drop_columns(["score"]))
        with pytest.raises(ValueError, match="all parts have one schema"):
            store.append(part([3]).drop_columns(["embedding"]))
        with pytest.raises(ValueError, match="got null"):
            store.append(part([3]).set_column(2, "score", pa.nulls(1, pa.float64())))
        assert store.done().tolist() == [1, 2]


def test_nothing_to_score_is_said(tmp_path):
    with ScoreStore.open(tmp_path, IDENTITY, 1) as store:
        store.skip([Skipped(0, "zero", "not an image")])
        with pytest.raises(StoreError, match="None of the 1 examples could be read"):
            store.finish()


def test_embeddings_are_in_files_of_their_own_that_other_readers_do_not_open(tmp_path):
    with ScoreStore.open(tmp_path, {}, 4) as store:
        store.append(part([0, 1]))
        store.append(part([2, 3]))
        (tmp_path / "parts" / "0000" / "000001.arrow").write_bytes(b"another")
        assert [table["score"].to_pylist() for table in store.windows(["score"])] == [
            part([0, 1, 2, 3])["score"].to_pylist()
        ]
        with pytest.raises(StoreError, match=r"000001.arrow has changed since it was written"):
            list(store.windows(["embedding"]))
    with ScoreStore.open(tmp_path, {}, 4) as store:
        assert (np.flatnonzero(store.todo()).tolist(), store.lost) == ([2, 3], 2)
    assert sorted(file.name for file in (tmp_path / "parts" / "0000").glob("0*")) == ["000000.arrow", "000000.parquet"]


def refuse():
    """Embeddings that were dropped cannot be measured."""
    raise AssertionError


def test_dropped_embeddings_leave_their_distances_and_the_same_table(tmp_path):
    nearest = Neighbours(np.arange(4), np.array([0.5, 0.25, 0.125, 1.0]), np.array([1, 0, 0, 2]))
    with ScoreStore.open(tmp_path, {}, 4) as store:
        store.append(part([0, 1, 2]))
        store.append(part([3]))
        assert store.embedded()
        distances = store.distances(lambda: [nearest])
        store.finish(None, lambda index: neighbour_columns(distances.of(index)))
        store.drop_embeddings()
        assert not store.embedded()
        assert "embedding" not in store.columns()
    assert not list(tmp_path.rglob("*.arrow"))
    before = (tmp_path / "scores.parquet").read_bytes()
    (tmp_path / "scores.parquet").unlink()
    with ScoreStore.open(tmp_path, {}, 4) as store:
        assert not store.todo().any()
        kept = store.distances(refuse)
        np.testing.assert_array_equal(kept.of(np.arange(4)).distance, nearest.distance)
        some = kept.of(np.array([1, 3, 9]))
        np.testing.assert_array_equal(some.distance, [0.25, 1.0, np.nan])
        assert some.nearest.tolist() == [0, 2, -1]
        store.finish(None, lambda index: neighbour_columns(kept.of(index)))
        assert (tmp_path / "scores.parquet").read_bytes() == before
        store.forget(np.array([1]))
        store.append(part([1]))  # with an embedding, after others whose were dropped
        assert not store.embedded()
        np.testing.assert_array_equal(store.distances(refuse).of(np.arange(4)).distance, [0.5, np.nan, 0.125, 1.0])
    DAMAGE["one bit"](tmp_path / "distances.parquet")
    with ScoreStore.open(tmp_path, {}, 4) as store:
        assert np.isnan(store.distances(refuse).of(np.arange(4)).distance).all()
