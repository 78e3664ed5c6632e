"""Define networks: backbones and heads as linen modules, evaluated as pure functions."""

from influence_ssl_jax.nets.network import Network

__all__ = ["Network"]
