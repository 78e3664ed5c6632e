"""dattri 0.3.0: self-influence with the identity as curvature, by its public attributor."""

import numpy as np
import torch
from dattri.algorithm.base import BaseInnerProductAttributor
from dattri.task import AttributionTask

from benchmarks.peers.resnet import DEVICE, Residuals, ResNet18


class Identity(BaseInnerProductAttributor):
    """Inner products of per-example gradients: the base class as it is."""


GIGABYTE = 2**30
"""What the gradients of one loader may take: dattri holds them several times over."""


class Dattri:
    """`‖g‖²` of every example, over every parameter.

    Args:
        network: The ResNet-18.
        pairs: Both views of every example.
        batch: Examples at a time, at most: fewer where their gradients take more than a gigabyte.
    """

    def __init__(self, network: ResNet18, pairs: torch.Tensor, batch: int) -> None:
        model = Residuals(network)
        gradient = sum(value.numel() * value.element_size() for value in model.parameters())

        def loss(params: dict[str, torch.Tensor], data: tuple[torch.Tensor, ...]) -> torch.Tensor:
            return torch.func.functional_call(model, params, (data[0],)).square().sum() / 2

        state = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
        self.attributor = Identity(AttributionTask(loss, model, state), device=DEVICE.type)
        # Its `self_attribute` adds a batch's values to those of the whole loader: it takes loaders of one batch only.
        self.loaders = [
            torch.utils.data.DataLoader(torch.utils.data.TensorDataset(part), batch_size=len(part))
            for part in pairs.split(min(batch, max(1, GIGABYTE // gradient)))
        ]

    def scores(self) -> np.ndarray:
        """Score every batch with its own gradients.

        A gradient is computed once as training and once as test representation.
        """
        parts = []
        for loader in self.loaders:
            self.attributor.full_train_dataloader = loader
            parts.append(self.attributor.self_attribute(loader))
        return torch.cat(parts).detach().cpu().numpy()
