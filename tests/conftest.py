"""Strict by default: float64, no silent rank promotion, shapes checked at run time, drawn inputs that repeat."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)  # tests compile far longer than they compute
jax.config.update("jax_numpy_rank_promotion", "raise")

install_import_hook("influence_ssl_jax", "beartype.beartype")

settings.register_profile(
    "house", max_examples=25, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("house")
