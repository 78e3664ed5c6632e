"""Procedural images: any number of them in no memory."""

import dataclasses

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from influence_ssl_jax.data.source import Example, OpenSource, Source, digest
from influence_ssl_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Synthetic(Source):
    """Noisy colour gratings computed from their number; the class is the orientation. For tests of scale.

    `image = ½ + 0.35 cos(2π f (x cos α + y sin α) + φ) + 0.05 n` with class `index mod classes`, `α = π class /
    classes`, and per image a random frequency `f` of 1…3 periods, a phase `φ` for each colour, and normal noise `n`.

    Attributes:
        count: How many images there are.
        size: Height and width of an image in pixels.
        classes: How many orientations.
        seed: Seed of everything random.
    """

    count: int = 10_000
    size: int = 16
    classes: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse counts and sizes that are not positive."""
        if min(self.count, self.size, self.classes) < 1:
            raise DataError(f"count, size and classes are at least 1, got {self.count}, {self.size}, {self.classes}.")

    def _open(self) -> "OpenSynthetic":
        """Nothing to find."""
        return OpenSynthetic(dataclasses.replace(self, only=None))


class OpenSynthetic(OpenSource):
    """Images that are computed when they are read."""

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
        """Return the numbers."""
        return [str(index) for index in range(len(self))]

    def labels(self) -> Int[np.ndarray, " examples"]:
        """Return the orientations."""
        return (np.arange(len(self)) % self._recipe.classes).astype(np.int32)

    def attributes(self) -> pa.Table:
        """The class."""
        return pa.table({"label": self.labels()})

    def fingerprint(self) -> str:
        """The recipe."""
        return digest("synthetic", repr(self._recipe))
