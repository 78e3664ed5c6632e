"""Imported networks compute what torch computed from the same files, in float32, at every size that was tried."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax import checkpoints
from influence_ssl_jax.checkpoints import Choices

FILES = Path(__file__).parent / "files"
EXPECTED = dict(np.load(FILES / "expected.npz", allow_pickle=False))
CIFAR10 = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}
FILE_OF = {"moco": "moco.pth.tar", "dinov2_registers": "dinov2_registers.safetensors", "timm": "timm.safetensors"}
FILE_OF |= {f"solo_learn_{method}": f"solo_learn_{method}.ckpt" for method in ("simclr", "byol")}
LAYOUT = {"resnet_cifar": "resnet_cifar", "mae_tuned": "mae", "timm": "timm"}
CHOICES = {
    "solo_learn_simclr": Choices(dataset="cifar10", loss="simclr"),
    "solo_learn_byol": Choices(dataset="cifar10", loss="byol"),
    "resnet_cifar": Choices(**CIFAR10),
    "dino_student": Choices(heads=2, part="student"),
}
RESNETS = ("solo_learn", "torchvision", "resnet_cifar", "barlow_twins", "moco")


def images(rows, columns):
    places = np.arange(2 * rows * columns * 3, dtype=np.float64).reshape(2, rows, columns, 3)
    return ((0.5 + 0.5 * np.sin(0.37 * places + 0.001 * places**1.5)) % 1).astype(np.float32)


@functools.cache
def imported(case):
    name = "dino" if case == "dino_student" else case
    choices = CHOICES.get(case, Choices() if case.startswith(RESNETS) else Choices(heads=2))
    if case.startswith(("convnext", "dinov3")):
        choices = Choices()
    return checkpoints.read(FILES / FILE_OF.get(name, f"{name}.pth"), LAYOUT.get(name), choices)


@pytest.mark.parametrize("key", EXPECTED)
def test_outputs_are_torchs(key):
    case, size = key.rsplit("_", 1)
    output = next((part for part in ("projector", "predictor", "target") if case.endswith(part)), "encoder")
    encoder = imported(case.removesuffix(f"_{output}")).encoder
    network, params, frozen = encoder.network, encoder.params, encoder.frozen
    if output == "target":
        objective, _ = encoder.pretraining()
        held = frozen["target"]
        network, params, frozen = objective.target, held["params"], {"batch_stats": held["batch_stats"]}
    elif output != "encoder":
        chosen = encoder.at(output)
        network, params = chosen.network, chosen.params
    got = jax.jit(network)(params, frozen, jnp.asarray(images(*map(int, size.split("x")))))
    want = EXPECTED[key]
    assert got.dtype == jnp.float32
    assert got.shape == want.shape
    bound = 1e-6 if case.startswith(RESNETS) else 1e-5
    assert np.linalg.norm(got - want) < bound * np.linalg.norm(want)
    assert np.linalg.norm(want[0] - want[1]) > 0.01 * np.linalg.norm(want)  # the images are told apart
