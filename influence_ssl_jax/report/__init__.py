"""Write the report of a scored data set as one self-contained HTML page (`report.render`)."""

from influence_ssl_jax.errors import require

require("report")
