"""Show images as small pictures with their score and attributes."""

import base64
import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from PIL import Image

from influence_ssl_jax import data
from influence_ssl_jax.configuration import restore
from influence_ssl_jax.data.examples import UnreadableExample, content_of
from influence_ssl_jax.data.source import Source
from influence_ssl_jax.data.to_input import UnusableImage
from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.report.scored_run import ScoredRun
from influence_ssl_jax.scoring.table import IN_CURVATURE_SET
from influence_ssl_jax.store import CONTENT

Images: TypeAlias = Callable[[int], np.ndarray]
"""A function from the number of an example to its pixels."""

LARGEST = 96
"""Longest side of a picture in pixels."""
LONGEST = 28
"""Number of characters of an attribute that are shown."""


@dataclasses.dataclass(frozen=True)
class Tile:
    """An example of a gallery.

    Attributes:
        picture: A PNG as a data URI; empty if there is none.
        missing: Why there is no picture.
        id: Name of the example.
        index: Its number.
        score: Its score.
        planted: The kind that it was planted as; empty if it was not planted.
        badges: Some of its attributes, each as (name, text).
    """

    picture: str
    missing: str
    id: str
    index: int
    score: float
    planted: str
    badges: tuple[tuple[str, str], ...]


def images_of(run: ScoredRun, shown: int, source: Source | None = None) -> tuple[Images | None, str]:
    """Return a source's images, or None and the reason.

    A source that has changed since it was scored has no images. An image that has changed has no picture.

    Args:
        run: The scores.
        shown: Number of images of each end that are shown.
        source: The source to read; None takes the one that the run names.
    """
    try:
        named = source or restore(run.record.get("configuration", {}).get("source"), data.SOURCES)
        opened = named.open()
        scored = (run.record.get("identity") or {}).get("data")
        if scored is not None and opened.members() != scored:
            return None, "the data set has changed since it was scored, so its images may be different ones"
    except InfluenceError as error:
        return None, str(error)
    pictured = pa.concat_tables(run.ends(shown))
    names = dict(zip(pictured["index"].to_pylist(), pictured["id"].to_pylist(), strict=True))
    known = pictured[CONTENT].to_pylist() if CONTENT in pictured.column_names else [None] * pictured.num_rows
    contents = dict(zip(pictured["index"].to_pylist(), known, strict=True))

    def image(index: int) -> np.ndarray:
        if index >= len(opened):
            raise UnusableImage("the data set has fewer images now")
        example = opened.read(index)
        if example.id != names[index]:
            raise UnusableImage(f"it had another name when it was scored, {names[index]!r}")
        if contents[index] is not None and content_of(example) != contents[index]:
            raise UnusableImage("it has changed since it was scored")
        return example.image

    return image, ""


def tiles(rows: pa.Table, images: Images | None, known: Sequence[str]) -> list[Tile]:
    """Return the examples of some rows, in order, with attributes `known`."""
    return [_tile(row, known, images) for row in rows.to_pylist()]


def _tile(row: dict, known: Sequence[str], images: Images | None) -> Tile:
    """Return the example of a row."""
    planted = row.get("planted") or "none"
    inside = (("in the curvature set", "in curvature set"),) if row.get(IN_CURVATURE_SET) else ()
    picture, missing = _picture(row["index"], images)
    return Tile(
        picture=picture,
        missing=missing,
        id=row["id"],
        index=row["index"],
        score=row["score"],
        planted="" if planted == "none" else str(planted).replace("_", " "),
        badges=(*inside, *((name, _shorten(name, row[name])) for name in known if row[name] is not None))[:3],
    )


def _shorten(name: str, value: object) -> str:
    """Write an attribute in at most `LONGEST` characters.

    Numbers come with the name of the attribute.
    """
    text = value if isinstance(value, str) else f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _picture(index: int, images: Images | None) -> tuple[str, str]:
    """Return an image as a small PNG, or why there is none.

    The PNG is in a data URI.
    """
    if images is None:
        return "", ""
    try:
        return data_uri(np.asarray(images(index))), ""
    except UnusableImage as error:
        return "", str(error)
    except UnreadableExample:
        return "", "not readable"


def data_uri(image: np.ndarray) -> str:
    """Return pixels as a `data:` address of a PNG.

    Its sides have at most `LARGEST` pixels.

    Raises:
        UnusableImage: If the array is not an image.

    Examples:
        >>> import numpy as np
        >>> data_uri(np.zeros((2, 3), np.uint8))[:30]
        'data:image/png;base64,iVBORw0K'
    """
    height, width = image.shape[:2]
    shrink = min(1.0, LARGEST / max(height, width))
    size = max(1, round(height * shrink)), max(1, round(width * shrink))
    pixels = data.ToInput(*size, channels=3, resize="lanczos", crop="stretch", background=255)(image)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
