"""dattri 0.3.0: self-influence with the identity as curvature, by its public attributor."""

import numpy as np
import torch
from dattri.algorithm.base import BaseInnerProductAttributor
from dattri.task import AttributionTask

from benchmarks.peers.resnet import Residuals, ResNet18


class Identity(BaseInnerProductAttributor):
    """Inner products of per-example gradients: the base class as it is."""


class Dattri:
    """`‖g‖²` of every example, over every parameter.

    Args:
        network: The ResNet-18.
        pairs: Both views of every example.
        batch: Examples at a time.
    """

    def __init__(self, network: ResNet18, pairs: torch.Tensor, batch: int) -> None:
        model = Residuals(network)

        def loss(params: dict[str, torch.Tensor], data: tuple[torch.Tensor, ...]) -> torch.Tensor:
            return torch.func.functional_call(model, params, (data[0],)).square().sum() / 2

        state = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
        self.attributor = Identity(AttributionTask(loss, model, state), device="cpu")
        self.loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(pairs), batch_size=batch)
        self.attributor.full_train_dataloader = self.loader

    def scores(self) -> np.ndarray:
        """Its own loop over the data set, which computes a batch's gradients once for every batch and once more."""
        return self.attributor.self_attribute(self.loader).detach().numpy()

    def batch_scores(self) -> np.ndarray:
        """What its loop would do were no batch's gradients computed again: its two representations of each batch."""
        found = []
        for (pairs,) in self.loader:
            data = (pairs[None],)
            left = self.attributor.generate_train_rep(ckpt_idx=0, data=data)
            right = self.attributor.generate_test_rep(ckpt_idx=0, data=data)
            found.append(torch.einsum("ij,ij->i", left, right))
        return torch.cat(found).detach().numpy()
