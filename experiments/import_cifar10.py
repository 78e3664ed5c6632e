r"""Does an encoder that was trained in torch classify as well when it is imported here?

SimCLR on all 50,000 training images of CIFAR-10, 29 epochs, ResNet-18 of width 16 with solo-learn's stem (padding 2), in
bfloat16. Its own account, kept in the encoder's description: 0.6465 of 2,000 test images are classified rightly by their 20
nearest neighbours among the first 20,000 training images, in tensorflow-datasets' order, votes weighted by
exp(cosine / 0.07). One standard error is 0.0107.

    influence-ssl import simclr_resnet18w16_cifar10.ckpt --out experiments/encoders/simclr_torch_w16_cifar10 \
        --dataset cifar10 --loss simclr --storage float16 --notes simclr_resnet18w16_cifar10.ckpt.history.json
    python experiments/import_cifar10.py --data-dir DIR

BYOL, trained by the same program for 30 epochs, has 0.5955 by its own account, and 0.5950 here: one image. Its file is
kept without the target network (no `--loss`), which would make it larger than 3 MB.

    influence-ssl import byol_resnet18w16_cifar10.ckpt --out experiments/encoders/byol_torch_w16_cifar10 \
        --dataset cifar10 --storage float16 --notes byol_resnet18w16_cifar10.ckpt.history.json
    python experiments/import_cifar10.py --data-dir DIR --encoder experiments/encoders/byol_torch_w16_cifar10

Barlow Twins, trained for 24 epochs, has 0.6355 by its own account, which computes in bfloat16. Here it has 0.6300; torch in
float32 counts 0.6285 for the same file.

    influence-ssl import barlow_twins_resnet18w16_cifar10.ckpt --out experiments/encoders/barlow_twins_torch_w16_cifar10 \
        --dataset cifar10 --loss barlow_twins --storage float16 --notes barlow_twins_resnet18w16_cifar10.ckpt.history.json
    python experiments/import_cifar10.py --data-dir DIR --encoder experiments/encoders/barlow_twins_torch_w16_cifar10

Time: 2 minutes on two busy cores. Found: 0.6465, the same 2,000 images counted. Read with a stem of padding 1, which has
kernels of the same shape, the same weights classify 0.6415 rightly (--stem cifar): the accuracy does not tell the stems
apart, the embeddings do.
"""

import dataclasses
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from influence_ssl_jax.cli.environment import keep_convolutions_whole
from influence_ssl_jax.data import Digits, Tfds, batches
from influence_ssl_jax.encoder import Encoder
from influence_ssl_jax.nets.heads import SelfSupervised
from influence_ssl_jax.nets.network import Network
from influence_ssl_jax.nets.resnet import Stem
from influence_ssl_jax.train.probes import Labelled, embed_all, knn_accuracy

HERE = Path(__file__).parent
ENCODER = HERE / "encoders" / "simclr_torch_w16_cifar10"


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured.

    Attributes:
        data_dir: Where tensorflow-datasets keeps prepared data sets.
        images: Which data: CIFAR-10, or the bundled digits, which need no download.
        encoder: The imported encoder.
        bank: Training images that vote.
        queries: Test images that are classified.
        stem: The stem that the weights are read with.
    """

    data_dir: Path | None = None
    images: Literal["cifar10", "digits"] = "cifar10"
    encoder: Path = ENCODER
    bank: int = 20_000
    queries: int = 2_000
    stem: Stem = "solo_learn"


def run(config: Config) -> float:
    """Embed, classify, and print the accuracy."""
    encoder = with_stem(Encoder.load(config.encoder), config.stem)
    embed = jax.jit(encoder.network)

    def labelled(split: str, count: int) -> Labelled:
        place = None if config.data_dir is None else str(config.data_dir)
        cifar10 = Tfds("cifar10", f"{split}[:{count}]", place)
        source = (cifar10 if config.images == "cifar10" else Digits(32, digits=count)).open()
        loaded = batches(source, encoder.input, 500, jax.random.key(0), np.arange(count))
        pixels = (each.batch for each in loaded)
        return embed_all(
            lambda batch: embed(encoder.params, encoder.frozen, jnp.asarray(batch.image, jnp.float32) / 255), pixels
        )

    accuracy = knn_accuracy(labelled("train", config.bank), labelled("test", config.queries), 20, 0.07)
    print(f"{accuracy:.4f} of {config.queries:,} images, stem {config.stem}")
    return accuracy


def with_stem(encoder: Encoder, stem: Stem) -> Encoder:
    """Return the encoder with the weights of its stem's convolution read by another stem."""
    network = encoder.network
    assert isinstance(network, Network)
    assert isinstance(network.module, SelfSupervised)
    module = network.module.clone(backbone=network.module.backbone.clone(stem=stem))
    return dataclasses.replace(encoder, network=dataclasses.replace(network, module=module))


if __name__ == "__main__":
    keep_convolutions_whole()
    run(tyro.cli(Config))
