"""What the closed forms call a number."""

from typing import TypeAlias

from jaxtyping import Array, Float

Scalar: TypeAlias = Float[Array, ""] | float
"""One real number: a Python float, or an array without axes (so that the forms differentiate and `vmap`)."""
