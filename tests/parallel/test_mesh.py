"""Which devices and which rows are whose, in any order in which a platform lists the devices."""

import dataclasses
from unittest import mock

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh

from influence_ssl_jax.parallel import mesh


@dataclasses.dataclass(frozen=True)
class Device:
    id: int
    process_index: int


def plain(numbers):
    """A mesh as far as rows are concerned."""
    made = mock.Mock(spec=Mesh)
    made.devices, made.size = np.empty(len(numbers), object), len(numbers)
    made.devices[:] = numbers
    return made


SLICE = [Device(k, (k // 4) % 2) for k in range(16)]
"""As on a TPU slice: process 0 owns 0–3 and 8–11, process 1 the others."""


@given(order=st.permutations(SLICE), count=st.integers(1, 50))
def test_rows_of_processes_neither_overlap_nor_leave_gaps_whatever_the_order_of_devices(order, count):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh, "_mesh", plain)
        patch.setattr(jax, "devices", lambda: list(order))
        rows = []
        for process in range(2):
            patch.setattr(jax, "process_index", lambda process=process: process)
            rows += mesh.batches_of(mesh.all_devices())(count)
    assert rows == list(range(16 * -(-count // 16)))


def test_devices_of_a_process_that_stand_apart_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    with pytest.raises(ValueError, match=r"next to each other in a mesh, got positions \[0, 1, 4, 5\] for process 0"):
        mesh.own_positions(plain([Device(k, (k // 2) % 2) for k in (0, 1, 2, 3, 4, 5)]))


def test_rows_that_are_not_equally_many_for_each_device_are_refused(monkeypatch):
    monkeypatch.setattr(mesh, "own_positions", lambda _: range(4))
    with pytest.raises(ValueError, match=r"a multiple of the 4 devices of this process, got \[6\] rows"):
        mesh.split({"rows": np.zeros((6, 2))}, mesh.local_devices())
