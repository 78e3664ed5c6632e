"""Linear algebra without models."""
