"""Change the colour of each pixel as torchvision does: jitter, grayscale, solarisation."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from influence_ssl_jax import randomness
from influence_ssl_jax.augment.transform import Transform

_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)


def luminance(image: Float[Array, "height width channels"]) -> Float[Array, "height width 1"]:
    """Compute the luminance of each pixel, `0.2989 R + 0.587 G + 0.114 B`.

    The luminance of a grey image is the image itself.

    Raises:
        ValueError: If the image has neither 1 nor 3 channels.
    """
    if image.shape[-1] not in (1, 3):
        raise ValueError(f"Colour needs images of 1 (grey) or 3 (RGB) channels, got {image.shape[-1]}; convert them.")
    if image.shape[-1] == 1:
        return image
    return (image @ jnp.asarray([0.2989, 0.587, 0.114], image.dtype))[..., None]


def blend(
    image: Float[Array, "height width channels"],
    other: Float[Array, "height width #channels"] | Float[Array, "1 1 1"],
    factor: Float[Array, ""],
) -> Float[Array, "height width channels"]:
    """Blend two images: `factor · image + (1 − factor) · other`, clipped to [0, 1].

    The factor 1 keeps the image; a factor above 1 moves away from `other`. Brightness blends with black, contrast with
    the mean luminance, saturation with the luminance of each pixel.
    """
    return jnp.clip(factor * image + (1 - factor) * other, 0, 1)


def shift_hue(
    image: Float[Array, "height width channels"], shift: Float[Array, ""]
) -> Float[Array, "height width channels"]:
    """Turn the hue by `shift` circles at constant HSV saturation and value.

    A grey image has no hue and stays as it is.
    """
    if image.shape[-1] == 1:
        return image
    red, green, blue = jnp.moveaxis(image, -1, 0)
    value, least = image.max(axis=-1), image.min(axis=-1)
    chroma = value - least
    divisor = jnp.where(chroma == 0, 1, chroma)
    # Channels are compared with each other, not with their maximum: a compiler may compute a channel twice and round it
    # in two ways, so that no channel would equal the maximum.
    sixth = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) / divisor,
        jnp.where(green >= blue, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    # Each channel is a trapezoid wave of the hue, of height `chroma`, a third of the circle apart.
    phase = (jnp.asarray([[[5, 3, 1]]], image.dtype) + sixth[..., None] + 6 * shift) % 6
    wave = jnp.clip(jnp.minimum(phase, 4 - phase), 0, 1)
    return value[..., None] - chroma[..., None] * wave


@dataclasses.dataclass(frozen=True)
class ColourJitter(Transform):
    """Random changes of brightness, contrast, saturation and hue, in random order.

    The first three blend by factors ~ U(max(0, 1 − strength), 1 + strength); the hue turns by ~ U(−hue, hue) circles.

    Attributes:
        brightness: Strength of the change of brightness.
        contrast: Strength of the change of contrast.
        saturation: Strength of the change of saturation.
        hue: Largest turn of the hue in circles, at most ½.

    Examples:
        Jitter of strength 0 leaves an image as it is.

        >>> import jax, jax.numpy as jnp
        >>> from influence_ssl_jax.augment.colour import ColourJitter
        >>> image = jnp.asarray([[[0.5, 0.25, 0.125]]])
        >>> bool(jnp.allclose(jax.jit(ColourJitter())(jax.random.key(0), image), image))
        True
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        """Refuse negative strengths, and a hue of more than half a circle."""
        if min(self.brightness, self.contrast, self.saturation, self.hue) < 0 or self.hue > 0.5:
            raise ValueError(f"Strengths must be at least 0 and hue at most 0.5, got {self}.")

    def __call__(
        self, key: Key[Array, ""], image: Float[Array, "height width channels"]
    ) -> Float[Array, "height width channels"]:
        """Draw the factors and their order, and change the colours."""
        strengths = jnp.asarray([self.brightness, self.contrast, self.saturation], image.dtype)
        draws = randomness.uniform(key, (8,), image.dtype)
        low = jnp.maximum(1 - strengths, 0)
        factors = low + (1 + strengths - low) * draws[:3]
        shift = self.hue * (2 * draws[3] - 1)
        return adjust(image, factors, shift, jnp.argsort(draws[4:]))


def adjust(
    image: Float[Array, "height width channels"],
    factors: Float[Array, " 3"],
    shift: Float[Array, ""],
    order: jax.Array,
) -> Float[Array, "height width channels"]:
    """Change brightness (0), contrast (1), saturation (2), hue (3) in an order.

    The first three blend by `factors`; the hue turns by `shift` circles.

    Under `vmap` a branch costs as much as all branches. The three blends differ only in the image that they blend with,
    so each place of the order is one blend, and the hue, which costs more, is computed once: blends before it, hue,
    blends after it.

    Args:
        image: Pixels in [0, 1].
        factors: Blending factors of brightness, contrast and saturation.
        shift: Turn of the hue in circles.
        order: A permutation of 0 … 3.
    """
    hue_position = jnp.argmax(order == _HUE)

    def blend_at(position: int, image: Array, active: Array) -> Array:
        grey = luminance(image)
        operation = order[position]
        other = jnp.where(operation == _CONTRAST, grey.mean(keepdims=True), grey)
        other = jnp.where(operation == _BRIGHTNESS, jnp.zeros_like(grey), other)
        factor = jnp.where(active, factors[jnp.minimum(operation, _SATURATION)], 1)
        return blend(image, other, factor)

    for position in range(3):
        image = blend_at(position, image, position < hue_position)
    image = shift_hue(image, shift)
    for position in range(1, 4):
        image = blend_at(position, image, position > hue_position)
    return image


@dataclasses.dataclass(frozen=True)
class Grayscale(Transform):
    """A transform that replaces every channel by the luminance.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from influence_ssl_jax.augment.colour import Grayscale
        >>> grey = Grayscale()(jax.random.key(0), jnp.asarray([[[1.0, 0.0, 0.0]]]))
        >>> [round(float(value), 4) for value in grey[0, 0]]
        [0.2989, 0.2989, 0.2989]
    """

    def __call__(
        self, key: Key[Array, ""], image: Float[Array, "height width channels"]
    ) -> Float[Array, "height width channels"]:
        """Remove the colour."""
        del key
        return jnp.broadcast_to(luminance(image), image.shape)


@dataclasses.dataclass(frozen=True)
class Solarise(Transform):
    """A transform that inverts pixels at or above a threshold.

    Attributes:
        threshold: Threshold in [0, 1].

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from influence_ssl_jax.augment.colour import Solarise
        >>> image = jnp.asarray([[[0.25], [0.75]]])
        >>> Solarise(threshold=0.5)(jax.random.key(0), image).ravel().tolist()
        [0.25, 0.25]
    """

    threshold: float = 128 / 255

    def __call__(
        self, key: Key[Array, ""], image: Float[Array, "height width channels"]
    ) -> Float[Array, "height width channels"]:
        """Invert the bright pixels."""
        del key
        return jnp.where(image >= self.threshold, 1 - image, image)
