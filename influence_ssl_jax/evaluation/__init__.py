"""Exact scores, certificates, calibration, and comparisons of backends."""

from influence_ssl_jax.errors import require

require("data")
