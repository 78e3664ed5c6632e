"""Inverse-Hessian backends. The list here is the only one: the command line and the contract tests read it."""

from influence_ssl_jax.ihvp.backend import Backend, Damping, Form, Resolved
from influence_ssl_jax.ihvp.cg import CG
from influence_ssl_jax.ihvp.diagonal import Diagonal
from influence_ssl_jax.ihvp.ekfac import EKFAC
from influence_ssl_jax.ihvp.exact import Exact
from influence_ssl_jax.ihvp.identity import Identity
from influence_ssl_jax.ihvp.kfac import KFAC
from influence_ssl_jax.ihvp.logra import LoGra

BACKENDS: tuple[type[Backend], ...] = (LoGra, EKFAC, KFAC, Diagonal, CG, Exact, Identity)

__all__ = [
    "BACKENDS",
    "CG",
    "EKFAC",
    "KFAC",
    "Backend",
    "Damping",
    "Diagonal",
    "Exact",
    "Form",
    "Identity",
    "LoGra",
    "Resolved",
]
