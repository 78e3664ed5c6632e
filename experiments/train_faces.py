"""Train BYOL on faces in torch, for the questions of Figures 7 and 8.

    python experiments/train_faces.py byol_resnet18w8_fairface.ckpt --fairface DIR
    influence-ssl import byol_resnet18w8_fairface.ckpt --out experiments/encoders/byol_torch_w8_fairface --size 64 \
        --mean 0.5 0.5 0.5 --std 0.25 0.25 0.25 --storage float16 --notes byol_resnet18w8_fairface.ckpt.history.json

DIR holds FairFace (Kärkkäinen & Joo 2021, CC BY 4.0) as it is published: fairface_label_train.csv, fairface_label_val.csv,
and the images that they name: here the first 8,000 and 1,000, at 64 × 64 pixels. Images that are absent are left out.
Labels are never trained on. Needs torch, numpy and pillow, none of this package.

ResNet-18 of few channels with solo-learn's stem (3 × 3, stride 1, padding 2, no max-pool), bfloat16, SGD with a cosine
over the epochs. Beside the checkpoint stands its history: the loss, and the accuracy of 20 neighbours at telling race and
gender together (14 classes) of the images of val. The same command continues where it was stopped.

Found (40 epochs, 52 minutes of one core): 20 neighbours among the 8,000 tell the race of 28.6 % of the 1,000 images of val
(before training 20.3 %, most frequent value 18.8 %), gender of 61.9 % (59.2 %, 52.5 %) and age of 27.3 % (27.3 %, 29.4 %); a
linear probe 34.4, 67.3 and 34.1 % (27.9, 59.5 and 30.3 % before). In batches of 256, after a tenth as many steps, it told
none better than before.
"""
# pyright: reportMissingImports=false

import argparse
import copy
import csv
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

MEAN, STD = 0.5, 0.25
LUMA = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
STRENGTH, HUE = 0.4, 0.1
NEIGHBOURS, TEMPERATURE = 20, 0.07


