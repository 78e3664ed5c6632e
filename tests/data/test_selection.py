import dataclasses
import os

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from influence_ssl_jax.data import Arrays, Digits, Synthetic
from influence_ssl_jax.errors import DataError

IDS = [f"{k:03d}" for k in range(200)]
IMAGES = np.arange(200, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)


def used(only) -> list[str]:
    return list(Arrays(IMAGES, ids=IDS, only=str(only)).open().ids())


def test_lists_and_tables_with_and_without_keep(tmp_path):
    (tmp_path / "l.txt").write_text("\ufeff007\n\n003 \n", encoding="utf-8")
    (tmp_path / "t.csv").write_text("id,keep\n007,true\n004,False\n003,1\n")
    (tmp_path / "t.tsv").write_text("score\tid\n1.5\t007\n2\t003\n")
    parquet.write_table(pa.table({"id": ["003", "004", "007"], "keep": [True, False, True]}), tmp_path / "t.parquet")
    for name in ("l.txt", "t.csv", "t.tsv", "t.parquet"):
        assert used(tmp_path / name) == ["003", "007"], name


def test_spaces_around_an_id_are_part_of_it_where_an_example_has_them(tmp_path):
    (tmp_path / "l.txt").write_text(" a\nb \nc\u2028d\n", encoding="utf-8")
    opened = Arrays(IMAGES[:5], ids=["a", " a", "b", "c\u2028d", "e"], only=str(tmp_path / "l.txt")).open()
    assert [opened.read(k).image[0, 0, 0] for k in range(len(opened))] == [1, 2, 3]


def test_ids_are_alike_however_their_accents_are_composed(tmp_path):
    (tmp_path / "l.txt").write_text("caf\u00e9\n", encoding="utf-8")
    opened = Arrays(IMAGES[:2], ids=["cafe\u0301", "b"], only=str(tmp_path / "l.txt")).open()
    assert list(opened.ids()) == ["cafe\u0301"]


def test_ids_that_name_nothing_are_counted_and_many_are_refused(tmp_path):
    (tmp_path / "l.txt").write_text("\n".join([*IDS[:99], "other"]))
    opened = Arrays(IMAGES, ids=IDS, only=str(tmp_path / "l.txt")).open()
    assert len(opened) == 99
    assert opened.notes()[-1] == "ids of that file that name no example: 1 (other)"
    (tmp_path / "l.txt").write_text("\n".join([*IDS[:98], "other", "another"]))
    with pytest.raises(
        DataError, match=r"Of 100 ids .* 2 name no example, more than one in a hundred; the first is 'other', .* '000'"
    ):
        used(tmp_path / "l.txt")


def test_ids_that_repeat_on_either_side_are_noted(tmp_path):
    (tmp_path / "l.txt").write_text("a\nb\na\n")
    opened = Arrays(IMAGES[:4], ids=["a", "b", "a", "c"], only=str(tmp_path / "l.txt")).open()
    assert [opened.read(k).image[0, 0, 0] for k in range(3)] == [0, 1, 2]
    assert opened.notes()[-2:] == (
        "ids of that file that name several examples, all used: 1 (a)",
        "ids with several rows in that file: 1 (a)",
    )


def test_the_selection_and_not_the_file_is_what_it_is_known_by(tmp_path):
    (tmp_path / "a.txt").write_text("1\n2\n")
    (tmp_path / "b.csv").write_text("id\n2\n1\n")
    (tmp_path / "c.txt").write_text("1\n3\n")
    first, same, other = (
        Synthetic(count=9, size=4, only=str(tmp_path / n)).open() for n in ("a.txt", "b.csv", "c.txt")
    )
    assert first.fingerprint() == same.fingerprint() != other.fingerprint()


def test_planted_originals_keep_naming_their_digit(tmp_path):
    source = Digits(size=8, digits=40, exact_duplicates=0.2)
    whole = source.open()
    (tmp_path / "l.txt").write_text("\n".join(whole.ids()[::2]))
    part = dataclasses.replace(source, only=str(tmp_path / "l.txt")).open()
    originals = whole.attributes()["original"].to_pylist()
    named = 0
    for here, there in enumerate(range(0, len(whole), 2)):
        expected, original = originals[there], part.attributes()["original"][here].as_py()
        named += original >= 0
        assert (original >= 0) == (expected >= 0 and expected % 2 == 0)
        assert original < 0 or part.read(original).id == whole.read(expected).id
    assert named


def test_what_cannot_be_used_is_refused(tmp_path):
    def refused(name: str, content: str, reason: str) -> None:
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=reason):
            used(tmp_path / name)

    with pytest.raises(DataError, match="cannot be read"):
        used(tmp_path / "absent.txt")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is not a file"):
        used(tmp_path / "pipe")
    refused("a.csv", "file\n001\n", "has no column 'id'; it has file")
    refused("b.csv", "id,keep\n001,maybe\n", "Row 0 .* has keep = 'maybe'; write true or false")
    refused("c.csv", "id,keep\n001,true\n001,false\n", "both keeps and leaves out '001'")
    refused("d.csv", "id,keep\n001,false\n", "keeps no example")
    refused("e.txt", "\n", "keeps no example")
