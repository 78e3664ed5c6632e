"""Compute products with curvature matrices, examples' gradients, and their second moments."""
