"""Do four processes of two devices keep every row once, whatever befalls one of them?

    python -m benchmarks.four_processes

Four processes with two simulated devices each, listed in the order that a slice may have (one of each process, then the
next one of each), write drawn rows (`benchmarks.ten_million.drawn`) into one folder as a scoring run does. Three runs: in
the first one process was started for other work, so all four must refuse and write nothing; in the second one is killed by
SIGKILL between two parts, so the others must end with the status of a lost partner; in the third, the same command with one
process a second slower at each part, what is missing is made and the table must have the bytes of a single process's. In
every run one process has room for a quarter of the others' batch: all must use the smallest. Expected: 0 rows lost or
repeated.
"""

import dataclasses
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro

from benchmarks.ten_million import drawn
from influence_ssl_jax.cli import main as command_line
from influence_ssl_jax.errors import PartnerError
from influence_ssl_jax.parallel import (
    Distributed,
    all_devices,
    barrier,
    first_only,
    gather,
    mesh,
    min_over_processes,
    own_part,
    processes,
    split,
    start,
    sum_over_processes,
)
from influence_ssl_jax.provenance import device, versions
from influence_ssl_jax.store import ScoreStore

PROCESSES, DEVICES = 4, 2
OTHER, KILLED, SLOW, SMALL = 2, 1, 0, 3
"""Which process has another identity, is killed, is slow, has less memory."""
Case = Literal["", "other identity", "one killed", "one slow", "alone"]


@dataclasses.dataclass(frozen=True)
class Config:
    """How much.

    Attributes:
        rows: Rows in all.
        batch: Rows of a part where memory allows it.
        case: Set in the processes: what befalls one.
        process: Set in the processes: which this is.
        coordinator: Set in the processes: where they meet.
        folder: Set in the processes: where the rows go.
        out: Where the JSON goes.
    """

    rows: int = 100_000
    batch: int = 8192
    case: Case = ""
    process: int = 0
    coordinator: str = ""
    folder: Path = Path()
    out: Path = Path(__file__).parent / "results" / "four_processes.json"


class Interleaved:
    """JAX on a platform that lists devices as a slice may: those of a process do not stand together."""

    def __getattr__(self, name: str) -> object:
        return getattr(jax, name)

    def devices(self) -> list:
        """Return the devices of all processes, in turns."""
        listed = sorted(jax.devices(), key=lambda each: each.process_index)
        of_process = [list(group) for _, group in itertools.groupby(listed, lambda each: each.process_index)]
        return [each for row in zip(*of_process, strict=True) for each in row]


def work(config: Config) -> None:
    """Do the work of one process of a run."""
    alone = config.case == "alone"
    if not alone:
        start(Distributed(config.coordinator, PROCESSES, config.process))
        check_split()
    room = config.batch // 4 if config.process == SMALL or alone else config.batch
    batch = min_over_processes(room)
    identity = {"draws": 4 + (config.case == "other identity" and config.process == OTHER)}
    with ScoreStore.open(config.folder, identity, config.rows) as store:
        store.bind(f"drawn in batches of {batch}")
        todo = np.flatnonzero(store.todo()) // batch
        for count, number in enumerate(own_part(np.unique(todo)).tolist()):
            if config.case == "one killed" and config.process == KILLED and count == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            if config.case == "one slow" and config.process == SLOW:
                time.sleep(1.0)
            begin = number * batch
            store.append(drawn(begin, min(batch, config.rows - begin)))
        written = sum_over_processes(store.rows())
        barrier("scored")

        def finish() -> None:
            store.refresh(written)
            store.finish()

        first_only(finish)
    print(json.dumps({"batch": batch, "parts": len(np.unique(todo))}), flush=True)


def check_split() -> None:
    """Check that the devices' rows are disjoint and complete."""
    whole = all_devices()
    held = np.arange(DEVICES) + DEVICES * jax.process_index()
    rows = split(held.astype(np.float32), whole)
    assert rows.shape == (whole.size,), rows.shape
    owned = sorted(int(value) for text in gather(json.dumps(held.tolist())) for value in json.loads(text))
    assert owned == list(range(whole.size)), owned
    assert float(jax.jit(lambda rows: rows.sum())(rows)) == sum(range(whole.size))


def run(config: Config, case: Case, folder: Path) -> list[tuple[int, str, str]]:
    """Return status, output and errors of all processes of a run."""
    with socket.socket(socket.AF_INET6) as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        free.bind(("::", 0))
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}",
        }
        shared = ["--rows", str(config.rows), "--batch", str(config.batch), "--case", case, "--folder", str(folder)]
        begun = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "benchmarks.four_processes", *shared, "--process", str(number)),
                    *("--coordinator", f"localhost:{free.getsockname()[1]}"),
                ],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(1 if case == "alone" else PROCESSES)
        ]
        said = [process.communicate(timeout=600) for process in begun]
        return [(process.returncode, out, error) for process, (out, error) in zip(begun, said, strict=True)]


def main() -> None:
    """Run all checks, then print and write their results."""
    config = tyro.cli(Config)
    if config.case:
        mesh.jax = Interleaved()  # in this package alone: JAX's own helpers count on its order
        processes._SILENCE = 5.0
        command_line._execute = lambda *_: work(config)
        sys.argv = ["influence-ssl", "score"]  # its statuses and its words for what ends a run
        command_line.main()
        return
    with tempfile.TemporaryDirectory() as name:
        root, checks = Path(name), {}
        other = run(config, "other identity", root / "rows")
        checks["other identity: all refuse"] = all(
            status == 2 and "not started for the same work" in error for status, _, error in other
        )
        checks["other identity: nothing is written"] = not (root / "rows").exists()
        killed = run(config, "one killed", root / "rows")
        status = [each[0] for each in killed]
        checks["one killed: the others end with the status of a lost partner"] = status[
            KILLED
        ] == -signal.SIGKILL and all(
            each == PartnerError.status for number, each in enumerate(status) if number != KILLED
        )
        slow, alone = run(config, "one slow", root / "rows"), run(config, "alone", root / "alone")
        checks["one slow: all are through"] = [each[0] for each in slow + alone] == [0] * (PROCESSES + 1)
        printed = [json.loads(out.splitlines()[-1]) for status, out, _ in slow if status == 0]
        checks["less memory: all use the smallest batch"] = {each["batch"] for each in printed} == {config.batch // 4}
        checks["what was finished before the kill is not made again"] = all(
            each["parts"] < -(-config.rows // (config.batch // 4)) for each in printed
        )
        tables = [(root / folder / "scores.parquet").read_bytes() for folder in ("rows", "alone")]
        checks["the table has the bytes of one process's: no row lost or repeated"] = tables[0] == tables[1]
    print(json.dumps(checks, indent=1))
    if not all(checks.values()):
        print(
            "\n".join(error[-2000:] for each in (other, killed, slow, alone) for _, _, error in each), file=sys.stderr
        )
    plain = {"rows": config.rows, "batch": config.batch, "processes": PROCESSES, "devices of each": DEVICES}
    record = {"config": plain, "as it must be": checks, "versions": versions(), "device": device()}
    config.out.write_text(json.dumps(record, indent=1) + "\n")
    raise SystemExit(not all(checks.values()))


if __name__ == "__main__":
    main()
