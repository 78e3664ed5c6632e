"""The report of a scored data set: one self-contained HTML page."""

from influence_ssl_jax.report.render import Extent, render

__all__ = ["Extent", "render"]
