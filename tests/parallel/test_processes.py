"""Two real processes that talk over CPU collectives give what one gives; how processes find each other."""

import concurrent.futures
import contextlib
import itertools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from influence_ssl_jax.data import ToInput
from influence_ssl_jax.data.listing import Listing, list_images
from influence_ssl_jax.encoder import Encoder
from influence_ssl_jax.errors import InfluenceError, PartnerError
from influence_ssl_jax.nets.linear import Linear
from influence_ssl_jax.parallel import Distributed, broadcast_from_first, rank
from influence_ssl_jax.parallel.processes import resolve
from influence_ssl_jax.run_log import json_lines

ROOT = pathlib.Path(__file__).parents[2]


TIMEOUT = 600


@contextlib.contextmanager
def reserved_port():
    """A free port that stays this test's until gRPC uses it: bound and not listening, as SO_REUSEPORT lets two be."""
    with socket.socket(socket.AF_INET6) as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        free.bind(("::", 0))
        yield free.getsockname()[1]


def begin(module, *arguments, devices=1):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, "-m", f"tests.parallel.{module}", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(processes, limit=TIMEOUT):
    """What each said on standard error, and its exit status; when one fails or time is up, the others are ended too."""
    said = {}
    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
        waiting = {pool.submit(process.communicate, timeout=limit): process for process in processes}
        try:
            for done in concurrent.futures.as_completed(waiting, timeout=limit):
                said[waiting[done]] = done.result()[1]
                assert waiting[done].returncode == 0, said[waiting[done]]
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
    return said


@pytest.mark.slow
def test_two_processes_pretrain_and_score_as_one_whatever_the_order_of_their_devices(tmp_path):
    encoder = tmp_path / "two" / "encoder"
    names = ("first", "second")
    for seed, name in enumerate(names):
        variables = {"params": {"dense": {"kernel": np.random.default_rng(seed).normal(size=(48, 3)).astype("f4")}}}
        Encoder.from_linen(Linear(3), variables, input=ToInput(4, 4), name=name).save(tmp_path / name)
    with reserved_port() as port:
        given = (encoder, f"localhost:{port}", 2)
        ended([begin("two_processes", *given, number, tmp_path / "two", devices=2) for number in range(2)])
    # One process goes on with what two began: nothing of the training is left, and nothing is refused.
    ended([begin("two_processes", encoder, "", 1, 0, tmp_path / "two", tmp_path / "one")])
    assert [line["resumed_at_step"] for line in json_lines(encoder / "log.jsonl")[4:5]] == [4]

    one, two = (pq.read_table(tmp_path / name / "scores" / "scores.parquet") for name in ("one", "two"))
    assert two["index"].to_pylist() == list(range(230))
    for name in ("score", "score_se", "alignment_loss", "gradient_norm", "pixel_variance", "knn_distance"):
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-7)
    for name in names:
        single, double = (
            pq.read_table(tmp_path / each / "together" / name / "scores.parquet") for each in ("one", "two")
        )
        assert double["index"].to_pylist() == list(range(230))
        np.testing.assert_allclose(double["score"], single["score"], rtol=1e-4)
    top = [np.argsort(-table["score"].to_numpy())[:2] for table in (one, two)]
    assert (top[0] == top[1]).all()

    rows = []
    for number in ("0000", "0001"):
        parts = (tmp_path / "two" / "scores" / "parts" / number).glob("*.parquet")
        rows.append(sum(pq.read_metadata(part).num_rows for part in parts))
    assert rows == [120, 110]  # each wrote its own batches of ten: 12 and 11
    logs = [json_lines(tmp_path / "two" / "encoder" / name) for name in ("log.jsonl", "log-1.jsonl")]
    assert [[line["event"] for line in log] for log in logs] == [
        ["start", "epoch", "epoch", "finished", "start", "finished"],
        ["start", "epoch", "epoch"],  # the first process speaks for all
    ]
    assert {line["process"] for line in logs[1]} == {1}
    histories = [
        json.loads((tmp_path / each / "encoder" / "encoder.json").read_text())["history"] for each in ("one", "two")
    ]
    np.testing.assert_allclose(histories[1][1]["loss"], histories[0][1]["loss"], rtol=1e-4)


@pytest.mark.slow
def test_processes_agree_compare_what_they_were_started_for_and_all_stop_where_it_differs(tmp_path):
    with reserved_port() as port:
        said = ended(
            [begin("unequal_processes", "other", tmp_path, f"localhost:{port}", number) for number in range(2)]
        )
    for text in said.values():
        assert "not started for the same work" in text
        assert "size: 100 → 90" in text
        assert "draws: 4 → 2" in text
        assert "different fitted curvatures:\n  process 0: fit 0\n  process 1: fit 1" in text
        assert "smallest 7 gathered ['größer 0', 'g1']" in text
    assert list(tmp_path.iterdir()) == []


