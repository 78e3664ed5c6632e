"""Exact scores, certificates, calibration, and comparisons of backends."""
