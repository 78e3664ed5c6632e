"""Minimal torch models of the networks that other people's checkpoints are of, written for the tests.

They are run once, by `make_files.py`, which keeps their files and outputs: the tests themselves need no torch.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    """A basic or bottleneck block under torchvision's names."""

    def __init__(self, into, width, stride, bottleneck):
        super().__init__()
        out = 4 * width if bottleneck else width
        sizes = (
            [(into, width, 1), (width, width, 3), (width, out, 1)]
            if bottleneck
            else [(into, width, 3), (width, out, 3)]
        )
        self.count = len(sizes)
        for number, (a, b, window) in enumerate(sizes, 1):
            step = stride if number == (2 if bottleneck else 1) else 1
            setattr(self, f"conv{number}", nn.Conv2d(a, b, window, step, window // 2, bias=False))
            setattr(self, f"bn{number}", nn.BatchNorm2d(b))
        self.downsample = None
        if stride > 1 or into != out:
            self.downsample = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        y = x
        for number in range(1, self.count + 1):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
            y = F.relu(y) if number < self.count else y
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, width, blocks, bottleneck, stem, fc=None):
        super().__init__()
        self.imagenet = stem == "imagenet"
        window, stride, padding = {"imagenet": (7, 2, 3), "solo_learn": (3, 1, 2), "cifar": (3, 1, 1)}[stem]
        self.conv1 = nn.Conv2d(3, width, window, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        into = width
        for stage, count in enumerate(blocks):
            here = []
            for number in range(count):
                here.append(Residual(into, width * 2**stage, 2 if stage and not number else 1, bottleneck))
                into = width * 2**stage * (4 if bottleneck else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*here))
        self.features = into
        if fc is not None:
            self.fc = fc(into)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        if self.imagenet:
            x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return x.mean((2, 3))


def head(*widths, norm, bias=(True, True)):
    layers = []
    for number, (a, b) in enumerate(itertools.pairwise(widths)):
        last = number == len(widths) - 2
        layers.append(nn.Linear(a, b, bias=bias[last]))
        if not last:
            layers += [nn.BatchNorm1d(b), nn.ReLU()] if norm else [nn.ReLU()]
    return nn.Sequential(*layers)


class Attention(nn.Module):
    def __init__(self, width, heads, bias):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x, rotation=None):
        b, n, w = x.shape
        bias = self.qkv.bias
        if hasattr(self.qkv, "bias_mask"):
            bias = bias * self.qkv.bias_mask
        q, k, v = F.linear(x, self.qkv.weight, bias).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, n, w))


def rotate(x, cosine, sine):
    first = x.shape[-2] - cosine.shape[0]
    prefix, patches = x[..., :first, :], x[..., first:, :]
    a, b = patches.chunk(2, -1)
    return torch.cat([prefix, patches * cosine + torch.cat([-b, a], -1) * sine], -2)


class Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class GatedFused(nn.Module):
    """DINOv2's."""

    def __init__(self, width, hidden):
        super().__init__()
        self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x):
        a, b = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(a) * b)


class Gated(nn.Module):
    """DINOv3's."""

    def __init__(self, width, hidden):
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


class Scale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, width, heads, hidden, feed_forward, epsilon, scaled, bias):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, epsilon), nn.LayerNorm(width, epsilon)
        self.attn = Attention(width, heads, bias)
        self.mlp = feed_forward(width, hidden)
        if scaled:
            self.ls1, self.ls2 = Scale(width), Scale(width)
        self.scaled = scaled

    def forward(self, x, rotation=None):
        y = self.attn(self.norm1(x), rotation)
        x = x + (self.ls1(y) if self.scaled else y)
        y = self.mlp(self.norm2(x))
        return x + (self.ls2(y) if self.scaled else y)


