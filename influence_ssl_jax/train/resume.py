"""Checkpoints and metrics of a training run, and how it resumes."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TextIO

import jax
import orbax.checkpoint as ocp

from influence_ssl_jax import configuration
from influence_ssl_jax.errors import InfluenceError, disk_of
from influence_ssl_jax.parallel import all_devices, batches_of, replicated, split
from influence_ssl_jax.run_log import json_lines
from influence_ssl_jax.store.files import LOCK, TEMPORARY, append_line, lock, write_atomically
from influence_ssl_jax.train.state import TrainState
from influence_ssl_jax.types import Batch

Row = dict[str, float | int]


class Journal:
    """A JSON-lines file of one row per epoch, whole lines only."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def rows(self) -> list[Row]:
        """The rows written so far; a line that a kill cut short is no row."""
        return json_lines(self._file)

    def keep(self, epochs: int) -> list[Row]:
        """Drop what was reported beyond `epochs`, as a run that goes on from there will report it again."""
        kept = [row for row in self.rows() if row["epoch"] <= epochs]
        write_atomically(self._file, "".join(json.dumps(row) + "\n" for row in kept).encode())
        return kept

    def append(self, row: Mapping[str, float | int]) -> None:
        """Add a row, on disk when this returns."""
        append_line(self._file, json.dumps(dict(row)))


class TrainingError(InfluenceError):
    """A run that cannot start, go on, or end well."""


def claim(folder: Path, description: dict) -> TextIO:
    """Record in `folder` what is run there, and hold it until the returned file is closed or the process ends.

    Raises:
        TrainingError: A run with other settings is there already (every difference is listed), or something else.
        StoreError: It is under way.
    """
    file = folder / "settings.json"
    if file.exists():
        differing = configuration.differences(json.loads(file.read_text()), description)
        if differing:
            raise TrainingError(
                f"{folder} holds a run with other settings; choose another folder, or delete it to start anew:\n  "
                + "\n  ".join(differing)
            )
        return lock(folder)
    folder.mkdir(parents=True, exist_ok=True)
    foreign = sorted(each.name for each in folder.iterdir() if each.name not in (LOCK, file.name + TEMPORARY))
    if foreign:
        raise TrainingError(f"{folder} is not empty and holds no run ({foreign[0]}, …). Choose a new or empty folder.")
    held = lock(folder)
    write_atomically(file, (json.dumps(description, indent=1, ensure_ascii=False) + "\n").encode())
    return held


class Checkpoints:
    """The states after the last few epochs of a run; a write that a kill cut short is never taken for one."""

    def __init__(self, folder: Path, keep: int) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._folder = folder.resolve() / "checkpoints"
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, epoch: int, state: TrainState) -> None:
        """Keep the state after `epoch` epochs, and forget the oldest one.

        Raises:
            FullDiskError: The disk takes no more; the ones before are kept.
        """
        with disk_of(self._folder):
            self._manager.save(epoch, args=ocp.args.StandardSave(dict(vars(state))))
            self._manager.wait_until_finished()

    def latest(self, like: TrainState) -> tuple[int, TrainState]:
        """(epochs done, state) of the newest checkpoint; (0, `like`) where there is none."""
        epoch = self._manager.latest_step()
        if epoch is None:
            return 0, like
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, dict(vars(like)))
        return epoch, TrainState(**self._manager.restore(epoch, args=ocp.args.StandardRestore(shapes)))

    def close(self) -> None:
        """Release what orbax holds."""
        self._manager.close()


def _same(state: TrainState) -> TrainState:
    return state


def _on_this_device(state: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), state)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How rows and states get to where they are computed on.

    Attributes:
        part: From the size of a batch to the rows that this process reads.
        place: Brings those rows to the devices, as one batch of all.
        everywhere: Brings a state to every device.
        here: A state on one device of this process.
    """

    part: Callable[[int], range] = range
    place: Callable[[Batch], Batch] = jax.device_put
    everywhere: Callable[[TrainState], TrainState] = _same
    here: Callable[[TrainState], TrainState] = _same

    @classmethod
    def of(cls, batch_size: int) -> "Layout":
        """Over as many devices as divide a batch evenly.

        Raises:
            TrainingError: There are several processes, and that leaves some of their devices out.
        """
        mesh = all_devices(dividing=batch_size)
        if jax.process_count() > 1 and mesh.size < jax.device_count():
            raise TrainingError(
                f"A batch of {batch_size} cannot be split evenly over the {jax.device_count()} devices of "
                f"{jax.process_count()} processes. Take a batch size that is a multiple of {jax.device_count()}."
            )
        if mesh.size == 1:
            return cls()
        return cls(batches_of(mesh), partial(split, mesh=mesh), partial(replicated, mesh=mesh), _on_this_device)
