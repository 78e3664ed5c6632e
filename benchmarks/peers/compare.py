"""Worst relative errors between this package's numbers and every peer's."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.peers import products
from benchmarks.peers.dattri import Dattri
from benchmarks.peers.kronfluence import Kronfluence
from benchmarks.peers.logix import LogIX
from benchmarks.peers.resnet import Residuals, ResNet18, as_pairs, converted, module_name, network
from benchmarks.results import Finding
from benchmarks.shared import Shared
from influence_ssl_jax import trees
from influence_ssl_jax.checkpoints.layout import fill, shapes_of
from influence_ssl_jax.checkpoints.resnet import backbone_source
from influence_ssl_jax.checkpoints.tensors import Tensor
from influence_ssl_jax.data import ToInput
from influence_ssl_jax.types import Params

if TYPE_CHECKING:
    from benchmarks.agreement import Config, Ours

EXACT, SINGLE = 1e-9, 1e-5
"""Tolerances of float64 and of the float32 forward pass."""


def worst(got: np.ndarray, want: np.ndarray) -> float:
    """Return the largest absolute difference over the largest entry."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape:
        raise ValueError(f"Nothing to compare: {got.shape} and {want.shape}.")
    return float(np.max(np.abs(got - want)) / np.max(np.abs(want)))


def worst_row(got: np.ndarray, want: np.ndarray) -> float:
    """Return the largest relative difference of an entry."""
    return float(np.max(np.abs(np.asarray(got) / np.asarray(want) - 1)))


