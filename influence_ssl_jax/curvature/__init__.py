"""Compute products with curvature matrices, gradients of examples, and second moments of gradients."""
