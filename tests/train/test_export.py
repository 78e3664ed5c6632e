"""The encoder of a training: its input is that of the training images."""

import jax.numpy as jnp
import pytest

from influence_ssl_jax.data import ToInput
from influence_ssl_jax.losses import SimCLR
from influence_ssl_jax.train import Trained, tiny

PARTS = {"backbone": {"w": jnp.ones(2)}, "projector": {"w": jnp.ones(3)}}


@pytest.mark.parametrize("channels", [1, 3])
def test_an_encoder_reads_images_of_the_size_and_channels_of_training(channels):
    trained = Trained(tiny(SimCLR()), (8, 10, channels), PARTS, {})
    assert trained.encoder().input == ToInput(8, 10, channels)
    assert trained.encoder(ToInput(9, 9)).input == ToInput(9, 9)
    assert trained.encoder().params == {"backbone": PARTS["backbone"]}
