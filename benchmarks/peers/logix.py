"""LogIX's projected covariance, rebuilt from its definition (its wheel wants Python < 3.11): arXiv 2405.13954.

Beside every convolution stands a bottleneck of two fixed projections A and C with a zero weight B between them; the
gradient of B is the projected gradient `A ∇W Cᵀ` of an example. Its second moment, one matrix per module over all
rank² entries, is inverted with a tenth of its own mean eigenvalue as damping.
"""

import functools
import math

import numpy as np
import torch
from torch import nn

from benchmarks.peers.resnet import Residuals, ResNet18

DEFAULT_RANK = 64


class Bottleneck(nn.Module):
    """`conv(x) + C B A x` with B = 0: the output is unchanged, and the gradient of B is the projected gradient."""

    def __init__(self, convolution: nn.Conv2d, reads: torch.Tensor, writes: torch.Tensor) -> None:
        super().__init__()
        self.convolution = convolution
        self.register_buffer("reads", reads)
        self.register_buffer("writes", writes)
        self.B = nn.Parameter(reads.new_zeros(writes.shape[1], reads.shape[0], 1, 1))
        self.calls: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the convolution, and record projected gradients on the way back."""
        like = self.convolution
        a = nn.functional.conv2d(x, self.reads, None, like.stride, like.padding)
        b = nn.functional.conv2d(a, self.B)
        if b.requires_grad:
            b.register_hook(functools.partial(self._note, a.detach()))
        return like(x) + nn.functional.conv2d(b, self.writes)

    def _note(self, a: torch.Tensor, s: torch.Tensor) -> None:
        self.calls.append(torch.einsum("nkhw,nlhw->nkl", a, s))


def random_projections(convolution: nn.Conv2d, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw LogIX's projections, uniform with variance `1/(3 · fan-in)`.

    The rank is at most the number of channels on either side.
    """
    rank = min(rank, convolution.in_channels, convolution.out_channels)
    reads = convolution.weight.new_empty(rank, *convolution.weight.shape[1:])
    writes = convolution.weight.new_empty(convolution.out_channels, rank, 1, 1)
    for weight in (reads, writes):
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    return reads, writes


class LogIX:
    """Fit and self-influence; `projections` by module name replaces the random ones.

    Args:
        network: The ResNet-18; its convolutions are replaced in place.
        pairs: Both views of every example.
        batch: Examples at a time.
        rank: Of the random projections.
        projections: (reads [rank, in, height, width], writes [out, rank, 1, 1]) by module name.
    """

    def __init__(
        self,
        network: ResNet18,
        pairs: torch.Tensor,
        batch: int,
        rank: int = DEFAULT_RANK,
        projections: dict[str, tuple[torch.Tensor, torch.Tensor]] | None = None,
    ) -> None:
        self.pairs, self.batch = pairs, batch
        self.model = Residuals(network)
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        self.modules: dict[str, Bottleneck] = {}
        for name, module in list(network.named_modules()):
            if isinstance(module, nn.Conv2d):
                projection = random_projections(module, rank) if projections is None else projections[name]
                self.modules[name] = Bottleneck(module, *projection)
                parent, _, own = name.rpartition(".")
                setattr(network.get_submodule(parent), own, self.modules[name])
        self.inverses: dict[str, torch.Tensor] = {}

    def gradients(self, pairs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Projected gradients of a batch by module, [batch, rank²]; the two views of an example are summed."""
        loss = self.model(pairs).square().sum() / 2
        torch.autograd.backward(loss, inputs=[module.B for module in self.modules.values()])
        by_layer = {}
        for name, module in self.modules.items():
            by_layer[name] = module.calls.pop().unflatten(0, (2, -1)).sum(0).flatten(1)
            module.B.grad = None
        return by_layer

    def moments(self) -> dict[str, torch.Tensor]:
        """Compute `C = (1/n) Σ g gᵀ` of every module's projected gradients."""
        total: dict[str, torch.Tensor] = {}
        for pairs in self.pairs.split(self.batch):
            for name, rows in self.gradients(pairs).items():
                total[name] = total.get(name, 0) + rows.T @ rows
        return {name: matrix / len(self.pairs) for name, matrix in total.items()}

    def fit(self) -> None:
        """Compute `(C + 0.1 tr(C)/rank² I)⁻¹` of every module."""
        for name, mean in self.moments().items():
            damped = mean + 0.1 * mean.trace() / len(mean) * torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
            self.inverses[name] = torch.linalg.inv(damped)

    def scores(self) -> np.ndarray:
        """Compute `Σ_modules gᵀ (C + λI)⁻¹ g` of every example."""
        parts = []
        for pairs in self.pairs.split(self.batch):
            rows = self.gradients(pairs)
            parts.append(sum(((g @ self.inverses[name]) * g).sum(1) for name, g in rows.items()))
        return torch.cat(parts).detach().cpu().numpy()
