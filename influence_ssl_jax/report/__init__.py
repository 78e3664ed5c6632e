"""The report of a scored data set: one self-contained HTML page (`report.render`)."""

from influence_ssl_jax.errors import require

require("report")
