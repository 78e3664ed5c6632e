"""Two real processes that talk over CPU collectives give what one gives; how processes find each other."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.parallel import Distributed
from influence_ssl_jax.parallel.processes import resolved
from influence_ssl_jax.run_log import json_lines

ROOT = pathlib.Path(__file__).parents[2]


def begin(folder, encoder, processes, process, port):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    arguments = [str(folder), str(encoder), f"localhost:{port}", str(processes), str(process)]
    command = [sys.executable, "-m", "tests.parallel.two_processes", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def ended(*processes):
    """Wait until all have ended well; kill those that are left over."""
    try:
        for process in processes:
            said = process.communicate(timeout=600)[1]
            assert process.returncode == 0, said
    finally:
        for process in processes:
            process.kill()


@pytest.fixture
def port():
    """A port that nobody else is given while it is held: the coordinator shares it, as gRPC's servers do."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("localhost", 0))
        yield held.getsockname()[1]


@pytest.mark.slow
def test_two_processes_pretrain_and_score_as_one(tmp_path, port):
    ended(*[begin(tmp_path / "two", tmp_path / "two" / "encoder", 2, number, port) for number in range(2)])
    ended(begin(tmp_path / "one", tmp_path / "two" / "encoder", 1, 0, 0))

    one, two = (pq.read_table(tmp_path / name / "scores" / "scores.parquet") for name in ("one", "two"))
    assert two["index"].to_pylist() == list(range(230))
    for name in ("score", "score_se", "alignment_loss", "gradient_norm", "pixel_variance", "knn_distance"):
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-7)
    top = [np.argsort(-table["score"].to_numpy())[:2] for table in (one, two)]
    assert (top[0] == top[1]).all()

    rows = []
    for number in ("0000", "0001"):
        parts = (tmp_path / "two" / "scores" / "parts" / number).glob("*.parquet")
        rows.append(sum(pq.read_metadata(part).num_rows for part in parts))
    assert rows == [120, 110]  # each wrote its own batches of ten: 12 and 11
    logs = [json_lines(tmp_path / "two" / "encoder" / name) for name in ("log.jsonl", "log-1.jsonl")]
    assert [[line["event"] for line in log] for log in logs] == [
        ["start", "epoch", "epoch", "finished"],
        ["start", "epoch", "epoch"],  # the first process speaks for all
    ]
    assert {line["process"] for line in logs[1]} == {1}
    histories = [
        json.loads((tmp_path / each / "encoder" / "encoder.json").read_text())["history"] for each in ("one", "two")
    ]
    np.testing.assert_allclose(histories[1][1]["loss"], histories[0][1]["loss"], rtol=1e-4)


def test_flags_come_before_variables_and_variables_before_a_scheduler():
    variables = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    assert resolved(Distributed(), {}) is None
    assert resolved(Distributed(), variables) == Distributed("a:1", 4, 3)
    assert resolved(Distributed("b:2", process=0), variables) == Distributed("b:2", 4, 0)


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "0"},
        {"OMPI_COMM_WORLD_SIZE": "2"},
        {"TPU_WORKER_HOSTNAMES": "t0,t1"},
    ],
)
def test_a_scheduler_is_asked_where_it_started_several(environment):
    assert resolved(Distributed(), environment) == Distributed()


@pytest.mark.parametrize("environment", [{"SLURM_STEP_NUM_TASKS": "1"}, {"TPU_WORKER_HOSTNAMES": "t0"}])
def test_a_process_on_its_own_joins_nobody(environment):
    assert resolved(Distributed(), environment) is None


def test_half_of_what_is_needed_is_refused_with_what_is_missing():
    with pytest.raises(InfluenceError, match="missing: processes, process"):
        resolved(Distributed("a:1"), {})
