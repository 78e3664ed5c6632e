"""The images themselves: small pictures with what is known of them."""

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
from influence_ssl_jax.data.source import Source, UnreadableExample, content_of
from influence_ssl_jax.data.transform import UnusableImage
from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.report.scored_run import ScoredRun
from influence_ssl_jax.scoring.table import IN_CURVATURE_SET
from influence_ssl_jax.store import CONTENT

Images: TypeAlias = Callable[[int], np.ndarray]
"""From the number of an example to its pixels."""

LARGEST = 96
"""Longest side of an embedded picture in pixels."""
LONGEST = 28
"""Characters of an attribute that are shown."""


@dataclasses.dataclass(frozen=True)
class Tile:
    """One example of a gallery.

    Attributes:
        picture: A PNG as a data URI; empty where there is none.
        missing: Why there is none.
        id: Its name.
        index: Its number.
        score: Its score.
        planted: What it was planted as, empty where it was not.
        badges: What else is known of it: (name, value).
    """

    picture: str
    missing: str
    id: str
    index: int
    score: float
    planted: str
    badges: tuple[tuple[str, str], ...]


def images_of(run: ScoredRun, shown: int, source: Source | None = None) -> tuple[Images | None, str]:
    """Return the images of a source, by default the one that the run names, or none and why.

    Those of a changed source are other images, and an image that has changed since it was scored is none.

    Args:
        run: The scores.
        shown: How many images of either end of the scores are asked for.
        source: Where they are read from, in place of the source that the run names.
    """
    try:
        named = source or restore(run.record.get("configuration", {}).get("source"), data.SOURCES)
        opened = named.open()
        scored = (run.record.get("identity") or {}).get("data")
        if scored is not None and opened.fingerprint() != scored:
            return None, "the data set has changed since it was scored, so its images may be others"
    except InfluenceError as error:
        return None, str(error)
    pictured = pa.concat_tables(run.ends(shown))
    names = dict(zip(pictured["index"].to_pylist(), pictured["id"].to_pylist(), strict=True))
    known = pictured[CONTENT].to_pylist() if CONTENT in pictured.column_names else [None] * pictured.num_rows
    contents = dict(zip(pictured["index"].to_pylist(), known, strict=True))

    def image(index: int) -> np.ndarray:
        if index >= len(opened):
            raise UnusableImage("the source has fewer images now")
        example = opened.read(index)
        if example.id != names[index]:
            raise UnusableImage(f"scored under another name, {names[index]!r}")
        if contents[index] is not None and content_of(example) != contents[index]:
            raise UnusableImage("it has changed since it was scored")
        return example.image

    return image, ""


def tiles(rows: pa.Table, images: Images | None, known: Sequence[str]) -> list[Tile]:
    """The examples of some rows, in their order, each with the attributes `known`."""
    return [_tile(row, known, images) for row in rows.to_pylist()]


def _tile(row: dict, known: Sequence[str], images: Images | None) -> Tile:
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
        badges=(*inside, *((name, _shortened(name, row[name])) for name in known if row[name] is not None))[:3],
    )


def _shortened(name: str, value: object) -> str:
    """A word speaks for itself; a number needs its name."""
    text = value if isinstance(value, str) else f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _picture(index: int, images: Images | None) -> tuple[str, str]:
    """The image as a PNG of at most LARGEST pixels a side, in its own proportions; or nothing, and why."""
    if images is None:
        return "", ""
    try:
        return data_uri(np.asarray(images(index))), ""
    except UnusableImage as error:
        return "", str(error)
    except UnreadableExample:
        return "", "not readable"


def data_uri(image: np.ndarray) -> str:
    """Pixels as a `data:` address of a small PNG.

    Raises:
        UnusableImage: The array is no image.
    """
    height, width = image.shape[:2]
    shrink = min(1.0, LARGEST / max(height, width))
    size = max(1, round(height * shrink)), max(1, round(width * shrink))
    pixels = data.ToInput(*size, channels=3, resize="lanczos", crop="stretch", background=255)(image)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
