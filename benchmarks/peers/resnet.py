"""The same ResNet-18 in torch, with the weights of the flax one."""

from collections.abc import Sequence

import jax
import numpy as np
import torch
from flax.traverse_util import flatten_dict
from torch import nn

from benchmarks.measure import on_gpu
from influence_ssl_jax.types import Frozen, Params

DEVICE = torch.device("cuda" if on_gpu() and torch.cuda.is_available() else "cpu")
"""Where torch computes: where JAX does."""
EXACT = jax.default_matmul_precision.value in ("highest", "float32")
torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not EXACT  # as JAX does
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_SHORTCUT = {"shortcut_conv": "downsample.0", "shortcut_bn": "downsample.1"}


class BasicBlock(nn.Module):
    """As torchvision's, with its names."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """Pixels [batch, channels, height, width] → representations; standardises pixels itself."""

    def __init__(self, width: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float64).view(1, -1, 1, 1), persistent=False)
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        for stage in range(4):
            inputs, outputs = width * 2 ** max(stage - 1, 0), width * 2**stage
            blocks = [BasicBlock(inputs, outputs, 2 if stage else 1), BasicBlock(outputs, outputs, 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Represent images."""
        x = torch.relu(self.bn1(self.conv1((images - self.mean) / self.std)))
        for stage in range(4):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x.mean((2, 3))


class Residuals(nn.Module):
    """`z/‖z‖ − z'/‖z'‖` of a pair of views [batch, 2, channels, height, width]: both through one pass, as one batch.

    `network` is called once on `2b` images, or (for libraries that read gradients per call) twice on `b`.
    """

    def __init__(self, network: ResNet18, calls: int = 1) -> None:
        super().__init__()
        self.network = network
        self.calls = calls

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        """Compute one residual for each pair."""
        if self.calls == 1:
            z = self.network(pairs.transpose(0, 1).flatten(0, 1)).unflatten(0, (2, -1))
        else:
            z = torch.stack([self.network(pairs[:, view]) for view in range(2)])
        unit = nn.functional.normalize(z, dim=-1)
        return unit[0] - unit[1]


def converted(params: Params, frozen: Frozen) -> dict[str, torch.Tensor]:
    """Convert flax variables of the backbone to a state dict.

    It is the inverse of `checkpoints.resnet.backbone_source`.
    """
    leaves = flatten_dict({**params}) | flatten_dict({**frozen["batch_stats"]})
    return {_name(path): torch.tensor(_layout(np.asarray(leaf))) for path, leaf in leaves.items()}


def network(params: Params, frozen: Frozen, mean: tuple[float, ...], std: tuple[float, ...]) -> ResNet18:
    """Return the torch network with these weights, in evaluation mode.

    Its memory format is channels-last.
    """
    model = ResNet18(params["conv1"]["kernel"].shape[-1], mean, std).double()
    missing, unexpected = model.load_state_dict(converted(params, frozen), strict=False)
    left = [name for name in missing if not name.endswith("num_batches_tracked")]
    if left or unexpected:
        raise ValueError(f"The two networks differ: torch misses {left}, flax has {unexpected} beside it.")
    dtype = torch.float64 if jax.tree.leaves(params)[0].dtype == np.float64 else torch.float32
    return model.eval().to(DEVICE, dtype, memory_format=torch.channels_last)


def module_name(path: Sequence[str]) -> str:
    """Return the torch name of the flax module at `path`."""
    return ".".join(_SHORTCUT.get(word, word.replace("_", ".") if word.startswith("layer") else word) for word in path)


def as_pairs(views: np.ndarray) -> torch.Tensor:
    """Convert views to pairs [examples, 2, channels, height, width]."""
    return torch.tensor(views.transpose(1, 0, 4, 2, 3).copy(), device=DEVICE)


def _name(path: tuple[str, ...]) -> str:
    return f"{module_name(path[:-1])}.{_LEAVES[path[-1]]}"


def _layout(array: np.ndarray) -> np.ndarray:
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
