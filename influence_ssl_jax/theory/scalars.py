"""What the closed forms call a number."""

from typing import TypeAlias

from jaxtyping import Array, Float

Scalar: TypeAlias = Float[Array, ""] | float | int
"""One real number: a Python number, or an array without axes (so that the forms differentiate and `vmap`)."""
