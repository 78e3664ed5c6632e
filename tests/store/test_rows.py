"""A file of rows that is written part by part: resumed, verified, refused where there is no room."""

import errno
import os

import numpy as np
import pytest

from influence_ssl_jax.errors import FullDiskError, StoreError
from influence_ssl_jax.ihvp.disk import lay_out
from influence_ssl_jax.store import rows
from influence_ssl_jax.store.rows import LIST, ROWS, complete_rows

SHAPES = [(5, 6, 4), (1, 6, 3)]
PARTS = 3
WHOLE = [np.arange(120.0, dtype=np.float32).reshape(SHAPES[0]), -np.arange(18.0, dtype=np.float32).reshape(SHAPES[1])]


class Formed:
    """Forms two of six rows at a time, counts, and stops after some."""

    def __init__(self, most=PARTS):
        self.numbers, self.most = [], most

    def __call__(self, number):
        if len(self.numbers) == self.most:
            raise KeyboardInterrupt
        self.numbers.append(number)
        return [array[:, 2 * number : 2 * number + 2] for array in WHOLE]


def blocks_in(folder):
    return lay_out(folder / ROWS, SHAPES, np.float32)


def content_of(blocks):
    return [block._load(block.length, np.array(0)) for block in blocks]


def test_rows_are_where_blocks_are_read(tmp_path):
    blocks = blocks_in(tmp_path)
    digests = complete_rows("owner", blocks, PARTS, Formed())
    for got, want in zip(content_of(blocks), WHOLE, strict=True):
        np.testing.assert_array_equal(got, want)
    assert (tmp_path / ROWS).stat().st_size == sum(array.nbytes for array in WHOLE)
    assert len(np.unique(digests, axis=0)) == PARTS
    np.testing.assert_array_equal(blocks[0]._load(2, np.array(3)), WHOLE[0][3:5])


def test_a_stopped_run_forms_what_is_missing(tmp_path):
    blocks = blocks_in(tmp_path)
    for done in range(PARTS - 1):
        formed = Formed(most=1)
        with pytest.raises(KeyboardInterrupt):
            complete_rows("owner", blocks, PARTS, formed)
        assert formed.numbers == [done]
    formed = Formed()
    digests = complete_rows("owner", blocks, PARTS, formed)
    assert formed.numbers == [PARTS - 1]
    for got, want in zip(content_of(blocks), WHOLE, strict=True):
        np.testing.assert_array_equal(got, want)
    (tmp_path / "fresh").mkdir()
    np.testing.assert_array_equal(digests, complete_rows("owner", blocks_in(tmp_path / "fresh"), PARTS, Formed()))


@pytest.mark.parametrize("place", [0, 479, 480, 551])
def test_a_damaged_byte_is_not_used(tmp_path, place, caplog):
    blocks = blocks_in(tmp_path)
    digests = complete_rows("owner", blocks, PARTS, Formed())
    content = bytearray((tmp_path / ROWS).read_bytes())
    content[place] ^= 1
    (tmp_path / ROWS).write_bytes(content)
    formed = Formed()
    np.testing.assert_array_equal(complete_rows("owner", blocks, PARTS, formed), digests)
    assert len(formed.numbers) == 1
    assert "is damaged in part" in caplog.text
    for got, want in zip(content_of(blocks), WHOLE, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("what", ["cut off", "deleted", "of another owner", "with a damaged list"])
def test_rows_are_formed_again_where_the_file_is_no_other(tmp_path, what):
    blocks, owner = blocks_in(tmp_path), "owner"
    complete_rows(owner, blocks, PARTS, Formed())
    if what == "cut off":
        os.truncate(tmp_path / ROWS, 100)
    elif what == "deleted":
        (tmp_path / ROWS).unlink()
    elif what == "of another owner":
        owner = "other"
    else:
        (tmp_path / LIST).write_text((tmp_path / LIST).read_text().replace("owner", "Owner"))
    formed = Formed()
    complete_rows(owner, blocks, PARTS, formed)
    assert formed.numbers == list(range(PARTS))


def test_a_disk_without_room_is_one_sentence(tmp_path, monkeypatch):
    blocks, usage = blocks_in(tmp_path), rows.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(rows.shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(
        FullDiskError, match=r"The rows need a file of 0\.0 GiB, and the disk of .*rows\.bin has 0\.0 GiB free"
    ):
        complete_rows("owner", blocks, PARTS, Formed(most=0))


def test_a_disk_that_fills_up_loses_no_finished_part(tmp_path, monkeypatch):
    blocks, room = blocks_in(tmp_path), iter([None] * 8)

    def pwrite(file, content, place, write=os.pwrite):
        if next(room, 1):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, content, place)

    with monkeypatch.context() as patched:
        patched.setattr(rows.os, "pwrite", pwrite)
        with pytest.raises(FullDiskError, match=r"The disk of .*rows\.bin cannot take more data"):
            complete_rows("owner", blocks, PARTS, Formed())
    formed = Formed()
    complete_rows("owner", blocks, PARTS, formed)
    assert formed.numbers == [1, 2]


def test_a_file_that_is_cut_off_while_it_is_read_is_named(tmp_path):
    blocks = blocks_in(tmp_path)
    complete_rows("owner", blocks, PARTS, Formed())
    os.truncate(tmp_path / ROWS, 500)
    with pytest.raises(StoreError, match="ends before byte"):
        content_of(blocks)
