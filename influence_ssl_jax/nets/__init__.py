"""Networks: backbones and heads as linen modules, and their evaluation as pure functions."""

from influence_ssl_jax.nets.network import Network

__all__ = ["Network"]
