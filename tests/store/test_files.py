"""Files that know when they are damaged, and folders that one process writes, with and without locks of the kernel."""

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from influence_ssl_jax.errors import StoreError
from influence_ssl_jax.store import DamagedError, ScoreStore, files, read_sealed, write_sealed
from influence_ssl_jax.store.files import LOCK, holder_of, lock

TIMEOUT = 60
CONTENT = {
    "text": "größer\udce9",
    "number": 0.1,
    "missing": None,
    "nested": {"list": [1, 2.5, "three"], "nan": float("inf")},
}


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    monkeypatch.setattr(files, "BEAT", 0.02)
    monkeypatch.setattr(files, "PATIENCE", 0.3)
    monkeypatch.setattr(files, "SETTLE", 0.05)


@pytest.fixture(params=["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def no_kernel_locks(request, monkeypatch):
    """A file system that says so."""

    def refuse(*_):
        raise OSError(getattr(errno, request.param), os.strerror(getattr(errno, request.param)))

    monkeypatch.setattr(files.fcntl, "flock", refuse)


def said_by(folder, host, pid, beat=1):
    (folder / LOCK).write_text(json.dumps({"host": host, "pid": pid, "beat": beat, "token": "x"}))


def dead():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(timeout=TIMEOUT)
    return process.pid


def test_a_held_folder_is_refused_by_name_of_host_and_process_and_free_when_it_is_closed(tmp_path):
    with lock(tmp_path) as held:
        said = rf"being written by another run \(process {os.getpid()} on {socket.gethostname()}\)"
        with pytest.raises(StoreError, match=said):
            lock(tmp_path)
    held.close()  # twice does no harm
    assert holder_of(tmp_path / LOCK) == {}
    lock(tmp_path).close()


def test_without_locks_of_the_kernel_a_living_holder_is_refused(tmp_path, no_kernel_locks):
    with lock(tmp_path), pytest.raises(StoreError, match="being written by another run"):
        lock(tmp_path)
    lock(tmp_path).close()


def test_without_locks_of_the_kernel_a_dead_holder_is_none(tmp_path, no_kernel_locks):
    said_by(tmp_path, socket.gethostname(), dead())
    lock(tmp_path).close()


@pytest.mark.parametrize("said", [b"null", b"[" * 10**5, b'{"host": 1, "pid": "x", "beat": null}', b"\xff"])
def test_a_lock_file_that_says_nothing_is_held_by_nobody(tmp_path, no_kernel_locks, said):
    (tmp_path / LOCK).write_bytes(said)
    lock(tmp_path).close()


def test_a_process_that_stood_still_and_lost_its_folder_writes_no_more(tmp_path, no_kernel_locks, monkeypatch):
    monkeypatch.setattr(files, "BEAT", 0.2)
    store = ScoreStore.open(tmp_path, {}, 4)
    table = pa.table({"index": [0], "id": ["a"], "score": [1.0]})
    for folder in (tmp_path, tmp_path / "parts" / "0000"):
        said_by(folder, "another", 1)  # a run on another host, while this process gives no sign of life
    time.sleep(0.5)
    assert holder_of(tmp_path / LOCK)["host"] == "another"  # it is not taken back
    with pytest.raises(StoreError, match=r"Another run has taken .* while this process stood still"):
        store.append(table)
    store.close()
    assert holder_of(tmp_path / LOCK)["host"] == "another"


def test_without_locks_of_the_kernel_one_of_two_that_come_at_once_has_the_folder(tmp_path, no_kernel_locks):
    got, gate = [], threading.Barrier(2)

    def come():
        gate.wait(timeout=TIMEOUT)
        try:
            got.append(lock(tmp_path))
        except StoreError:
            got.append(None)

    threads = [threading.Thread(target=come) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=TIMEOUT)
    holders = [held for held in got if held is not None]
    assert len(holders) <= 1
    for held in holders:
        held.close()


def test_a_holder_on_another_host_that_still_beats_is_refused_and_one_that_does_not_is_none(tmp_path, monkeypatch):
    """As on a file system whose locks each host keeps for itself: the kernel gives the lock."""
    said_by(tmp_path, "another host", 1)
    lock(tmp_path).close()
    stop = threading.Event()

    def beat():
        for number in range(10**6):
            if stop.wait(0.02):
                return
            said_by(tmp_path, "another host", 1, number)

    living = threading.Thread(target=beat)
    living.start()
    try:
        time.sleep(0.05)
        monkeypatch.setattr(files, "PATIENCE", 30.0)  # it is seen to be alive as soon as a number changes
        with pytest.raises(StoreError, match=r"process 1 on another host"):
            lock(tmp_path)
    finally:
        stop.set()
        living.join(timeout=TIMEOUT)


def test_a_new_run_leaves_a_living_writer_its_lock_and_its_parts(tmp_path):
    """A process of an earlier run that is still at work, after the first one was killed."""
    with ScoreStore.open(tmp_path, {}, 4):
        pass
    other = tmp_path / "parts" / "0001"
    other.mkdir()
    with lock(other):
        (other / "000000.parquet.tmp").write_bytes(b"half a part")
        with pytest.raises(StoreError, match=r"0001 is being written by another run"):
            ScoreStore.open(tmp_path, {}, 4)
        assert {file.name for file in other.iterdir()} == {LOCK, "000000.parquet.tmp"}
    with ScoreStore.open(tmp_path, {}, 4):
        assert {file.name for file in other.iterdir()} == {LOCK, "manifest.jsonl"}


def test_a_folder_that_cannot_be_synced_is_no_reason_to_stop(tmp_path, monkeypatch):
    synced = os.fsync

    def fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "no such thing here")
        synced(descriptor)

    monkeypatch.setattr(files.os, "fsync", fsync)
    files.write_atomically(tmp_path / "a", b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"

    def broken(_):
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(files.os, "fsync", broken)
    with pytest.raises(OSError, match="broken"):
        files.sync_folder(tmp_path)


def test_what_is_written_is_read_again(tmp_path):
    write_sealed(tmp_path / "a.json", CONTENT)
    assert read_sealed(tmp_path / "a.json") == CONTENT
    with pytest.raises(FileNotFoundError):
        read_sealed(tmp_path / "b.json")


@given(seed=st.integers(0, 2**32 - 1))
def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path_factory, seed):
    path, draw = tmp_path_factory.mktemp("sealed") / "a.json", np.random.default_rng(seed)
    write_sealed(path, CONTENT)
    content = bytearray(path.read_bytes())
    content[draw.integers(len(content))] ^= 1 << draw.integers(8)
    path.write_bytes(content)
    try:
        assert read_sealed(path) == CONTENT
    except DamagedError as error:
        assert str(path) in str(error)  # noqa: PT017


def test_a_folder_or_a_device_is_never_replaced_by_a_file(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, kind in ((tmp_path, "a folder"), (pipe, "a device or a pipe")):
        with pytest.raises(StoreError, match=f"is {kind} and is not replaced by a file"):
            files.write_atomically(path, b"content")
    assert pipe.is_fifo()
    assert [file.name for file in tmp_path.parent.iterdir() if file.name.endswith(".tmp")] == []


@pytest.mark.parametrize("text", ["", "null", "[]", '"text"', "{}", '{"sum": null}', "[" * 100_000, '{"a": ' * 100_000])
def test_what_is_no_sealed_object_is_damaged(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DamagedError, match=r"a.json is damaged: it"):
        read_sealed(tmp_path / "a.json")
