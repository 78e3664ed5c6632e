"""Checkpoints and metrics of a training run, and how it resumes."""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from influence_ssl_jax import configuration
from influence_ssl_jax.data import Example, Skipped
from influence_ssl_jax.errors import InfluenceError, disk_of
from influence_ssl_jax.parallel import all_devices, batches_of, is_first, replicated, smallest, split
from influence_ssl_jax.run_log import json_lines
from influence_ssl_jax.store import DamagedError, digest_of, read_sealed, write_sealed
from influence_ssl_jax.store.files import LOCK, TEMPORARY, Held, append_line, lock, write_atomically
from influence_ssl_jax.train.state import TrainState
from influence_ssl_jax.types import Batch

Row = dict[str, float | int]


class Journal:
    """A JSON-lines file of one row per epoch, whole lines only."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def rows(self) -> list[Row]:
        """The rows written so far; a line that a kill cut short, or that numbers no epoch, is no row."""
        return [row for row in json_lines(self._file) if type(row.get("epoch")) is int]

    def keep(self, epochs: int) -> list[Row]:
        """Drop what was reported beyond `epochs`, as a run that goes on from there will report it again."""
        kept = [row for row in self.rows() if row["epoch"] <= epochs]
        write_atomically(self._file, "".join(json.dumps(row) + "\n" for row in kept).encode())
        return kept

    def append(self, row: Mapping[str, float | int]) -> None:
        """Add a row, on disk when this returns."""
        append_line(self._file, json.dumps(dict(row)))


SETTINGS, DIGESTS, IMAGES = "settings.json", "checkpoints.json", "images.json"
_log = logging.getLogger(__name__)


class TrainingError(InfluenceError):
    """A run that cannot start, go on, or end well."""


def claim(folder: Path, description: dict) -> Held:
    """Record in `folder` what is run there, and hold it until the returned object is closed or the process ends.

    Raises:
        TrainingError: A run with other settings is there already (every difference is listed), something else, or settings
            that are damaged.
        StoreError: It is under way.
    """
    file, description = folder / SETTINGS, json.loads(json.dumps(description))
    if file.exists():
        try:
            differing = configuration.differences(read_sealed(file), description)
        except DamagedError as error:
            raise TrainingError(f"{error} So nothing says what was trained there. Choose another folder.") from error
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
    write_sealed(file, description, indent=1)
    return held


def same_images(folder: Path, examples: Sequence[Example | Skipped]) -> None:
    """Write the digests of the images that a run trains on, or compare with those that it was begun with.

    Raises:
        TrainingError: An image has changed; the first are named.
    """
    now = {str(each.index): "" if isinstance(each, Skipped) else each.content.hex() for each in examples}
    names = {str(each.index): each.id for each in examples}
    try:
        before = read_sealed(folder / IMAGES)
    except FileNotFoundError:
        write_sealed(folder / IMAGES, now, indent=None)
        return
    except DamagedError as error:
        raise TrainingError(f"{error} So nothing says which images were trained on. Choose another folder.") from error
    differing = sorted((index for index in now if now[index] != before.get(index)), key=int)
    if differing:
        raise TrainingError(
            f"{len(differing):,} images have changed since this run was begun, the first: "
            f"{', '.join(names[index] for index in differing[:5])}. Put them back, or train in another folder."
        )


class Checkpoints:
    """The states after the last few epochs of a run; a write that a kill cut short is never taken for one.

    The digest of each is kept beside them with its epoch (`checkpoints.json`): one that has changed since, or that was
    replaced by another epoch's, is passed over for the one before.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._folder, self._digests = folder.resolve() / "checkpoints", folder / DIGESTS
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, epoch: int, state: TrainState) -> None:
        """Keep the state after `epoch` epochs, and forget the oldest one.

        Raises:
            FullDiskError: The disk takes no more; the ones before are kept.
        """
        digest = digest_of(jax.tree.map(_here, state))
        with disk_of(self._folder):
            if is_first():  # before the state itself: a digest without a state promises nothing
                kept = {str(step): self._known().get(str(step)) for step in self._manager.all_steps()}
                write_sealed(self._digests, {**kept, str(epoch): digest})
            self._manager.save(epoch, args=ocp.args.StandardSave(dict(vars(state))))
            self._manager.wait_until_finished()

    def latest(self, like: TrainState) -> tuple[int, TrainState]:
        """(epochs done, state) of the newest whole checkpoint; (0, `like`) where there is none.

        One that is damaged is named in a note and deleted, so that its epoch can be saved again.
        """
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, dict(vars(like)))
        for epoch in sorted(self._manager.all_steps(), reverse=True):
            state, reason = self._restored(epoch, shapes)
            if smallest(int(state is not None)) and state is not None:
                return epoch, state
            _log.warning(
                "the state after epoch %s in %s is damaged (%s); the one before is taken", epoch, self._folder, reason
            )
            self._manager.delete(epoch)
        return 0, like

    def _restored(self, epoch: int, shapes: dict) -> tuple[TrainState | None, str]:
        """The state after an epoch where it is what was saved, and else why it is not."""
        try:
            state = TrainState(**self._manager.restore(epoch, args=ocp.args.StandardRestore(shapes)))
        except Exception as error:  # orbax and tensorstore raise whatever the damage makes them raise
            return None, f"{type(error).__name__}: {error}".partition("\n")[0]
        if digest_of(jax.tree.map(_here, state)) != self._known().get(str(epoch)):
            return None, "its digest is not the one that was kept for this epoch"
        return state, ""

    def _known(self) -> dict[str, str]:
        """Digests by epoch; none where their file is damaged."""
        try:
            return read_sealed(self._digests)
        except (FileNotFoundError, DamagedError):
            return {}

    def close(self) -> None:
        """Release what orbax holds."""
        self._manager.close()


def _here(leaf: jax.Array) -> jax.Array:
    """One whole copy of an array that every device has."""
    return leaf if leaf.is_fully_addressable else leaf.addressable_data(0)


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
