"""Compute with matrices that are known by their products, without any model."""
