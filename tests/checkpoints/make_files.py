"""Make the files that the tests read: small checkpoints, written by torch, and what torch's models compute from them.

    pip install torch==2.13.0 safetensors && python tests/checkpoints/make_files.py

Each file is laid out as the project that it is named for lays out its own. Weights and running statistics are random.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch_models as models
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).parent / "files"
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
expected = {}


def images(rows, columns):
    """Two images with pixels in [0, 1], the same in every version of NumPy."""
    places = np.arange(2 * rows * columns * 3, dtype=np.float64).reshape(2, rows, columns, 3)
    return ((0.5 + 0.5 * np.sin(0.37 * places + 0.001 * places**1.5)) % 1).astype(np.float32)


def computed(name, module, normalisation, *sizes):
    mean, std = (torch.tensor(value) for value in normalisation)
    for rows, columns in sizes:
        pixels = (torch.from_numpy(images(rows, columns)) - mean) / std
        with torch.no_grad():
            expected[f"{name}_{rows}x{columns}"] = module(pixels.permute(0, 3, 1, 2)).numpy()


def prefixed(module, prefix):
    return {f"{prefix}{name}": tensor.clone() for name, tensor in module.state_dict().items()}


def solo_learn():
    backbone = models.randomised(models.ResNet(2, (2, 2, 2, 2), False, "solo_learn"), 0)
    projector = models.randomised(models.head(16, 7, 5, norm=False), 1)
    state = prefixed(backbone, "backbone.") | prefixed(projector, "projector.")
    state |= prefixed(models.randomised(nn.Linear(16, 10), 2), "classifier.")
    torch.save({"epoch": 3, "pytorch-lightning_version": "2.1.2", "state_dict": state}, HERE / "solo_learn_simclr.ckpt")
    computed("solo_learn_simclr", backbone, CIFAR10, (32, 32))
    computed("solo_learn_simclr_projector", nn.Sequential(backbone, projector), CIFAR10, (32, 32))

    parts = {}
    for seed, prefix in enumerate(("", "momentum_")):
        parts[f"{prefix}backbone"] = models.randomised(models.ResNet(2, (1, 1, 1, 1), False, "solo_learn"), 10 + seed)
        parts[f"{prefix}projector"] = models.randomised(models.head(16, 7, 5, norm=True), 20 + seed)
    parts["predictor"] = models.randomised(models.head(5, 6, 5, norm=True), 30)
    state = {name: tensor for part, module in parts.items() for name, tensor in prefixed(module, f"{part}.").items()}
    torch.save({"pytorch-lightning_version": "2.1.2", "state_dict": state}, HERE / "solo_learn_byol.ckpt")
    online = nn.Sequential(parts["backbone"], parts["projector"], parts["predictor"])
    computed("solo_learn_byol_predictor", online, CIFAR10, (32, 32))
    target = nn.Sequential(parts["momentum_backbone"], parts["momentum_projector"])
    computed("solo_learn_byol_target", target, CIFAR10, (32, 32))


def resnets():
    basic = models.randomised(models.ResNet(2, (1, 2, 1, 1), False, "imagenet", lambda n: nn.Linear(n, 4)), 40)
    torch.save(basic.state_dict(), HERE / "torchvision.pth", _use_new_zipfile_serialization=False)
    computed("torchvision", basic, IMAGENET, (64, 64), (40, 56))

    cifar = models.randomised(models.ResNet(2, (1, 1, 1, 1), False, "cifar"), 41)
    torch.save({"state_dict": prefixed(cifar, "module.")}, HERE / "resnet_cifar.pth")
    computed("resnet_cifar", cifar, CIFAR10, (32, 32))

    deep = models.randomised(models.ResNet(2, (1, 1, 1, 1), True, "imagenet"), 42)
    projector = models.randomised(models.head(64, 6, 6, 6, norm=True, bias=(False, False)), 43)
    norm = nn.BatchNorm1d(6, affine=False)
    state = {
        **prefixed(deep, "module.backbone."),
        **prefixed(projector, "module.projector."),
        **prefixed(norm, "module.bn."),
    }
    args = argparse.Namespace(lambd=0.0051, checkpoint_dir=Path("checkpoint"))
    torch.save({"epoch": 1, "model": state, "optimizer": {"state": {}}, "args": args}, HERE / "barlow_twins.pth")
    computed("barlow_twins", deep, IMAGENET, (64, 64))
    computed("barlow_twins_projector", nn.Sequential(deep, projector), IMAGENET, (64, 64))

    moco = models.randomised(models.ResNet(2, (1, 1, 1, 1), True, "imagenet"), 44)
    fc = models.randomised(models.head(64, 64, 5, norm=False), 45)
    state = {**prefixed(moco, "module.encoder_q."), **prefixed(fc, "module.encoder_q.fc.")}
    state |= {"module.encoder_k.conv1.weight": torch.zeros(2, 3, 7, 7), "module.queue": torch.zeros(5, 3)}
    torch.save({"arch": "resnet50", "state_dict": state}, HERE / "moco.pth.tar")
    computed("moco", moco, IMAGENET, (64, 64))
    computed("moco_projector", nn.Sequential(moco, fc), IMAGENET, (64, 64))


def transformers():
    dino = models.randomised(models.ViT(4, 16, 2, 2, 24, 4, offset=0.1), 50)
    other = models.randomised(models.ViT(4, 16, 2, 2, 24, 4, offset=0.1), 51)
    top = {"module.head.last_layer.weight_g": torch.ones(7, 1)}
    pair = {"student": prefixed(other, "module.backbone.") | top, "teacher": prefixed(dino, "backbone.") | top}
    torch.save({**pair, "epoch": 2, "args": argparse.Namespace(arch="vit_small")}, HERE / "dino.pth")
    computed("dino", dino, IMAGENET, (16, 16), (24, 20))
    computed("dino_student", other, IMAGENET, (16, 16))

    v2 = models.randomised(models.ViT(4, 16, 2, 2, 24, 4, scaled=True, offset=0.1), 52)
    state = {**prefixed(v2, ""), "mask_token": torch.zeros(1, 16)}
    chunked = {
        name.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.1.1."): t for name, t in state.items()
    }
    torch.save(chunked, HERE / "dinov2.pth")
    computed("dinov2", v2, IMAGENET, (16, 16), (28, 12))

    with_registers = models.ViT(
        4,
        16,
        2,
        2,
        24,
        4,
        registers="register_tokens",
        count=3,
        feed_forward=models.GatedFused,
        scaled=True,
        antialias=True,
    )
    with_registers = models.randomised(with_registers, 53)
    state = {**prefixed(with_registers, ""), "mask_token": torch.zeros(1, 16)}
    save_file(state, HERE / "dinov2_registers.safetensors", {"format": "pt"})
    computed("dinov2_registers", with_registers, IMAGENET, (8, 12), (24, 20))

    v3 = models.ViT(4, 16, 2, 2, 24, 0, registers="storage_tokens", count=4, epsilon=1e-5, scaled=True, masked=True)
    v3 = models.randomised(v3, 54)
    torch.save({**prefixed(v3, ""), "mask_token": torch.zeros(1, 16)}, HERE / "dinov3.pth")
    computed("dinov3", v3, IMAGENET, (16, 16), (24, 20))
    gated = models.ViT(4, 16, 2, 1, 24, 0, feed_forward=models.Gated, epsilon=1e-5, scaled=True, masked=True)
    gated = models.randomised(gated, 55)
    torch.save(prefixed(gated, ""), HERE / "dinov3_gated.pth")
    computed("dinov3_gated", gated, IMAGENET, (16, 16), (24, 20))

    mae = models.randomised(models.ViT(4, 16, 2, 2, 24, 4), 56)
    state = {**prefixed(mae, ""), "mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 16)}
    torch.save({"model": state}, HERE / "mae.pth")
    computed("mae", mae, IMAGENET, (16, 16), (24, 20))
    tuned = models.randomised(models.ViT(4, 16, 2, 1, 24, 4, pooled=True), 57)
    torch.save({"model": prefixed(tuned, "") | prefixed(nn.Linear(16, 3), "head.")}, HERE / "mae_tuned.pth")
    computed("mae_tuned", tuned, IMAGENET, (16, 16), (12, 20))

    timm = models.ViT(
        4, 16, 2, 1, 24, 4, registers="reg_token", count=2, own_position=False, antialias=True, bias=False
    )
    timm = models.randomised(timm, 58)
    save_file(prefixed(timm, ""), HERE / "timm.safetensors")
    computed("timm", timm, IMAGENET, (16, 16), (12, 24))


def convnext():
    net = models.randomised(models.ConvNeXt((4, 6, 8, 10), (1, 1, 2, 1)), 60)
    torch.save({"model": net.state_dict()}, HERE / "convnext.pth")
    computed("convnext", net, IMAGENET, (64, 64), (64, 96))


def containers():
    """Arrays of every type and form that a file can hold, and things that are not arrays."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    content = {
        "float64": base.double(),
        "float16": base.half(),
        "bfloat16": base.bfloat16(),
        "int64": base.long(),
        "uint8": base.byte(),
        "bool": base > 3,
        "parameter": nn.Parameter(base.clone()),
        "transposed": base.T,
        "part": base[1:3, ::2],
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "settings": {"rate": 0.5, "names": ["a", "b"], "size": torch.Size([2, 3]), "none": None, "yes": True},
        "namespace": argparse.Namespace(a=1),
        "path": Path("somewhere"),
    }
    torch.save(content, HERE / "containers.pt")
    torch.save(content, HERE / "containers_legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(nn.Linear(2, 2), HERE / "whole_model.pt")
    arrays = {name: t.contiguous() for name, t in content.items() if isinstance(t, torch.Tensor) and t.ndim}
    save_file(
        {name: t.detach().clone() for name, t in arrays.items()}, HERE / "containers.safetensors", {"made": "here"}
    )


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    for make in (solo_learn, resnets, transformers, convnext, containers):
        make()
    np.savez_compressed(HERE / "expected.npz", **expected)
