"""Run by `test_processes.py` as each of two processes: open a folder of which each sees something else."""

import os
import sys
from pathlib import Path

from influence_ssl_jax.data import Folder
from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.parallel import Distributed, processes, start


def main(folder: Path, coordinator: str, process: int) -> None:
    """Print the number of calls for folders, the ids and the fingerprint; then what an absent folder gives."""
    start(Distributed(coordinator, 2, process), {})
    processes.PIECE = 100  # several pieces
    scandir, calls = os.scandir, []

    def counted(path):
        calls.append(path)
        return scandir(path)

    os.scandir = counted
    opened = Folder(str(folder)).open()
    print("said:", len(calls), *opened.ids(), opened.fingerprint())
    try:
        processes.broadcast_from_first(lambda: Folder(str(folder / "absent")).open().fingerprint().encode())
    except InfluenceError as error:
        print("said:", error)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
