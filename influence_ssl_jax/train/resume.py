"""Checkpoints of a run under way: what it needs to go on as if it had never stopped."""

import json
from pathlib import Path
from typing import TextIO

import jax
import orbax.checkpoint as ocp

from influence_ssl_jax import configuration
from influence_ssl_jax.errors import InfluenceError, disk_of
from influence_ssl_jax.store.files import LOCK, TEMPORARY, lock, write_atomically
from influence_ssl_jax.train.state import TrainState


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