class Block(nn.Module):
    """Two convolutions and a shortcut, with torchvision's names."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        rest = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + rest)


class ResNet18(nn.Module):
    """Images [batch, 3, height, width] to representations [batch, 8 width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 1, 2, bias=False), nn.BatchNorm2d(width)
        for stage in range(4):
            inputs, outputs = width * 2 ** max(stage - 1, 0), width * 2**stage
            blocks = nn.Sequential(Block(inputs, outputs, 2 if stage else 1), Block(outputs, outputs, 1))
            setattr(self, f"layer{stage + 1}", blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Represent images."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(4):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x.mean((2, 3))


def head(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Return two linear layers with batch normalisation between."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def rgb_to_hsv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return hue, saturation and value, each in [0, 1]."""
    red, green, blue = x.unbind(1)
    top, low = x.amax(1), x.amin(1)
    spread = top - low
    sixths = torch.where(
        top == red,
        ((green - blue) / (spread + 1e-8)) % 6,
        torch.where(top == green, (blue - red) / (spread + 1e-8) + 2, (red - green) / (spread + 1e-8) + 4),
    )
    return sixths / 6, spread / (top + 1e-8), top


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Return colours in [0, 1]."""

    def channel(offset: int) -> Tensor:
        k = (offset + hue * 6) % 6
        return value - value * saturation * torch.clamp(torch.minimum(k, 4 - k), 0, 1)

    return torch.stack([channel(5), channel(3), channel(1)], 1)


def augment(x: Tensor) -> Tensor:
    """Return a view of every image: crop and flip, jitter of colours, sometimes without colour."""
    n = x.shape[0]
    area, ratio = torch.empty(n).uniform_(0.08, 1), torch.exp(torch.empty(n).uniform_(math.log(3 / 4), math.log(4 / 3)))
    w, h = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = w * torch.where(torch.rand(n) < 0.5, -1.0, 1.0), h
    theta[:, 0, 2], theta[:, 1, 2] = (torch.rand(n) * 2 - 1) * (1 - w), (torch.rand(n) * 2 - 1) * (1 - h)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, mode="bicubic", padding_mode="reflection", align_corners=False).clamp(0, 1)
    chosen = torch.rand(n) < 0.8
    x[chosen] = jitter(x[chosen])
    grey = torch.rand(n) < 0.2
    x[grey] = (x[grey] * LUMA).sum(1, keepdim=True).expand(-1, 3, -1, -1)
    return x


def jitter(x: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue of every image, in this order."""
    n = len(x)

    def factor() -> Tensor:
        return torch.empty(n, 1, 1, 1).uniform_(max(0, 1 - STRENGTH), 1 + STRENGTH)

    x = (x * factor()).clamp(0, 1)
    contrast, mean = factor(), (x * LUMA).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    x = (x * contrast + (1 - contrast) * mean).clamp(0, 1)
    saturation = factor()
    x = (x * saturation + (1 - saturation) * (x * LUMA).sum(1, keepdim=True)).clamp(0, 1)
    hue, saturated, value = rgb_to_hsv(x)
    return hsv_to_rgb((hue + torch.empty(n, 1, 1).uniform_(-HUE, HUE)) % 1, saturated, value)


def standardise(x: Tensor) -> Tensor:
    """Return pixels in [0, 1] as the network reads them."""
    return ((x - MEAN) / STD).contiguous(memory_format=torch.channels_last)


def read(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Read the images of a split, with race and gender as one number."""
    with (folder / f"fairface_label_{split}.csv").open(encoding="utf-8", newline="") as table:
        rows = [row for row in csv.DictReader(table) if (folder / row["file"]).exists()]
    races = sorted({row["race"] for row in rows})
    pixels = np.stack([np.asarray(Image.open(folder / row["file"]).convert("RGB")) for row in rows])
    groups = torch.tensor([races.index(row["race"]) * 2 + (row["gender"] == "Male") for row in rows])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), groups


class Byol:
    """BYOL's networks, and one step of training."""

    def __init__(self, width: int) -> None:
        self.parts: dict[str, nn.Module] = {"backbone": ResNet18(width).to(memory_format=torch.channels_last)}
        # A seed means the same numbers for SimCLR, BYOL and Barlow Twins: all three projectors are drawn, BYOL's is kept.
        head(8 * width, 512, 128)
        self.parts["projector"] = head(8 * width, 512, 128)
        nn.Sequential(nn.Linear(8 * width, 512), nn.Linear(512, 512), nn.Linear(512, 512))
        self.parts["predictor"] = head(128, 512, 128)
        trained = [parameter for part in self.parts.values() for parameter in part.parameters()]
        for name in ("backbone", "projector"):
            self.parts[f"momentum_{name}"] = copy.deepcopy(self.parts[name]).requires_grad_(False)
        groups = [
            {"params": [each for each in trained if each.ndim > 1], "weight_decay": 1e-4},
            {"params": [each for each in trained if each.ndim == 1], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True)

    def loss(self, images: Tensor) -> Tensor:
        """Return the loss of two views of every image, each predicting the target of the other."""
        views = torch.cat([standardise(augment(images.clone())), standardise(augment(images.clone()))])
        with torch.autocast("cpu", torch.bfloat16):
            predicted = self.parts["predictor"](self.parts["projector"](self.parts["backbone"](views)))
            with torch.no_grad():
                target = self.parts["momentum_projector"](self.parts["momentum_backbone"](views))
        u, v = F.normalize(predicted.float()).chunk(2), F.normalize(target.float()).chunk(2)
        return 4 - 2 * (u[0] * v[1]).sum(1).mean() - 2 * (u[1] * v[0]).sum(1).mean()

    def step(self, images: Tensor, rate: float, momentum: float) -> float:
        """Take a step; returns the loss before it."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss = self.loss(images)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        with torch.no_grad():
            for name in ("backbone", "projector"):
                pairs = zip(self.parts[f"momentum_{name}"].parameters(), self.parts[name].parameters(), strict=True)
                for target, online in pairs:
                    target.lerp_(online, 1 - momentum)
        return loss.item()

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Return unit representations."""
        network = self.parts["backbone"].train(False)
        with torch.autocast("cpu", torch.bfloat16):
            chunks = [network(standardise(chunk.float() / 255)).float() for chunk in images.split(500)]
        network.train()
        return F.normalize(torch.cat(chunks))


def accuracy(byol: Byol, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]) -> float:
    """Return the share of the images of val that their neighbours in train classify rightly."""
    similarity, nearest = (byol.embed(val[0]) @ byol.embed(train[0]).T).topk(min(NEIGHBOURS, len(train[0])), 1)
    votes = torch.zeros(len(val[0]), int(train[1].max()) + 1)
    votes.scatter_add_(1, train[1][nearest], (similarity / TEMPERATURE).exp())
    return (votes.argmax(1) == val[1]).float().mean().item()


def settings() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--fairface", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=40, help="where the cosine of the learning rate ends")
    parser.add_argument(
        "--until", type=int, help="stop after this epoch; without it, the same command continues to the end"
    )
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Train, and save after every epoch."""
    of = settings()
    torch.manual_seed(of.seed)
    train, val = read(of.fairface, "train"), read(of.fairface, "val")
    if len(train[0]) < of.batch:
        raise SystemExit(f"A batch has {of.batch} images, the folder {len(train[0])} of train: choose --batch smaller.")
    byol, epoch, history, used = Byol(of.width), 0, [], 0.0
    described = {name: value for name, value in vars(of).items() if name not in ("out", "fairface", "until")}
    described |= {"method": "byol", "images": len(train[0])}
    state = of.out.with_name(of.out.name + ".resume")
    if state.exists():
        kept = torch.load(state, weights_only=True)
        if kept["arguments"] != described:
            raise SystemExit(
                f"{state} was begun with {kept['arguments']}, not {described}: choose another name for it."
            )
        for name, part in byol.parts.items():
            part.load_state_dict(kept["parts"][name])
        byol.optimiser.load_state_dict(kept["optimiser"])
        epoch, history, used = kept["epoch"], kept["history"], kept["used"]
        torch.set_rng_state(kept["random"])
    starts = range(0, len(train[0]) - of.batch + 1, of.batch)
    last = of.epochs if of.until is None else min(of.until, of.epochs)
    while epoch < last:
        order, losses, began = torch.randperm(len(train[0])), [], time.process_time()
        for start in starts:
            share = (epoch + start / (len(train[0]) - of.batch + 1)) / of.epochs
            falling = 0.5 * (1 + math.cos(math.pi * share))
            images = train[0][order[start : start + of.batch]].float() / 255
            losses.append(byol.step(images, of.lr * min(1, share / 0.03) * falling, 1 - 0.01 * falling))
        epoch += 1
        knn = accuracy(byol, train, val) if epoch == last or epoch % 3 == 1 else None
        used += time.process_time() - began
        history.append({"epoch": epoch, "loss": sum(losses) / len(losses), "knn": knn, "cpu_seconds": round(used)})
        print(history[-1], flush=True)
        parts = {name: part.state_dict() for name, part in byol.parts.items()}
        weights = {f"{name}.{leaf}": value.contiguous() for name, part in parts.items() for leaf, value in part.items()}
        about = {"epoch": epoch, "global_step": epoch * len(starts), "pytorch-lightning_version": "2.1.2"}
        torch.save({**about, "state_dict": weights}, of.out)
        told = json.dumps({"arguments": described, "history": history}, indent=1)
        of.out.with_name(of.out.name + ".history.json").write_text(told, encoding="utf-8")
        kept = {"parts": parts, "optimiser": byol.optimiser.state_dict(), "epoch": epoch, "history": history}
        kept |= {"used": used, "random": torch.get_rng_state(), "arguments": described}
        torch.save(kept, state.with_suffix(".writing"))
        os.replace(state.with_suffix(".writing"), state)


if __name__ == "__main__":
    main()
