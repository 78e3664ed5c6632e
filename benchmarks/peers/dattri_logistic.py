"""dattri's inverse-Hessian attributors on the softmax regression of `benchmarks.fidelity`."""

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from dattri.algorithm.influence_function import (
    IFAttributorArnoldi,
    IFAttributorCG,
    IFAttributorDataInf,
    IFAttributorExplicit,
)
from dattri.task import AttributionTask

from benchmarks.peers.logistic import regression

if TYPE_CHECKING:
    from benchmarks.fidelity_tasks import Task


def predictions(given: "Task", left_out: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Predict by method; subsets are not predicted.

    A prediction is the self-influence of an example over the number of all examples.

    In float32: dattri's Arnoldi iteration draws its start in that type alone.
    """
    double, train, _ = regression(given)
    model, x, y = double.float(), train.tensors[0].float(), train.tensors[1]
    state = {name: value.detach() for name, value in model.state_dict().items()}

    def loss(params: dict[str, torch.Tensor], data: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        logits = torch.func.functional_call(model, params, (data[0],))
        return torch.nn.functional.cross_entropy(logits, data[1])

    everything = torch.utils.data.TensorDataset(x, y)
    all_at_once = torch.utils.data.DataLoader(everything, batch_size=len(x))
    first = torch.utils.data.DataLoader(torch.utils.data.Subset(everything, range(left_out)), batch_size=left_out)
    ridge = given.ridge
    attributors = {
        "dattri explicit": IFAttributorExplicit(AttributionTask(loss, model, state), regularization=ridge),
        "dattri CG, 10 steps": IFAttributorCG(AttributionTask(loss, model, state), regularization=ridge),
        "dattri Arnoldi": IFAttributorArnoldi(AttributionTask(loss, model, state), regularization=ridge),
        "dattri DataInf": IFAttributorDataInf(AttributionTask(loss, model, state), regularization=ridge),
    }
    predicted = {}
    for name, attributor in attributors.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attributor.cache(all_at_once)
            scores = attributor.self_attribute(first)
        predicted[name] = (scores.detach().numpy() / len(x), np.zeros(0))
    return predicted
