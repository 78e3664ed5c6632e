"""Curvature matrices and per-example gradients of a problem, by products and by layers."""
