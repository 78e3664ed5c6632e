"""One process lists a folder, the others are told."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

from influence_ssl_jax.data.listing import Listing, listed
from influence_ssl_jax.parallel import from_first

ROOT = pathlib.Path(__file__).parents[2]


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
    found = listed(folder)
    again = Listing.from_bytes(found.to_bytes())
    assert list(again.images) == list(found.images)
    assert again.images[12] == "13\udcff.png"
    assert again.sizes.tolist() == found.sizes.tolist() == [*range(12), 1]
    assert (again.others, again.notes) == (found.others, found.notes)
    assert from_first(lambda: b"alone") == b"alone"


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
    assert other == "The first process of the run has given up; its own message says why."
