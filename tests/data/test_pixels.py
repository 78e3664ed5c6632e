import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from influence_ssl_jax.data import transform
from influence_ssl_jax.data.transform import UndecodableImage, decode

COLOUR = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""

    def chunk(content: bytes) -> bytes:
        return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR" + size) + chunk(b"IDAT" + zlib.compress(b"")) + chunk(b"IEND")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_lossless_files_give_their_pixels(kind, tmp_path):
    content = encoded(Image.fromarray(COLOUR), kind)
    np.testing.assert_array_equal(decode(content), COLOUR)
    (tmp_path / "image").write_bytes(content)
    np.testing.assert_array_equal(decode(tmp_path / "image"), COLOUR)


def test_lossy_files_give_nearly_their_pixels():
    smooth = np.linspace(0, 255, 16 * 16).reshape(16, 16).astype(np.uint8)
    for kind in ("JPEG", "WEBP"):
        decoded = decode(encoded(Image.fromarray(smooth).convert("RGB"), kind, quality=95))
        assert np.abs(decoded[..., 1].astype(int) - smooth).mean() < 3


def test_grey_alpha_and_depth_are_kept():
    grey = COLOUR[..., 0]
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(grey), "PNG")), grey)
    alpha = np.concatenate([COLOUR, grey[..., None]], axis=-1)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(alpha), "PNG")), alpha)
    deep = grey.astype(np.uint16) * 256 + 7
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decode(encoded(Image.fromarray(deep), kind)), deep)


def test_palettes_bitmaps_and_other_colour_spaces_become_colour():
    palette = Image.fromarray(COLOUR).quantize(8)
    np.testing.assert_array_equal(decode(encoded(palette, "PNG")), np.asarray(palette.convert("RGB")))
    see_through = decode(encoded(palette, "PNG", transparency=0))
    assert see_through.shape == (6, 9, 4)
    assert ((see_through[..., 3] == 0) == (np.asarray(palette) == 0)).all()
    bits = Image.fromarray(COLOUR[..., 0] > 127)
    np.testing.assert_array_equal(decode(encoded(bits, "PNG")), np.where(COLOUR[..., 0] > 127, 255, 0))
    assert decode(encoded(Image.fromarray(COLOUR).convert("CMYK"), "JPEG")).shape == (6, 9, 3)


def test_photographs_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(COLOUR), "PNG", exif=exif)), np.rot90(COLOUR, -1))


def test_an_animation_is_its_first_frame():
    frames = [Image.fromarray(np.full((4, 4), level, np.uint8)) for level in (10, 200)]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(animation)[..., :3] == 10).all()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image that Pillow knows"),
        (b"file,age\n1.jpg,3\n", "not an image that Pillow knows"),
        (encoded(Image.fromarray(np.tile(COLOUR, (9, 9, 1))), "JPEG")[:900], "truncated"),
        (encoded(Image.fromarray(COLOUR), "PNG")[:80], "truncated|broken"),
        (header(30_000, 30_000), "exceeds limit|decompression bomb"),
    ],
    ids=["empty", "text", "truncated JPEG", "truncated PNG", "decompression bomb"],
)
def test_damage_is_named(content, reason):
    with pytest.raises(UndecodableImage, match=reason):
        decode(content)


def test_too_many_pixels_are_refused_before_decoding(monkeypatch):
    monkeypatch.setattr(transform, "MAX_PIXELS", 50)
    with pytest.raises(UndecodableImage, match="9×6 pixels, more than the 50"):
        decode(encoded(Image.fromarray(COLOUR), "PNG"))


def test_a_file_that_vanished_is_named(tmp_path):
    with pytest.raises(UndecodableImage, match="the file is gone"):
        decode(tmp_path / "absent.png")
