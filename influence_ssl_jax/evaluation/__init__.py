"""Compute exact scores, enclose them in bounds, calibrate scores, and compare backends."""

from influence_ssl_jax.errors import require

require("data")
