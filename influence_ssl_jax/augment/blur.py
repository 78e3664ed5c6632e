"""Blur images by a Gaussian of random width."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from influence_ssl_jax import randomness
from influence_ssl_jax.augment.transform import Transform


@dataclasses.dataclass(frozen=True)
class GaussianBlur(Transform):
    """A Gaussian blur of random width, as torchvision defines it.

    The kernel is a sampled Gaussian with sum 1; the image is reflected at its borders.

    Attributes:
        sigma: Range of the standard deviation in pixels; it is drawn uniformly.
        kernel_size: Size of the kernel in pixels, odd; 13 reaches three standard deviations of the widest default.

    Examples:
        A constant image stays as it is, because the kernel has sum 1.

        >>> import jax, jax.numpy as jnp
        >>> from influence_ssl_jax.augment.blur import GaussianBlur
        >>> blurred = GaussianBlur(kernel_size=3)(jax.random.key(0), jnp.full((4, 4, 1), 0.5))
        >>> bool(jnp.allclose(blurred, 0.5))
        True
    """

    sigma: tuple[float, float] = (0.1, 2.0)
    kernel_size: int = 13

    def __post_init__(self) -> None:
        """Refuse an empty range and an even or empty kernel."""
        if not 0 < self.sigma[0] <= self.sigma[1]:
            raise ValueError(f"sigma is a range with 0 < low ≤ high, got {self.sigma}.")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {self.kernel_size}.")

    def __call__(
        self, key: Key[Array, ""], image: Float[Array, "height width channels"]
    ) -> Float[Array, "height width channels"]:
        """Draw the width and blur the image."""
        low, high = self.sigma
        return blur(image, randomness.uniform(key, (), image.dtype, low, high), self.kernel_size)


def blur(
    image: Float[Array, "height width channels"], sigma: Float[Array, ""], kernel_size: int
) -> Float[Array, "height width channels"]:
    """Blur an image by a Gaussian of standard deviation `sigma` pixels.

    `B_rows · image · B_columnsᵀ` with `B[o, i] = Σ_t k_t · [reflect(o + t) = i]` and `k_t ∝ exp(−t²/2σ²)`.

    Raises:
        ValueError: If half of the kernel is as wide as the image, so that a reflection would not fill it.
    """
    reach = kernel_size // 2
    if reach >= min(image.shape[:2]):
        raise ValueError(
            f"A blur of kernel_size={kernel_size} needs images larger than {reach} pixels either way, got "
            f"{image.shape[:2]}; choose a smaller kernel_size."
        )
    offsets = jnp.arange(-reach, reach + 1, dtype=image.dtype)
    density = jnp.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = density / density.sum()
    rows, columns = (jnp.tensordot(kernel, _shifts(n, reach).astype(image.dtype), 1) for n in image.shape[:2])
    return jnp.einsum("oh,hwc,pw->opc", rows, image, columns)


def _shifts(pixels: int, reach: int) -> np.ndarray:
    """Return one matrix per offset `t`: pixel `o` reads pixel `reflect(o + t)`."""
    reflected = np.pad(np.arange(pixels), reach, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(reflected, pixels)
    return windows[..., None] == np.arange(pixels)
