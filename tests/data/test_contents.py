"""The digest of what was read, and reads that fail for reasons outside the image."""

import errno
import os

import jax
import numpy as np
import pytest
from PIL import Image

from influence_ssl_jax.data import Arrays, Folder, Tfds, ToInput, batches, cache
from influence_ssl_jax.data import examples as sources
from influence_ssl_jax.data.arrays import InMemory
from influence_ssl_jax.data.contents import find_changes, refuse_changes
from influence_ssl_jax.data.examples import content_digest
from influence_ssl_jax.data.loader import draw_curvature_set
from influence_ssl_jax.errors import DataError
from influence_ssl_jax.runs.prepare import refuse_other_classes

INPUT = ToInput(4, 4)


@pytest.fixture
def images(tmp_path):
    draw = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    monkeypatch.setattr(sources, "WAITS", (0.0, 0.0))


def loaded(source):
    return [content for each in batches(source, INPUT, 4, jax.random.key(0)) for content in each.contents if content]


def test_a_batch_holds_the_digest_of_every_example_over_bytes_or_pixels(images, prepared):
    folder = Folder(str(images)).open()
    assert loaded(folder) == [content_digest((images / f"{k}.png").read_bytes()) for k in range(6)]
    transform = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    assert loaded(Arrays(transform).open()) == [content_digest(image) for image in transform]
    tfds = Tfds("tiny_shapes", "train", str(prepared)).open()
    read = [each for each in tfds.read_many(range(len(tfds))) if hasattr(each, "image")]
    assert loaded(tfds) == [each.content for each in read] == [tfds.content(each.index) for each in read]
    assert loaded(cache(folder, INPUT)) == loaded(folder)


def test_digests_tell_shape_type_and_every_bit_apart():
    image = np.zeros((2, 3, 3), np.uint8)
    one_bit = image.copy()
    one_bit[1, 2, 2] = 1
    others = [image.reshape(3, 2, 3), image.astype(np.uint16), one_bit, image.tobytes()]
    assert len({content_digest(each) for each in [image, *others]}) == 5
    assert content_digest(np.asfortranarray(one_bit)) == content_digest(one_bit)


def test_the_curvature_set_knows_what_it_was_read_from(images):
    source = Folder(str(images)).open()
    drawn = draw_curvature_set(source, INPUT, count=5, batch_size=2, seed=0)
    assert drawn.contents == {int(k): source.content(int(k)) for k in np.asarray(drawn.batches.index).ravel()}
    assert len(drawn.contents) == 4  # of five, as many as whole batches take


def test_changed_swapped_and_vanished_images_are_named_and_time_stamps_are_not(images):
    source = Folder(str(images)).open()
    index, ids = np.arange(6), [f"{k}.png" for k in range(6)]
    before = [source.content(k) for k in range(6)]
    for name in ids:
        os.utime(images / name, (1, 1))
    assert find_changes(source, index, ids, before) == []
    one, two = (images / "1.png").read_bytes(), (images / "2.png").read_bytes()
    (images / "1.png").write_bytes(two)
    (images / "2.png").write_bytes(one)
    (images / "4.png").unlink()
    changes = find_changes(source, index, ids, before)
    assert [(change.id, change.reason) for change in changes] == [
        ("1.png", "its bytes are different"),
        ("2.png", "its bytes are different"),
        ("4.png", "it cannot be read any more: the file is gone"),
    ]
    with pytest.raises(
        DataError, match=r"3 images have changed since then:\n  1.png \(example 1\): its bytes are different"
    ):
        refuse_changes(changes, "since then", "Put them back.")
    assert find_changes(source, index, ids, [None] * 6) == []


class Failing(InMemory):
    """Images whose reading fails so many times before it succeeds."""

    def __init__(self, error, times):
        super().__init__(np.zeros((3, 4, 4, 3), np.uint8))
        self.error, self.left = error, times

    def read(self, index):
        if self.left:
            self.left -= 1
            raise self.error
        return super().read(index)


PASSING = [OSError(number, os.strerror(number)) for number in (errno.ESTALE, errno.EMFILE, errno.EACCES, errno.EIO)]


@pytest.mark.parametrize("error", [*PASSING, MemoryError()], ids=lambda error: type(error).__name__)
def test_a_failure_that_is_not_the_images_is_tried_again_and_then_stops_the_run(error):
    assert len(loaded(Failing(error, 2))) == 3
    with pytest.raises(DataError, match=r"Images cannot be read: .*3 times in a row. The images may be intact"):
        loaded(Failing(error, 99))


@pytest.mark.parametrize("error", [*PASSING, MemoryError()], ids=lambda error: type(error).__name__)
def test_a_file_that_cannot_be_opened_for_now_is_no_skipped_image(images, monkeypatch, error):
    """The error of the system call itself, below every decoder."""
    source, left = Folder(str(images)).open(), [2]
    opened = os.open

    def failing(path, *arguments, **options):
        if str(path).endswith("3.png") and left[0]:
            left[0] -= 1
            raise error
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", failing)
    assert len(loaded(source)) == 6
    left[0] = 99
    with pytest.raises(DataError, match="The images may be intact"):
        loaded(source)


def test_a_decoder_without_memory_is_no_skipped_image(images, monkeypatch):
    from influence_ssl_jax.data import encoded

    def without(*_, **__):
        raise MemoryError

    monkeypatch.setattr(encoded.ImageOps, "exif_transpose", without)
    with pytest.raises(DataError, match="The images may be intact"):
        loaded(Folder(str(images)).open())


def test_damage_of_the_image_itself_is_a_skip(images):
    (images / "2.png").write_bytes((images / "2.png").read_bytes()[:40])
    (images / "3.png").write_bytes(b"")
    source = Folder(str(images)).open()
    (images / "5.png").unlink()
    skipped = [each for batch in batches(source, INPUT, 4, jax.random.key(0)) for each in batch.skipped]
    assert [each.index for each in skipped] == [2, 3, 5]


def test_classes_have_names_in_the_order_of_their_numbers(images):
    (images / "t.csv").write_text(
        "file,a,b\n" + "".join(f"{k}.png,{'zebra' if k % 2 else 'ant'},{k}\n" for k in range(6))
    )
    named = Folder(str(images), str(images / "t.csv"), label_column="a").open()
    assert named.class_names() == cache(named, INPUT).class_names() == ("ant", "zebra")
    assert [named.read(k).label for k in range(2)] == [0, 1]
    assert Folder(str(images), str(images / "t.csv"), label_column="b").open().class_names() == tuple("012345")
    refuse_other_classes(["ant", "zebra"], ("ant", "zebra"))
    with pytest.raises(DataError, match=r"trained on the classes \['ant', 'bee', 'zebra'\] and these images have"):
        refuse_other_classes(["ant", "bee", "zebra"], named.class_names())


def test_the_class_column_and_the_links_are_part_of_a_folders_fingerprint(images):
    (images / "t.csv").write_text("file,a,b\n" + "".join(f"{k}.png,{k % 2},{k % 3}\n" for k in range(6)))
    described = [Folder(str(images), str(images / "t.csv"), label_column=name) for name in ("a", "b", None)]
    described.append(Folder(str(images), str(images / "t.csv"), links="follow"))
    assert len({each.open().fingerprint() for each in described}) == 4
