"""Second-order products of the mean loss in torch: torch.func's forms, and curvlinops' operators."""

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from curvlinops import GGNLinearOperator, HessianLinearOperator
from torch.func import functional_call, grad, jvp, vjp

from benchmarks.peers.resnet import Residuals

Vector: TypeAlias = dict[str, torch.Tensor]
Product: TypeAlias = Callable[[Vector], Vector]


def mean_loss(model: Residuals, parameters: Vector, pairs: torch.Tensor) -> torch.Tensor:
    """Compute the mean over examples of `½‖r‖²`."""
    return functional_call(model, parameters, (pairs,)).square().sum() / 2 / len(pairs)


def hessian_product(model: Residuals, pairs: torch.Tensor) -> Product:
    """Compute the product by forward over reverse mode."""
    parameters = detached(model)
    gradient = grad(lambda parameters: mean_loss(model, parameters, pairs))
    return lambda vector: jvp(gradient, (parameters,), (vector,))[1]


def hessian_product_reverse(model: Residuals, pairs: torch.Tensor) -> Product:
    """Compute the product by reverse over reverse mode, as most torch code."""
    parameters = detached(model)
    gradient = grad(lambda parameters: mean_loss(model, parameters, pairs))
    return lambda vector: vjp(gradient, parameters)[1](vector)[0]


def ggn_product(model: Residuals, pairs: torch.Tensor) -> Product:
    """Compute `Jᵀ J v / n` by a jvp and a vjp."""
    parameters = detached(model)

    def residuals(parameters: Vector) -> torch.Tensor:
        return functional_call(model, parameters, (pairs,))

    def product(vector: Vector) -> Vector:
        pushed = jvp(residuals, (parameters,), (vector,))[1]
        return vjp(residuals, parameters)[1](pushed / len(pairs))[0]

    return product


def curvlinops_operator(kind: Literal["hessian", "ggn"], model: Residuals, pairs: torch.Tensor):
    """Return curvlinops' operator of the mean loss, halved.

    Its mean-squared error is `Σ r²` over batch · width entries.
    """
    operator = {"hessian": HessianLinearOperator, "ggn": GGNLinearOperator}[kind]
    with torch.no_grad():
        target = torch.zeros_like(model(pairs))
    parameters = list(model.parameters())
    loss = torch.nn.MSELoss(reduction="sum")
    return operator(model, loss, parameters, [(pairs, target)], check_deterministic=False) * (0.5 / len(pairs))


def curvlinops_product(kind: Literal["hessian", "ggn"], model: Residuals, pairs: torch.Tensor) -> Product:
    """Apply the operator to vectors by name."""
    operator, names = curvlinops_operator(kind, model, pairs), [name for name, _ in model.named_parameters()]

    def product(vector: Vector) -> Vector:
        return dict(zip(names, operator @ [vector[name] for name in names], strict=True))

    return product


def detached(model: Residuals) -> Vector:
    """Return the parameters outside any graph."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}