DEATHS = [("barrier", 1), ("collective", 1), ("work", 1), ("work", 0)]
"""What the survivor of two processes does, and the number of the one that is killed."""


@pytest.fixture(scope="module")
def killed():
    """Of each of `DEATHS` the exit status of both processes and what the survivor said: pairs that wait, all at once."""
    ends = {}
    with contextlib.ExitStack() as ports:
        pairs = {}
        try:
            for waits, dies in DEATHS:
                address = f"localhost:{ports.enter_context(reserved_port())}"
                pairs[waits, dies] = [begin("unequal_processes", waits, dies, address, number) for number in range(2)]
            for (waits, dies), both in pairs.items():
                said = both[1 - dies].communicate(timeout=TIMEOUT)[1]
                both[dies].communicate(timeout=TIMEOUT)
                ends[waits, dies] = both[dies].returncode, both[1 - dies].returncode, said
        finally:
            for process in itertools.chain.from_iterable(pairs.values()):
                process.kill()
    return ends


@pytest.mark.slow
@pytest.mark.parametrize(("waits", "dies"), DEATHS)
def test_where_one_process_dies_the_other_says_so_in_a_sentence_and_ends(killed, waits, dies):
    dead, survivor, said = killed[waits, dies]
    assert dead == -signal.SIGKILL
    assert survivor == PartnerError.status, said
    assert "A process of this run has died or cannot be reached, so the others stop." in said
    assert "Traceback" not in said
    assert dies == 0 or "*** Check failure" not in said


def test_the_number_of_a_process_is_the_schedulers():
    assert rank({}) == 0
    assert rank({"SLURM_PROCID": "3"}) == 0  # of a job whose step has one task
    assert rank({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}) == 3
    assert rank({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}) == 1
    assert rank({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}) == 1


def test_flags_come_before_variables_and_variables_before_a_scheduler():
    variables = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    assert resolve(Distributed(), {}) is None
    assert resolve(Distributed(), variables) == Distributed("a:1", 4, 3)
    assert resolve(Distributed("b:2", process=0), variables) == Distributed("b:2", 4, 0)


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "0"},
        {"OMPI_COMM_WORLD_SIZE": "2"},
        {"TPU_WORKER_HOSTNAMES": "t0,t1"},
    ],
)
def test_a_scheduler_is_asked_where_it_started_several(environment):
    assert resolve(Distributed(), environment) == Distributed()


@pytest.mark.parametrize("environment", [{"SLURM_STEP_NUM_TASKS": "1"}, {"TPU_WORKER_HOSTNAMES": "t0"}])
def test_a_process_on_its_own_joins_nobody(environment):
    assert resolve(Distributed(), environment) is None


def test_half_of_what_is_needed_is_refused_with_what_is_missing():
    with pytest.raises(InfluenceError, match="missing: processes, process"):
        resolve(Distributed("a:1"), {})


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(b"x" * number)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "away").symlink_to("/tmp")
    return tmp_path


def test_a_listing_survives_its_bytes(folder):
    with open(os.fsencode(folder) + b"/13\xff.png", "wb") as file:
        file.write(b"x")
    listing = list_images(folder)
    again = Listing.from_bytes(listing.to_bytes())
    assert list(again.images) == list(listing.images)
    assert again.images[12] == "13\udcff.png"
    assert again.sizes.tolist() == listing.sizes.tolist() == [*range(12), 1]
    assert (again.others, again.notes) == (listing.others, listing.notes)
    assert broadcast_from_first(lambda: b"alone") == b"alone"


@pytest.mark.slow
def test_one_of_two_processes_lists_and_both_know(folder):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.parallel.folder_processes", str(folder), f"localhost:{port}"]
    both = [
        subprocess.Popen([*command, str(number)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for number in range(2)
    ]
    printed = [process.communicate(timeout=240)[0].splitlines() for process in both]
    (first, last), (second, other) = (
        [line.removeprefix("said: ") for line in lines if line.startswith("said: ")] for lines in printed
    )
    assert [process.returncode for process in both] == [0, 0]
    assert first.split()[0] == "1"
    assert second.split()[0] == "0"
    assert first.split()[1:] == second.split()[1:]
    assert first.split()[1:4] == ["0.png", "1.png", "2.png"]
    assert last.startswith("There is no folder")
    assert other == "The first process of the run has stopped with an error; its own output says why."
