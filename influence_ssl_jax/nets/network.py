"""A linen module in evaluation mode as a pure function of parameters, frozen variables and pixels."""

import dataclasses
import inspect
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.errors import StructureError
from influence_ssl_jax.nets.convolution import canonical_convolutions
from influence_ssl_jax.types import Frozen, Params


@dataclasses.dataclass(frozen=True)
class Network:
    """`embed(params, frozen, images)`: standardise pixels, then apply `module` with its running statistics.

    Whenever something is scored, BatchNorm is in evaluation mode: statistics are constants, read from `frozen`, and an
    example's embedding does not depend on its neighbours.

    Attributes:
        module: Any linen module from images to embeddings.
        method: The module's method to call.
        arguments: Keyword arguments of that method that put it into evaluation mode.
        mean: Per-channel mean subtracted from pixels in [0, 1].
        std: Per-channel standard deviation they are divided by.
    """

    module: nn.Module
    method: str = "__call__"
    arguments: tuple[tuple[str, Hashable], ...] = (("train", False),)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __call__(
        self, params: Params, frozen: Frozen, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch embedding"]:
        """Embed a batch of images with pixels in [0, 1].

        Raises:
            StructureError: `frozen` holds an entry "params", which would replace the parameters.
        """
        refuse_params_in(frozen)
        self._refuse_unknown_arguments()
        collections = {name: value for name, value in frozen.items() if name != "target"}
        apply: Callable[..., Any] = self.module.apply
        with canonical_convolutions():
            embeddings = apply(
                {"params": params, **collections},
                self.standardise(images),
                method=self.method,
                **dict(self.arguments),
            )
        if not isinstance(embeddings, jax.Array) or embeddings.ndim != 2:
            raise ValueError(
                f"{type(self.module).__name__}.{self.method} must return one embedding per image, an array "
                f"[batch, width]; got {getattr(embeddings, 'shape', type(embeddings).__name__)}. "
                "Pool or flatten the features, or name another method."
            )
        return embeddings

    def _refuse_unknown_arguments(self) -> None:
        """Refuse keyword arguments that the method does not take.

        Raises:
            StructureError: There is one; the message names those that it takes.
        """
        known = inspect.signature(getattr(type(self.module), self.method)).parameters
        wrong = [name for name, _ in self.arguments if name not in known]
        if wrong and not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values()):
            raise StructureError(
                f"{type(self.module).__name__}.{self.method} takes no argument {wrong[0]!r}, but {', '.join(known)}. Say "
                "what puts it into evaluation mode: arguments=() if nothing must, else such as (('deterministic', True),)."
            )

    def standardise(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """`(images − mean) / std`, channel by channel."""
        mean, std = (jnp.asarray(value, images.dtype).reshape(1, 1, 1, -1) for value in (self.mean, self.std))
        return (images - mean) / std


def refuse_params_in(frozen: Frozen) -> None:
    """Refuse frozen variables that hold parameters.

    Raises:
        StructureError: There is an entry "params".
    """
    if isinstance(frozen, Mapping) and "params" in frozen:
        raise StructureError(
            "frozen holds an entry 'params', which would be read in place of the parameters that are scored. Pass only "
            "the other collections of variables (such as 'batch_stats') as frozen."
        )
