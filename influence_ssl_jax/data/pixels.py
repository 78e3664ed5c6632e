"""Image files as arrays."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
"""What counts as an image file, in lower case."""

MAX_PIXELS = 89_478_485
"""Images of more pixels are refused before they are decoded: Pillow's own limit against decompression bombs."""

_AS_STORED = frozenset({"L", "LA", "RGB", "RGBA", "I;16", "I;16L", "I;16B", "F"})


class UndecodableImage(ValueError):
    """Bytes that are not a whole image; the message is the reason."""


def decode(stored: Path | bytes) -> np.ndarray:
    """Pixels of an encoded image, upright, with grey, colour, alpha and 16 bits kept as they are.

    Palettes, bitmaps, CMYK and other colour spaces become RGB (RGBA where they have transparency); the EXIF orientation
    is applied; of an animation the first frame is read.

    Returns:
        [height, width] or [height, width, channels] of uint8, uint16 or float32.

    Raises:
        UndecodableImage: The file is missing, truncated, too large or no image.
    """
    try:
        with Image.open(io.BytesIO(stored) if isinstance(stored, bytes) else stored) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UndecodableImage(f"{width}×{height} pixels, more than the {MAX_PIXELS} that are decoded")
            return np.asarray(_plain(ImageOps.exif_transpose(image)))
    except FileNotFoundError:
        raise UndecodableImage("the file is gone") from None
    except UndecodableImage:
        raise
    except Exception as error:  # Pillow's decoders raise whatever the damage makes them raise
        reason = str(error) if not isinstance(error, Image.UnidentifiedImageError) else "not an image that Pillow knows"
        raise UndecodableImage(reason or type(error).__name__) from error


def _plain(image: Image.Image) -> Image.Image:
    if image.mode in _AS_STORED:
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "I":  # 16-bit grey is opened as 32-bit by some decoders
        return Image.fromarray(np.asarray(image).clip(0, 65535).astype(np.uint16))
    transparent = image.has_transparency_data
    return image.convert("RGBA" if transparent else "RGB")
