"""Files of weights that are only in memory."""

from pathlib import Path

import numpy as np

from influence_ssl_jax.checkpoints import WeightsFile
from influence_ssl_jax.checkpoints.tensors import Tensor


def file_of(content, path="weights.pth"):
    """The file that would hold this content; arrays of NumPy for torch's."""
    return WeightsFile(Path(path), _tensors(content))


def lightning(state, path="weights.ckpt"):
    return file_of({"pytorch-lightning_version": "2.1.2", "state_dict": state}, path)


def _tensors(content):
    if isinstance(content, dict):
        return {name: _tensors(value) for name, value in content.items()}
    return Tensor.of(content) if isinstance(content, np.ndarray) else content
