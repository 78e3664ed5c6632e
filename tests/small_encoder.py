"""An encoder that a run can be given by name: tests.small_encoder:load."""

import jax
import jax.numpy as jnp

from influence_ssl_jax.data import ToInput
from influence_ssl_jax.encoder import Encoder
from tests.problems import Small, variables


def load() -> Encoder:
    """`Small` for 8×8 colour images, in float32."""
    params, frozen = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), variables(Small(), size=8, channels=3))
    return Encoder.from_linen(Small(), {"params": params, **frozen}, input=ToInput(8, 8), name="small")