class ViT(nn.Module):
    """A transformer whose positions are stored (`grid` > 0) or rotary (`grid` = 0)."""

    def __init__(
        self,
        patch,
        width,
        heads,
        depth,
        hidden,
        grid,
        *,
        registers=None,
        count=0,
        feed_forward=Mlp,
        epsilon=1e-6,
        scaled=False,
        own_position=True,
        pooled=False,
        offset=None,
        antialias=False,
        masked=False,
        bias=True,
    ):
        super().__init__()
        self.patch, self.grid, self.pooled, self.own = patch, grid, pooled, own_position
        self.offset, self.antialias, self.registers = offset, antialias, registers
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if registers:
            setattr(self, registers, nn.Parameter(torch.zeros(1, count, width)))
        if grid:
            self.pos_embed = nn.Parameter(torch.zeros(1, grid**2 + own_position, width))
        else:
            per = width // heads
            self.rope_embed = nn.Module()
            self.rope_embed.register_buffer("periods", 100.0 ** (2 * torch.arange(per // 4) / (per // 2)))
        self.blocks = nn.ModuleList(
            [Block(width, heads, hidden, feed_forward, epsilon, scaled, bias) for _ in range(depth)]
        )
        if masked:
            for block in self.blocks:
                mask = torch.ones(3 * width)
                mask[width : 2 * width] = 0
                block.attn.qkv.register_buffer("bias_mask", mask)
        setattr(self, "fc_norm" if pooled else "norm", nn.LayerNorm(width, epsilon))

    def positions(self, rows, columns):
        patches = self.pos_embed[:, int(self.own) :]
        if (rows, columns) == (self.grid, self.grid):
            return patches
        square = patches.reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        if self.offset:
            scale = [(size + self.offset) / self.grid for size in (rows, columns)]
            square = F.interpolate(square, scale_factor=scale, mode="bicubic", antialias=self.antialias)
        else:
            square = F.interpolate(square, size=(rows, columns), mode="bicubic", antialias=self.antialias)
        assert square.shape[2:] == (rows, columns)
        return square.permute(0, 2, 3, 1).reshape(1, rows * columns, -1)

    def rotation(self, rows, columns):
        axes = [2 * (torch.arange(size) + 0.5) / size - 1 for size in (rows, columns)]
        coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 1)
        angles = (2 * math.pi * coordinates[:, :, None] / self.rope_embed.periods).flatten(1, 2).tile(2)
        return angles.cos(), angles.sin()

    def forward(self, images):
        x = self.patch_embed.proj(images)
        rows, columns = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        first, rotation = self.cls_token, None
        if self.grid:
            x = x + self.positions(rows, columns)
            first = first + self.pos_embed[:, :1] if self.own else first
        else:
            rotation = self.rotation(rows, columns)
        tokens = [first.expand(len(x), -1, -1)]
        if self.registers:
            tokens.append(getattr(self, self.registers).expand(len(x), -1, -1))
        before = sum(each.shape[1] for each in tokens)
        x = torch.cat([*tokens, x], 1)
        for block in self.blocks:
            x = block(x, rotation)
        return self.fc_norm(x[:, before:].mean(1)) if self.pooled else self.norm(x)[:, 0]


class ChannelNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, 1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self, widths, blocks):
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, 4), ChannelNorm(widths[0], 1e-6))
        between = [nn.Sequential(ChannelNorm(a, 1e-6), nn.Conv2d(a, b, 2, 2)) for a, b in itertools.pairwise(widths)]
        self.downsample_layers = nn.ModuleList([stem, *between])
        self.stages = nn.ModuleList(
            [nn.Sequential(*[ConvNeXtBlock(w) for _ in range(n)]) for w, n in zip(widths, blocks, strict=True)]
        )
        self.norm = nn.LayerNorm(widths[-1], 1e-6)
        self.head = nn.Linear(widths[-1], 3)

    def forward(self, x):
        for down, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(down(x))
        return self.norm(x.mean((2, 3)))


def randomised(module, seed):
    """Give every parameter and every running statistic random values, of sizes that keep signals near one."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        with torch.no_grad():
            if name.endswith(("num_batches_tracked", "periods", "bias_mask")):
                continue
            if name.endswith(("running_var", "gamma")) or (name.endswith("weight") and tensor.ndim == 1):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.ndim > 1 and name.endswith("weight"):
                tensor.normal_(0, 1.5 / math.sqrt(tensor[0].numel()), generator=generator)
            else:
                tensor.normal_(0, 0.3, generator=generator)
    return module.eval()
