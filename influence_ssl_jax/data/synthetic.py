"""Define a data set of computed images, of any size without memory."""

import dataclasses

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from influence_ssl_jax.data.examples import Example, OpenSource, digest
from influence_ssl_jax.data.source import Source
from influence_ssl_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Synthetic(Source):
    """Noisy colour gratings, computed when read, with orientation as class.

    They serve tests of scale. `image = ½ + 0.35 cos(2π f (x cos α + y sin α) + φ) + 0.05 n` with class `index mod
    classes`, `α = π class / classes`, and for each image a random frequency `f` of 1 to 3 periods, a random phase `φ` for
    each colour, and normal noise `n`.

    Attributes:
        count: Number of images.
        size: Height and width of an image in pixels.
        classes: Number of orientations.
        seed: Seed of all random numbers.

    Examples:
        >>> from influence_ssl_jax import Synthetic
        >>> opened = Synthetic(count=3, size=8, classes=2).open()
        >>> opened.read(2).image.shape, opened.labels().tolist()
        ((8, 8, 3), [0, 1, 0])
    """

    count: int = 10_000
    size: int = 16
    classes: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse counts and sizes below 1."""
        if min(self.count, self.size, self.classes) < 1:
            raise DataError(
                f"count, size and classes must be at least 1, got {self.count}, {self.size} and {self.classes}."
            )

    def _open(self) -> "OpenSynthetic":
        """Return the data set; there is nothing to find."""
        return OpenSynthetic(dataclasses.replace(self, only=None))


class OpenSynthetic(OpenSource):
    """An opened data set of gratings."""

    def __init__(self, recipe: Synthetic) -> None:
        self._recipe = recipe

    def __len__(self) -> int:
        return self._recipe.count

    def read(self, index: int) -> Example:
        """Compute one image."""
        recipe = self._recipe
        rng = np.random.default_rng([recipe.seed, index])
        angle = np.pi * (index % recipe.classes) / recipe.classes
        y, x = np.mgrid[: recipe.size, : recipe.size] / recipe.size
        wave = rng.uniform(1, 3) * (x * np.cos(angle) + y * np.sin(angle))
        phase = rng.uniform(0, 1, 3)
        levels = 0.5 + 0.35 * np.cos(2 * np.pi * (wave[..., None] + phase))
        levels = levels + 0.05 * rng.standard_normal(levels.shape)
        image = np.round(255 * levels.clip(0, 1)).astype(np.uint8)
        return Example(index, str(index), image, index % recipe.classes)

    def ids(self) -> list[str]:
        """Return the numbers of the images as text."""
        return [str(index) for index in range(len(self))]

    def labels(self) -> Int[np.ndarray, " examples"]:
        """Return the number of the orientation of every image."""
        return (np.arange(len(self)) % self._recipe.classes).astype(np.int32)

    def attributes(self) -> pa.Table:
        """Return the class as the only attribute."""
        return pa.table({"label": self.labels()})

    def fingerprint(self) -> str:
        """Return a hash of the settings."""
        return digest("synthetic", repr(self._recipe))
