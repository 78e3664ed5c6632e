"""ResNet-18 and its heads in plain float64 numpy on torch-layout state dicts: [out, in, height, width], NCHW."""

from collections.abc import Mapping

import numpy as np

State = Mapping[str, np.ndarray]


def convolution(x: np.ndarray, kernel: np.ndarray, stride: int, padding: int) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[2:], axis=(2, 3))
    return np.einsum("nihwab,oiab->nohw", windows[:, :, ::stride, ::stride], kernel)


def batch_norm(state: State, name: str, x: np.ndarray) -> np.ndarray:
    shape = (1, -1, *[1] * (x.ndim - 2))
    plain = {"weight": np.ones(1), "bias": np.zeros(1)}
    mean, variance, weight, bias = (
        state.get(f"{name}.{leaf}", plain.get(leaf)).reshape(shape)
        for leaf in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


def basic_block(state: State, name: str, x: np.ndarray, stride: int) -> np.ndarray:
    y = convolution(x, state[f"{name}.conv1.weight"], stride, 1)
    y = np.maximum(batch_norm(state, f"{name}.bn1", y), 0)
    y = batch_norm(state, f"{name}.bn2", convolution(y, state[f"{name}.conv2.weight"], 1, 1))
    if f"{name}.downsample.0.weight" in state:
        x = convolution(x, state[f"{name}.downsample.0.weight"], stride, 0)
        x = batch_norm(state, f"{name}.downsample.1", x)
    return np.maximum(x + y, 0)


def resnet18(state: State, images: np.ndarray, padding: int = 1) -> np.ndarray:
    x = convolution(images.transpose(0, 3, 1, 2), state["backbone.conv1.weight"], 1, padding)
    x = np.maximum(batch_norm(state, "backbone.bn1", x), 0)
    for stage in range(4):
        for block in range(2):
            stride = 2 if stage > 0 and block == 0 else 1
            x = basic_block(state, f"backbone.layer{stage + 1}.{block}", x, stride)
    return x.mean((2, 3))


def head(state: State, name: str, x: np.ndarray) -> np.ndarray:
    """torch's `Sequential` of Linear, BatchNorm1d and ReLU, where a ReLU stands before every Linear but the first."""
    positions = sorted({int(key.split(".")[1]) for key in state if key.startswith(f"{name}.")})
    for position in positions:
        if f"{name}.{position}.running_mean" in state:
            x = batch_norm(state, f"{name}.{position}", x)
        else:
            x = np.maximum(x, 0) if position != positions[0] else x
            x = x @ state[f"{name}.{position}.weight"].T + state.get(f"{name}.{position}.bias", 0)
    return x


def random_state(width: int, heads: Mapping[str, tuple[int | None, ...]], seed: int) -> dict[str, np.ndarray]:
    """A state dict as torch would save it; a head is its layer widths with `None` for a BatchNorm and −1 for a ReLU."""
    rng = np.random.default_rng(seed)
    state: dict[str, np.ndarray] = {}

    def norm(name: str, channels: int) -> None:
        state[f"{name}.weight"] = rng.uniform(0.5, 1.5, channels)
        state[f"{name}.bias"] = rng.normal(size=channels) / 5
        state[f"{name}.running_mean"] = rng.normal(size=channels) / 5
        state[f"{name}.running_var"] = rng.uniform(0.5, 1.5, channels)
        state[f"{name}.num_batches_tracked"] = np.asarray(7)

    def kernel(name: str, out: int, into: int, window: int) -> None:
        fan = into * window * window
        state[f"{name}.weight"] = rng.normal(size=(out, into, window, window)) / np.sqrt(fan)

    kernel("backbone.conv1", width, 3, 3)
    norm("backbone.bn1", width)
    into = width
    for stage in range(4):
        out = width * 2**stage
        for block in range(2):
            name = f"backbone.layer{stage + 1}.{block}"
            kernel(f"{name}.conv1", out, into, 3)
            norm(f"{name}.bn1", out)
            kernel(f"{name}.conv2", out, out, 3)
            norm(f"{name}.bn2", out)
            if into != out:
                kernel(f"{name}.downsample.0", out, into, 1)
                norm(f"{name}.downsample.1", out)
            into = out
    for name, layers in heads.items():
        size = layers[0]
        for position, layer in enumerate(layers[1:]):
            if layer is None:
                norm(f"{name}.{position}", size)
            elif layer != -1:
                state[f"{name}.{position}.weight"] = rng.normal(size=(layer, size)) / np.sqrt(size)
                state[f"{name}.{position}.bias"] = rng.normal(size=layer) / 5
                size = layer
    return {name: np.asarray(array, np.float32).astype(np.float64) for name, array in state.items()}
