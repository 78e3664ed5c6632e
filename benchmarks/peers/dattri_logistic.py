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

if TYPE_CHECKING:
    from benchmarks.fidelity_tasks import Task


def predictions(given: "Task", left_out: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By method: self-influence of the first examples over the number of all; no prediction of subsets.

    In float32: dattri's Arnoldi iteration draws its start in that type alone.
    """
    batch = given.problem.batches
    x = torch.tensor(np.asarray(batch.image[0]).reshape(len(batch.image[0]), -1), dtype=torch.float32)
    y = torch.tensor(np.asarray(batch.label[0]).astype(np.int64))
    dense = given.problem.params["Dense_0"]
    model = torch.nn.Linear(x.shape[1], 10)
    state = {
        "weight": torch.tensor(np.asarray(dense["kernel"]).T.copy(), dtype=torch.float32),
        "bias": torch.tensor(np.asarray(dense["bias"]), dtype=torch.float32),
    }

    def loss(params: dict[str, torch.Tensor], data: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        logits = torch.func.functional_call(model, params, (data[0],))
        return torch.nn.functional.cross_entropy(logits, data[1])

    everything = torch.utils.data.TensorDataset(x, y)
    train = torch.utils.data.DataLoader(everything, batch_size=len(x))
    first = torch.utils.data.DataLoader(torch.utils.data.Subset(everything, range(left_out)), batch_size=left_out)
    ridge = given.ridge
    attributors = {
        "dattri explicit": IFAttributorExplicit(AttributionTask(loss, model, state), regularization=ridge),
        "dattri CG, 10 steps": IFAttributorCG(AttributionTask(loss, model, state), regularization=ridge),
        "dattri Arnoldi": IFAttributorArnoldi(AttributionTask(loss, model, state), regularization=ridge),
        "dattri DataInf": IFAttributorDataInf(AttributionTask(loss, model, state), regularization=ridge),
    }
    found = {}
    for name, attributor in attributors.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attributor.cache(train)
            scores = attributor.self_attribute(first)
        found[name] = (scores.detach().numpy() / len(x), np.zeros(0))
    return found