def worst_of(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> float:
    """Return `worst` over arrays of the same names."""
    if got.keys() != want.keys():
        raise ValueError(f"Other names: {sorted(got.keys() ^ want.keys())}.")
    return max(worst(got[name], want[name]) for name in got)


def against(given: Shared, ours: "Ours", scale: tuple, config: "Config", folder: Path) -> list[Finding]:
    """Compare with every peer."""
    net, pairs = network(given.params, given.frozen, *scale), as_pairs(given.views)
    return [
        *_weights(given, scale),
        *_torch(ours, net, pairs),
        *_dattri(ours, net, pairs, config),
        *_kronfluence(ours, net, pairs, config, folder),
        *_logix(ours, net, pairs, config),
    ]


def _weights(given: Shared, scale: tuple) -> list[Finding]:
    """Compare weights after conversion, and forward passes in float32."""
    held = converted(given.params, given.frozen)
    state = {name: Tensor.of(value.numpy()) for name, value in held.items() if "num_batches" not in name}
    module, (height, width, channels) = given.objective.network.module, given.batches.image.shape[2:]
    shapes = dict(shapes_of(module, ToInput(height, width, channels)))
    back, _ = fill(shapes, state, lambda path: backbone_source(path[1:]), {}, "the network that they are of")
    single = trees.astype({"params": given.params, "batch_stats": given.frozen["batch_stats"]}, jnp.float32)
    same = jax.tree.map(lambda a, b: worst(a, b), back, single)
    frozen = {"batch_stats": single["batch_stats"]}
    images = given.views.reshape(-1, *given.views.shape[2:]).astype(np.float32)
    want = given.objective.network(single["params"], frozen, jnp.asarray(images))
    with torch.no_grad():
        got = network(single["params"], frozen, *scale)(torch.tensor(images.transpose(0, 3, 1, 2).copy()))
    return [
        Finding("torch", "weights, to torch and back", max(jax.tree.leaves(same)), 0.0),
        Finding("torch", "forward pass, float32", worst(got, want), SINGLE),
    ]


def _torch(ours: "Ours", net: ResNet18, pairs: torch.Tensor) -> list[Finding]:
    """Compare gradients, and the products of torch.func and curvlinops."""
    model = Residuals(net)
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(products.mean_loss(model, parameters, pairs), list(parameters.values()))
    given = in_torch(ours.vector)
    vector = {name: given[name] for name in parameters}  # torch.func compares the order of dictionaries too
    got = {
        ("torch.func", "hessian"): products.hessian_product(model, pairs)(vector),
        ("torch.func", "ggn"): products.ggn_product(model, pairs)(vector),
        ("curvlinops", "hessian"): products.curvlinops_product("hessian", model, pairs)(vector),
        ("curvlinops", "ggn"): products.curvlinops_product("ggn", model, pairs)(vector),
    }
    words = {"hessian": "Hessian × vector", "ggn": "Gauss–Newton × vector"}
    return [
        Finding("torch", "gradient", worst_of(_arrays(parameters, gradients), _arrays_of(ours.gradient)), EXACT),
        *[
            Finding(peer, words[kind], worst_of(_named(product), _arrays_of(ours.products[kind])), EXACT)
            for (peer, kind), product in got.items()
        ],
    ]


def _dattri(ours: "Ours", net: ResNet18, pairs: torch.Tensor, config: "Config") -> list[Finding]:
    scores = Dattri(net, pairs, config.setting.batch).scores()
    # It adds up in float32 whatever it is given.
    return [Finding("dattri", "self-influence, identity: ‖g‖²", worst_row(scores, ours.squared_norms), 1e-6)]


def _kronfluence(ours: "Ours", net: ResNet18, pairs: torch.Tensor, config: "Config", folder: Path) -> list[Finding]:
    """Compare the factors and the scores of kronfluence.

    Its S is a mean over positions, ours is their sum.
    """
    findings, peers = [], {}
    for strategy in ("ekfac", "kfac"):
        peers[strategy] = Kronfluence(copy.deepcopy(net), pairs, config.setting.batch, folder / strategy, strategy)
        peers[strategy].fit()
    sides: dict[str, list[float]] = {"A": [], "S": []}
    for name, (inputs, outputs) in ours.factors.items():
        a, s, count = peers["ekfac"].factors()[module_name(name.split("/"))]
        channels = 3 if name == "conv1" else net.get_submodule(module_name(name.split("/"))).in_channels
        sides["A"].append(worst(_window_first(a / count, channels), inputs))
        sides["S"].append(worst(s / count * ours.rows[name], outputs))
    for side, errors in sides.items():
        findings.append(Finding("kronfluence", f"Kronecker factors {side}", max(errors), EXACT))
    for strategy, label in (("ekfac", "EK-FAC"), ("kfac", "K-FAC")):
        error = worst_row(peers[strategy].scores(), ours.scores[f"kronfluence {label}"])
        findings.append(Finding("kronfluence", f"self-influence, {label}", error, 1e-6))
    return findings


def _logix(ours: "Ours", net: ResNet18, pairs: torch.Tensor, config: "Config") -> list[Finding]:
    """Projected gradients of every example, then scores, both in this package's bases."""
    projections = {}
    for name, (left, right) in ours.projections.items():
        torch_name = module_name(name.split("/"))
        kernel = net.get_submodule(torch_name).weight
        reads = left.T.reshape(-1, *kernel.shape[2:], kernel.shape[1]).transpose(0, 3, 1, 2)
        projections[torch_name] = (torch.tensor(reads.copy()), torch.tensor(right.copy())[:, :, None, None])
    peer = LogIX(copy.deepcopy(net), pairs, config.setting.batch, projections=projections)
    rows = peer.gradients(pairs)
    want = {module_name(name.split("/")): value for name, value in ours.projected.items()}
    projected = worst_of({name: value.detach().numpy() for name, value in rows.items()}, want)
    peer.fit()
    return [
        Finding("LogIX's definition", "projected gradients", projected, EXACT),
        Finding("LogIX's definition", "self-influence", worst_row(peer.scores(), ours.scores["LogIX"]), 1e-8),
    ]


def in_torch(tree: Params) -> dict[str, torch.Tensor]:
    """Convert a vector from flax's structure to torch's names."""
    return {f"network.{name}": value for name, value in converted(tree, {"batch_stats": {}}).items()}


def _arrays_of(tree: Params) -> dict[str, np.ndarray]:
    return _named(in_torch(tree))


def _arrays(parameters: dict[str, torch.Tensor], values: tuple[torch.Tensor, ...]) -> dict[str, np.ndarray]:
    return _named(dict(zip(parameters, values, strict=True)))


def _named(values: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in values.items()}


def _window_first(matrix: np.ndarray, channels: int) -> np.ndarray:
    """Reorder a factor of patches from [channel, window] to [window, channel]."""
    order = np.arange(len(matrix)).reshape(channels, -1).T.reshape(-1)
    return matrix[np.ix_(order, order)]
