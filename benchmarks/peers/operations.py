"""Torch's operations, to be timed: products, factor fitting and scoring."""

import copy
from pathlib import Path

import torch

from benchmarks.measure import Operation
from benchmarks.peers import products
from benchmarks.peers.dattri import Dattri
from benchmarks.peers.kronfluence import Kronfluence
from benchmarks.peers.logix import LogIX
from benchmarks.peers.resnet import DEVICE, Residuals, as_pairs, network
from benchmarks.shared import Shared


def primitives(given: Shared, scale: tuple, blocks: tuple[int, ...]) -> dict[str, Operation]:
    """Return products over the whole of `given`, as one batch."""
    model, pairs = Residuals(network(given.params, given.frozen, *scale)), as_pairs(given.views)
    parameters = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    vector = {name: torch.randn(value.shape, generator=generator).to(DEVICE) for name, value in parameters.items()}
    tree = products.detached(model)

    def forward() -> None:
        with torch.no_grad():
            products.mean_loss(model, tree, pairs)

    operations: dict[str, Operation] = {
        "forward": forward,
        "gradient": lambda: torch.autograd.grad(
            products.mean_loss(model, parameters, pairs), list(parameters.values())
        ),
    }
    forms = {
        "Hessian × vector, forward over reverse": products.hessian_product(model, pairs),
        "Hessian × vector, reverse over reverse": products.hessian_product_reverse(model, pairs),
        "Gauss–Newton × vector, jvp and vjp": products.ggn_product(model, pairs),
    }
    for name, form in forms.items():
        operations[name] = lambda form=form: form(vector)
    for kind, words in (("hessian", "Hessian"), ("ggn", "Gauss–Newton")):
        operator = products.curvlinops_operator(kind, model, pairs)
        for count in blocks:
            block = [torch.stack([value] * count, dim=-1) for value in vector.values()]
            operations[f"{words} × block of {count}"] = lambda o=operator, b=block: o @ b
    return _to_the_end(operations)


def costs(given: Shared, scale: tuple, batch: int, ranks: tuple[int, ...], folder: Path) -> dict[str, Operation]:
    """Return the operations of every peer that are timed."""
    net, pairs = network(given.params, given.frozen, *scale), as_pairs(given.views)
    model = Residuals(net)
    parameters = dict(model.named_parameters())
    kronfluence = Kronfluence(copy.deepcopy(net), pairs, batch, folder, "ekfac")
    logix = {rank: LogIX(copy.deepcopy(net), pairs, batch, rank) for rank in ranks}
    dattri = Dattri(copy.deepcopy(net), pairs, batch)

    def gradient() -> None:
        for part in pairs.split(batch):
            torch.autograd.grad(products.mean_loss(model, parameters, part), list(parameters.values()))

    operations: dict[str, Operation] = {
        "gradient": gradient,
        "kronfluence EK-FAC, fit": kronfluence.fit,
        "kronfluence EK-FAC, score": kronfluence.scores,
    }
    for rank, peer in logix.items():
        operations[f"LogIX's definition, rank {rank}, fit"] = peer.fit
        operations[f"LogIX's definition, rank {rank}, fit: the pass over the examples"] = peer.moments
        operations[f"LogIX's definition, rank {rank}, score"] = peer.scores
    operations["dattri identity, score"] = dattri.scores
    return _to_the_end(operations)


def megabytes(operation: Operation) -> float:
    """Measure the peak GPU memory of one run above the allocated memory."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    operation()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _to_the_end(operations: dict[str, Operation]) -> dict[str, Operation]:
    """Return operations that wait for the GPU."""
    if DEVICE.type == "cpu":
        return operations

    def waited(operation: Operation) -> Operation:
        def run() -> None:
            operation()
            torch.cuda.synchronize()

        return run

    return {name: waited(operation) for name, operation in operations.items()}
