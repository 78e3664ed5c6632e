"""Define the bundled handwritten digits with planted duplicates, blanks and noise."""

import dataclasses
import math

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from PIL import Image

from influence_ssl_jax.data.arrays import InMemory
from influence_ssl_jax.data.source import Source
from influence_ssl_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class _Row:
    """An image with what is known about it."""

    image: np.ndarray
    label: int
    planted: str
    original: int  # position of the original before the shuffle, −1 if there is none
    id: str


@dataclasses.dataclass(frozen=True)
class Digits(Source):
    """The 1,797 digits of scikit-learn with planted duplicates, blanks and noise.

    They are enlarged to RGB and need no download. The attributes contain the truth: `planted` is none,
    exact_duplicate, near_duplicate, blank or noise; `original` is the index of the digit that a duplicate repeats, else
    −1; `label` is the digit, null for blank and noise. A digit that is repeated has `planted` = none, because no pixel
    distinguishes a copy from its original.

    Attributes:
        size: Height and width of an image in pixels.
        digits: Number of real digits.
        exact_duplicates: Number of planted copies, bit for bit, as a share of `digits`.
        near_duplicates: Number of planted copies with a shift by one pixel, noise or another brightness, as a share of
            `digits`.
        blanks: Number of planted images of one grey level, as a share of `digits`.
        noise: Number of planted images of independent uniform noise, as a share of `digits`.
        seed: Seed of the choice of planted images and of the order.

    Examples:
        >>> from influence_ssl_jax import Digits
        >>> opened = Digits(digits=100).open()
        >>> len(opened), opened.attributes()["planted"].to_pylist().count("exact_duplicate")
        (115, 5)
    """

    size: int = 16
    digits: int = 1797
    exact_duplicates: float = 0.05
    near_duplicates: float = 0.05
    blanks: float = 0.02
    noise: float = 0.03
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers and shares that are impossible."""
        if not 1 <= self.digits <= 1797 or self.size < 1:
            raise DataError(f"digits must be 1…1797 and size at least 1, got digits={self.digits}, size={self.size}.")
        shares = (self.exact_duplicates, self.near_duplicates, self.blanks, self.noise)
        if not all(0 <= share < math.inf for share in shares) or self.exact_duplicates + self.near_duplicates > 1:
            raise DataError(
                f"Shares are finite and must not be negative, and each digit is repeated at most once, got {shares}; keep "
                "exact_duplicates + near_duplicates at 1 or less."
            )

    def _open(self) -> InMemory:
        """Enlarge the digits, plant the other images, and shuffle all."""
        # Two generators, so that what is planted does not depend on the size.
        choice, pixels = np.random.default_rng(self.seed).spawn(2)
        rows = self._originals(choice)
        rows = [*rows, *self._duplicates(rows, choice, pixels), *self._empty(pixels)]
        order = choice.permutation(len(rows))
        place = np.empty(len(rows), np.int64)
        place[order] = np.arange(len(rows))
        rows = [rows[old] for old in order]
        originals = [int(place[row.original]) if row.original >= 0 else -1 for row in rows]
        columns = {
            "label": pa.array([None if row.label < 0 else row.label for row in rows], pa.int32()),
            "planted": pa.array([row.planted for row in rows]),
            "original": pa.array(originals, pa.int32()),
        }
        labels = np.array([row.label for row in rows], np.int32)
        ids, truth = [row.id for row in rows], ("planted", "original")
        return InMemory(np.stack([row.image for row in rows]), labels, ids, pa.table(columns), truth)

    def _originals(self, rng: np.random.Generator) -> list[_Row]:
        """Choose and enlarge real digits."""
        from sklearn.datasets import load_digits  # slow to import, and only this source needs it

        images, labels = load_digits(return_X_y=True)
        chosen = np.sort(rng.choice(len(images), self.digits, replace=False))
        return [
            _Row(_enlarge(images[k].reshape(8, 8), self.size), int(labels[k]), "none", -1, f"digit_{k:04d}")
            for k in chosen
        ]

    def _duplicates(self, rows: list[_Row], choice: np.random.Generator, pixels: np.random.Generator) -> list[_Row]:
        """Copy some digits, exactly or with a change."""
        exact, near = round(self.exact_duplicates * self.digits), round(self.near_duplicates * self.digits)
        chosen = choice.permutation(len(rows))[: exact + near]
        planted = []
        for k in chosen[:exact]:
            planted.append(
                dataclasses.replace(rows[k], planted="exact_duplicate", original=int(k), id=f"{rows[k].id}_again")
            )
        for k in chosen[exact:]:
            image = _CHANGES[len(planted) % len(_CHANGES)](rows[k].image, pixels)
            planted.append(_Row(image, rows[k].label, "near_duplicate", int(k), f"{rows[k].id}_changed"))
        return planted

    def _empty(self, rng: np.random.Generator) -> list[_Row]:
        """Make blank and noise images."""
        shape = (self.size, self.size, 3)
        blank, noise = round(self.blanks * self.digits), round(self.noise * self.digits)
        blanks = [np.full(shape, rng.integers(256), np.uint8) for _ in range(blank)]
        noises = [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(noise)]
        return [
            *(_Row(image, -1, "blank", -1, f"blank_{k:03d}") for k, image in enumerate(blanks)),
            *(_Row(image, -1, "noise", -1, f"noise_{k:03d}") for k, image in enumerate(noises)),
        ]


def _enlarge(digit: np.ndarray, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Resize 8×8 grey levels 0…16 to size×size×3 levels 0…255."""
    grey = Image.fromarray(np.round(digit * (255 / 16)).astype(np.uint8))
    return np.repeat(np.asarray(grey.resize((size, size), Image.Resampling.BICUBIC))[..., None], 3, axis=-1)


def _shift(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shift an image by one pixel."""
    down, right = ((0, 1), (2, 1), (1, 0), (1, 2))[rng.integers(4)]
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    return padded[down : down + image.shape[0], right : right + image.shape[1]]


def _add_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add normal noise with σ = 4 grey levels."""
    return np.clip(np.round(image + rng.normal(0, 4, image.shape)), 0, 255).astype(np.uint8)


def _dim(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Multiply the brightness by 0.8 to 0.95."""
    return np.round(image * rng.uniform(0.8, 0.95)).astype(np.uint8)


_CHANGES = (_shift, _add_noise, _dim)
