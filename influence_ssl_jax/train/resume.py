"""Keep a training run's checkpoints and metrics, so it can continue."""

import contextlib
import dataclasses
import gc
import inspect
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from influence_ssl_jax.configuration import fingerprint
from influence_ssl_jax.data import Example, Skipped
from influence_ssl_jax.errors import InfluenceError, StoreError, disk_of
from influence_ssl_jax.parallel import all_devices, batches_of, is_first, min_over_processes, replicate, split
from influence_ssl_jax.run_log import json_lines
from influence_ssl_jax.store import DamagedError, digest_of, identity, read_sealed, write_sealed
from influence_ssl_jax.store.files import SUM, Lock, append_line, lock, write_atomically
from influence_ssl_jax.store.identity import refuse_foreign
from influence_ssl_jax.train.state import TrainState
from influence_ssl_jax.types import Batch

Row = dict[str, float | int]


class Journal:
    """A JSON-lines file with one row for each epoch.

    Each line has a checksum of its own under `sum`.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def rows(self) -> list[Row]:
        """Read the rows, except incomplete and damaged ones.

        Lines without an epoch number are ignored too.
        """
        rows = [row for row in json_lines(self._file) if row.pop(SUM, None) == fingerprint(row)]
        return [row for row in rows if type(row.get("epoch")) is int]

    def keep(self, epochs: int) -> list[Row]:
        """Delete the rows after `epochs`, and return the others.

        The continued run writes the deleted ones again.
        """
        kept = [row for row in self.rows() if row["epoch"] <= epochs]
        write_atomically(self._file, "".join(_line(row) + "\n" for row in kept).encode())
        return kept

    def append(self, row: Mapping[str, float | int]) -> None:
        """Add a row; it is on disk when this returns."""
        append_line(self._file, _line(row))


def _line(row: Mapping[str, float | int]) -> str:
    """Write a row with its checksum."""
    return json.dumps({**row, SUM: fingerprint(row)})


SETTINGS, DIGESTS, IMAGES = "settings.json", "checkpoints.json", "images.json"
OWNER = "fingerprint"
UNKNOWN = "unknown"
"""The owner of states whose list cannot be read: no fingerprint is equal to it."""
"""The key of `checkpoints.json` that says of which run it is."""
_log = logging.getLogger(__name__)


class TrainingError(InfluenceError):
    """A training run that cannot start, continue or finish."""


def claim(folder: Path, description: dict) -> Lock:
    """Record the settings of a run in `folder`, and lock the folder.

    The lock lasts until the returned object is closed or the process ends. Settings that are damaged or absent are
    written again if the states in the folder are those of this run.

    Raises:
        TrainingError: If the folder has a run with other settings (the differences are listed), states of another run, or
            other files.
        StoreError: If another process is working on the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owner = _find_owner(folder)
    owners = () if owner == "" else (owner or UNKNOWN,)
    with _as_training_error():
        refuse_foreign(folder, owners, SETTINGS, "training run")
    claimed = lock(folder)
    try:
        with _as_training_error():
            identity.claim(folder, description, owners, name=SETTINGS)
    except BaseException:
        claimed.close()
        raise
    return claimed


@contextlib.contextmanager
def _as_training_error() -> Iterator[None]:
    """Raise the errors of a folder's identity as `TrainingError`."""
    try:
        yield
    except StoreError as error:
        raise TrainingError(str(error)) from error


def _find_owner(folder: Path) -> str | None:
    """Return the fingerprint that a folder's list of states names.

    It is empty if there are no states, and None if their list is damaged.
    """
    try:
        return read_sealed(folder / DIGESTS).get(OWNER)
    except FileNotFoundError:
        return ""
    except DamagedError:
        return None


def check_images(folder: Path, examples: Sequence[Example | Skipped]) -> None:
    """Record the training images' digests, or compare with the recorded ones.

    Raises:
        TrainingError: If an image has changed; the first five are named.
    """
    now = {str(each.index): "" if isinstance(each, Skipped) else each.content.hex() for each in examples}
    names = {str(each.index): each.id for each in examples}
    try:
        before = read_sealed(folder / IMAGES)
    except FileNotFoundError:
        write_sealed(folder / IMAGES, now, indent=None)
        return
    except DamagedError as error:
        raise TrainingError(f"{error} The list of training images is lost. Choose another folder.") from error
    differing = sorted((index for index in now if now[index] != before.get(index)), key=int)
    if differing:
        raise TrainingError(
            f"{len(differing):,} images have changed since this run began, the first: "
            f"{', '.join(names[index] for index in differing[:5])}. Restore them, or train in another folder."
        )


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Keep orbax from printing tracebacks of errors that it also raises."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _drop_abandoned_reads() -> None:
    """Collect the reads that orbax left unfinished.

    It reads arrays side by side, and after the first error leaves the others to the garbage collection, which prints a
    traceback for each, whenever it comes.
    """
    hook = sys.unraisablehook

    def say_others(unraisable: "sys.UnraisableHookArgs") -> None:
        if not inspect.iscoroutine(unraisable.object):
            hook(unraisable)

    sys.unraisablehook = say_others
    try:
        gc.collect()
    finally:
        sys.unraisablehook = hook


