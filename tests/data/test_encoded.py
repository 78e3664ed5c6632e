import ctypes
import errno
import gc
import io
import os
import pathlib
import struct
import sys
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from influence_ssl_jax.data import encoded as encoded_images
from influence_ssl_jax.data import examples as sources
from influence_ssl_jax.data.encoded import UndecodableImage, decode
from influence_ssl_jax.errors import DataError

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
        (b"", "not an image in one of the formats"),
        (b"file,age\n1.jpg,3\n", "not an image in one of the formats"),
        (encoded(Image.fromarray(np.tile(COLOUR, (9, 9, 1))), "JPEG")[:900], "truncated"),
        (encoded(Image.fromarray(COLOUR), "PNG")[:80], "truncated|broken"),
        (header(30_000, 30_000), "exceeds limit|decompression bomb"),
    ],
    ids=["empty", "text", "truncated JPEG", "truncated PNG", "decompression bomb"],
)
def test_damage_is_named(content, reason):
    with pytest.raises(UndecodableImage, match=reason):
        decode(content)


def test_too_many_bytes_are_refused_before_decoding(monkeypatch):
    monkeypatch.setattr(encoded_images, "MAX_BYTES", 12 * 54 - 1)
    with pytest.raises(UndecodableImage, match="9×6 pixels need 648 bytes to decode, more than the limit 647"):
        decode(encoded(Image.fromarray(COLOUR), "PNG"))
    assert decode(encoded(Image.fromarray(COLOUR[..., 0]), "PNG")).shape == (6, 9)  # grey takes a quarter


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("kind", ["transparent", "palette", "turned"])
def test_the_bound_of_bytes_holds(kind):
    """Of 3000 × 3000 pixels: what decoding adds to the process's peak is at most what it was estimated to take."""
    image, options = Image.new("RGB", (3000, 3000), (1, 2, 3)), {}
    if kind == "turned":
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    content = encoded(image.convert({"transparent": "RGBA", "palette": "P"}.get(kind, "RGB")), "PNG", **options)
    with Image.open(io.BytesIO(content)) as opened:
        estimate = encoded_images._decoding_bytes(opened)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier tests freed would serve in place of new memory
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak()
    decode(content)
    assert 0.3 * estimate < peak() - before < 1.05 * estimate + 2**22


def peak() -> int:
    """The largest memory of this process so far, in bytes."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    (line,) = (each for each in lines if each.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def test_no_format_that_starts_a_program_is_tried(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("subprocess.check_call", lambda *given, **_: started.append(given))
    monkeypatch.setattr("PIL.EpsImagePlugin.has_ghostscript", lambda: True)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")
    (tmp_path / "x.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EndProlog\nshowpage\n%%EOF\n"
    )
    with pytest.raises(UndecodableImage, match="not an image in one of the formats"):
        decode(tmp_path / "x.png")
    assert started == []


def test_a_photograph_of_several_pictures_is_its_first():
    both = [Image.fromarray(np.full((16, 16, 3), level, np.uint8)) for level in (50, 200)]
    decoded = decode(encoded(both[0], "MPO", save_all=True, append_images=both[1:]))
    assert decoded.shape == (16, 16, 3)
    assert np.abs(decoded.astype(int) - 50).max() < 4


def test_decoding_waits_where_all_threads_together_would_hold_too_much(monkeypatch):
    monkeypatch.setattr(encoded_images, "MAX_BYTES", 10)
    order = []
    with encoded_images._memory.hold(6):
        waiting = threading.Thread(target=lambda: order.append("in") if _held(6) else None)
        waiting.start()
        waiting.join(0.05)
        assert order == []
        order.append("out")
    waiting.join(5)
    assert order == ["out", "in"]


def _held(size: int) -> bool:
    with encoded_images._memory.hold(size):
        return True


def test_levels_beyond_16_bits_are_refused_and_not_cut_off():
    deep = Image.fromarray(np.array([[0, 70_000]], np.int32))
    with pytest.raises(UndecodableImage, match=r"grey levels 0…70000, outside the 0…65535"):
        decode(encoded(deep, "TIFF"))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.ESTALE, errno.EIO])
def test_a_file_that_cannot_be_read_now_is_tried_again_and_then_stops_the_run(number, tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(encoded(Image.fromarray(COLOUR), "PNG"))
    monkeypatch.setattr(sources, "WAITS", (0, 0))
    opened, failures = os.open, [number] * 3

    def failing(path, *given, **named):
        if failures and str(path).endswith("x.png"):
            raise OSError(failures.pop(), os.strerror(number))
        return opened(path, *given, **named)

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(DataError, match=r"cannot be read: .*x\.png', 3 times in a row\. The images may be intact"):
        sources.retry(decode, tmp_path / "x.png")
    assert not failures
    failures.append(number)
    np.testing.assert_array_equal(sources.retry(decode, tmp_path / "x.png"), COLOUR)


def test_running_out_of_memory_is_no_damage(monkeypatch):
    def exhausted(*given, **named):
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", exhausted)
    monkeypatch.setattr(sources, "WAITS", (0, 0))
    with pytest.raises(DataError, match="no memory to decode"):
        sources.retry(decode, encoded(Image.fromarray(COLOUR), "PNG"))


def test_a_file_that_vanished_is_named(tmp_path):
    with pytest.raises(UndecodableImage, match="the file is gone"):
        decode(tmp_path / "absent.png")
