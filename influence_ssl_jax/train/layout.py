"""Where a training run's arrays lie: batches split over the devices, the state whole on each."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax

from influence_ssl_jax.parallel import all_devices, batches_of, replicated, split
from influence_ssl_jax.train.resume import TrainingError
from influence_ssl_jax.train.state import TrainState
from influence_ssl_jax.types import Batch


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