class Checkpoints:
    """The states of a run after its last epochs.

    A state that was not written completely is ignored. The digest of each state is kept with its epoch in
    `checkpoints.json`: if a state has changed, or is that of another epoch or another run, the one before it is used.

    Args:
        folder: The folder of the run.
        keep: States that are kept.
        owner: Fingerprint of the run's settings.
    """

    def __init__(self, folder: Path, keep: int, owner: str) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._folder, self._digests = folder.resolve() / "checkpoints", folder / DIGESTS
        self._manager, self._owner = ocp.CheckpointManager(self._folder, options=options), owner

    def save(self, epoch: int, state: TrainState) -> None:
        """Save the state after `epoch` epochs, and delete the oldest one.

        Raises:
            FullDiskError: If the disk is full; earlier states are kept.
        """
        digest = digest_of(jax.tree.map(_here, state))
        with disk_of(self._folder), _quiet_orbax():
            if is_first():  # before the state: a digest without a state does no harm, the reverse would lose the state
                kept = {str(step): self._read_digests().get(str(step)) for step in self._manager.all_steps()}
                write_sealed(self._digests, {OWNER: self._owner, **kept, str(epoch): digest})
            self._manager.save(epoch, args=ocp.args.StandardSave(dict(vars(state))))
            self._manager.wait_until_finished()

    def latest(self, like: TrainState) -> tuple[int, TrainState]:
        """Return the newest intact state and its epochs, or `(0, like)`.

        A damaged state is named in a warning and deleted, so that its epoch can be saved again.
        """
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, dict(vars(like)))
        for epoch in sorted(self._manager.all_steps(), reverse=True):
            state, reason = self._restore(epoch, shapes)
            if min_over_processes(int(state is not None)) and state is not None:
                return epoch, state
            _drop_abandoned_reads()
            _log.warning(
                "the state after epoch %s in %s is damaged (%s); the one before it is used", epoch, self._folder, reason
            )
            self._manager.delete(epoch)
        return 0, like

    def _restore(self, epoch: int, shapes: dict) -> tuple[TrainState | None, str]:
        """Load an epoch's state; return None and the reason if damaged."""
        try:
            with _quiet_orbax():
                state = TrainState(**self._manager.restore(epoch, args=ocp.args.StandardRestore(shapes)))
        except Exception as error:  # orbax and tensorstore raise many types of errors for damaged files
            return None, f"{type(error).__name__}: {error}".partition("\n")[0]
        if digest_of(jax.tree.map(_here, state)) != self._read_digests().get(str(epoch)):
            return None, "its digest is not the one that was kept for this epoch"
        return state, ""

    def _read_digests(self) -> dict[str, str]:
        """Read the digests by epoch.

        There are none if their file is absent, damaged or of another run.
        """
        try:
            digests = read_sealed(self._digests)
        except (FileNotFoundError, DamagedError):
            return {}
        return digests if digests.pop(OWNER, None) == self._owner else {}

    def close(self) -> None:
        """Release the resources of orbax."""
        self._manager.close()


def _here(leaf: jax.Array) -> jax.Array:
    """Return one complete copy of an array that every device has."""
    return leaf if leaf.is_fully_addressable else leaf.addressable_data(0)


def _same(state: TrainState) -> TrainState:
    """Return the state itself."""
    return state


def _on_this_device(state: TrainState) -> TrainState:
    """Return the copy of a state on this process's first device."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), state)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The distribution of batches and states over devices.

    Attributes:
        part: A function from the size of a batch to the rows that this process reads.
        place: Brings those rows to the devices, as one batch of all processes.
        everywhere: Copies a state to every device.
        here: Returns a state on one device of this process.
    """

    part: Callable[[int], range] = range
    place: Callable[[Batch], Batch] = jax.device_put
    everywhere: Callable[[TrainState], TrainState] = _same
    here: Callable[[TrainState], TrainState] = _same

    @classmethod
    def of(cls, batch_size: int) -> "Layout":
        """Distribute over as many devices as divide a batch evenly.

        Raises:
            TrainingError: If there are several processes and some of their devices would be left out.
        """
        mesh = all_devices(dividing=batch_size)
        if jax.process_count() > 1 and mesh.size < jax.device_count():
            raise TrainingError(
                f"A batch of {batch_size} cannot be split evenly over the {jax.device_count()} devices of "
                f"{jax.process_count()} processes. Take a batch size that is a multiple of {jax.device_count()}."
            )
        if mesh.size == 1:
            return cls()
        return cls(batches_of(mesh), partial(split, mesh=mesh), partial(replicate, mesh=mesh), _on_this_device)
