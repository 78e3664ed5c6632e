"""Compute with matrices that are known by their products; this package knows no models."""
