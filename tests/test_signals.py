"""Ctrl-C and SIGTERM in processes of their own: a word, the right exit status, in time, nothing lost."""

import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from influence_ssl_jax import signals

ROOT = Path(__file__).parents[1]
TIMEOUT = 60

COMMAND = """
import ctypes, pathlib, signal, sys, time
from influence_ssl_jax import signals
from influence_ssl_jax.cli import main as cli
from influence_ssl_jax.run_log import RunLog

signal.alarm({limit})  # a test that fails leaves no process behind
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # not ignored, as it is for what nohup starts
signals.GRACE = {grace}
held, take = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
take(held)

class Busy:
    def run(self, out):
        with RunLog(pathlib.Path(sys.argv[1])) as log:
            log.beat("busy")
            print("ready", flush=True)
            {body}

def execute(arguments, out):
    Busy().run(out)

cli._execute = execute
sys.argv = ["influence-ssl", sys.argv[1]]
cli.main()
"""
IN_PYTHON = "while True: time.sleep(0.01)"
IN_C = "take(held)  # as a compiler: no step of Python any more, and no system call that a signal would end"


def started(folder, body, grace):
    script = COMMAND.format(body=body, grace=grace, limit=2 * TIMEOUT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("number", "status", "word", "reason"),
    [
        (signal.SIGINT, 130, "Interrupted. Finished work is kept", "interrupted (Ctrl-C)"),
        (signal.SIGTERM, 143, "Terminated. Finished work is kept", "terminated (SIGTERM)"),
        (signal.SIGHUP, 129, "Terminated. Finished work is kept", "the terminal was closed (SIGHUP)"),
    ],
)
def test_a_signal_ends_a_run_with_its_status_and_a_line_in_the_log(tmp_path, number, status, word, reason):
    process = started(tmp_path, IN_PYTHON, 10.0)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=TIMEOUT)
    assert process.returncode == status, said
    assert word in said
    assert "Traceback" not in said
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["reason"]) == ("stopped", reason)
    assert json.loads((tmp_path / "heartbeat.json").read_text())["doing"] == f"stopped: {reason}"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_process_that_python_cannot_interrupt_ends_in_time_all_the_same(tmp_path, number, status):
    process = started(tmp_path, IN_C, 1.0)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    began = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=TIMEOUT)
    assert process.returncode == status, said
    assert 1.0 <= time.monotonic() - began < 10
    assert "stopping, within 1 seconds" in said
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["event"] == "stopped"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_that_python_drops_is_raised_again(monkeypatch, capsys, number):
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_DFL)
    once = [number]

    def collected(*_):
        if once:
            signal.raise_signal(once.pop())  # what a callback of the garbage collection raises is dropped

    def wait():
        with signals.orderly():
            gc.collect()
            for _ in range(3000):
                time.sleep(0.01)

    gc.callbacks.append(collected)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt) as raised:
            wait()
    finally:
        gc.callbacks.remove(collected)
    assert time.monotonic() - began < 20
    assert getattr(raised.value, "number", signal.SIGINT) == number
    assert "Traceback" not in capsys.readouterr().err


def test_a_lost_terminal_is_ignored_where_the_user_said_so(monkeypatch):
    monkeypatch.setattr(signals.signal, "getsignal", lambda _: signal.SIG_IGN)  # as nohup leaves it
    handlers = {}
    monkeypatch.setattr(signals.signal, "signal", lambda number, handler: handlers.setdefault(number, handler))
    with signals.orderly():
        assert set(handlers) == {signal.SIGINT, signal.SIGTERM}


def test_a_second_signal_does_not_wait(tmp_path):
    process = started(tmp_path, IN_C, 50.0)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert "stopping, within 50 seconds" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=TIMEOUT / 2)
    assert process.returncode == 130
