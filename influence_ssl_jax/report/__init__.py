"""Write the report of a scored data set as one page.

The page is HTML and needs no other file (`report.render`).
"""

from influence_ssl_jax.errors import require

require("report")
