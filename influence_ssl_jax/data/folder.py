"""A folder of images, with a table of attributes where there is one."""

import dataclasses
import functools
import os
import posixpath
import re
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from influence_ssl_jax.data.source import (
    Example,
    OpenSource,
    Source,
    UnreadableExample,
    content_digest,
    counted,
    digest,
    passing,
)
from influence_ssl_jax.data.table import Matched, classes, match, read_table
from influence_ssl_jax.data.transform import EXTENSIONS, UndecodableImage, decode
from influence_ssl_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Folder(Source):
    """All image files below a folder, in natural order of their relative paths (2.jpg before 10.jpg): their ids.

    Files of other kinds and hidden ones are passed over. Without a table, subfolders become the attribute `folder`. A link
    that leads out of the folder is not followed, since it shows whatever it was made to show: named and skipped.

    Attributes:
        path: The folder of images.
        table: A .csv, .tsv or .parquet file with one row per image.
        file_column: The table's column of file names, relative to the folder of images or to the table's own.
        label_column: The attribute that is the class; text is numbered in sorted order.
        links: Skip links that lead out of the folder, or `follow` them, where the folder is your own.
    """

    path: str
    table: str | None = None
    file_column: str = "file"
    label_column: str | None = None
    links: Literal["skip", "follow"] = "skip"

    def open(self) -> "OpenFolder":
        """List the images and match the table to them.

        Raises:
            DataError: There is no such folder, no image in it, or the table cannot be used.
        """
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise DataError(f"There is no folder {self.path!r}; give the path of a folder of images.")
        files, others = _listed(root)
        if not files:
            kinds = " ".join(sorted(EXTENSIONS))
            raise DataError(
                f"The folder {self.path!r} holds no images (looked for {kinds}; found {len(others)} other files)."
            )
        matched = self._matched(root, files)
        labels = None
        if self.label_column is not None:
            known = matched.columns.column_names
            if self.label_column not in known:
                raise DataError(f"There is no attribute {self.label_column!r} to use as the class; there are {known}.")
            labels = classes(matched.columns[self.label_column])
        table = None if self.table is None else Path(self.table).expanduser().resolve()
        strange = [name for name in others if (root / name).resolve() != table]
        notes = (*matched.notes, *counted("files that are no images by their name, passed over", strange))
        return OpenFolder(root, files, matched.columns, labels, notes, self.links, self.label_column)

    def absolute(self) -> "Folder":
        """The same folder and table by absolute paths."""
        table = None if self.table is None else str(Path(self.table).expanduser().absolute())
        return dataclasses.replace(self, path=str(Path(self.path).expanduser().absolute()), table=table)

    def _matched(self, root: Path, files: list[str]) -> Matched:
        if self.table is None:
            folders = [posixpath.dirname(name) for name in files]
            return Matched(pa.table({"folder": folders}) if any(folders) else pa.table({}), ())
        path = Path(self.table).expanduser()
        folder = Path(os.path.relpath(root.resolve(), path.parent.resolve())).as_posix()
        return match(read_table(path), self.file_column, files, folder)


class OpenFolder(OpenSource):
    """Listed files; each is opened when it is read."""

    def __init__(
        self,
        root: Path,
        files: list[str],
        columns: pa.Table,
        labels: np.ndarray | None,
        notes: tuple[str, ...],
        links: Literal["skip", "follow"],
        label_column: str | None,
    ) -> None:
        self._root, self._files, self._columns, self._labels, self._notes = root, files, columns, labels, notes
        self._label_column = label_column
        self._within = root.resolve() if links == "skip" else None

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> Example:
        """Decode one file."""
        name, stored = self._files[index], self._stored(index)
        try:
            image = decode(stored)
        except UndecodableImage as error:
            raise UnreadableExample(index, name, str(error)) from error
        label = -1 if self._labels is None else int(self._labels[index])
        return Example(index, name, image, label if label >= 0 else None, content_digest(stored))

    def content(self, index: int) -> bytes:
        """The digest of one file's bytes; nothing is decoded."""
        return content_digest(self._stored(index))

    def _stored(self, index: int) -> bytes:
        """One file's bytes."""
        name = self._files[index]
        if self._within is not None and not (self._root / name).resolve().is_relative_to(self._within):
            raise UnreadableExample(index, name, "a link that leads out of the folder (links='follow' would follow it)")
        try:
            return (self._root / name).read_bytes()
        except FileNotFoundError:
            raise UnreadableExample(index, name, "the file is gone") from None
        except OSError as error:
            if passing(error):
                raise
            raise UnreadableExample(index, name, error.strerror or str(error)) from error

    def class_names(self) -> tuple[str, ...] | None:
        """The texts of the class column, in the order in which they are numbered."""
        if self._label_column is None or pa.types.is_integer(self._columns[self._label_column].type):
            return None
        return tuple(str(each) for each in sorted(set(self._columns[self._label_column].to_pylist()) - {None}))

    def attributes(self) -> pa.Table | None:
        """The table's other columns, or the subfolder."""
        return self._columns if self._columns.column_names else None

    @functools.cached_property
    def _identity(self) -> str:
        files = [f"{name} {(self._root / name).stat().st_size}" for name in self._files]
        columns = (str(column.to_pylist()) for column in self._columns.columns)
        labels = b"" if self._labels is None else self._labels.tobytes()
        links = "skip" if self._within is not None else "follow"
        return digest("folder", *files, str(self._columns.schema), *columns, labels, links)

    def fingerprint(self) -> str:
        """Names and sizes of the files in order, attributes, classes, and what is done with links; not the place."""
        return self._identity

    def notes(self) -> tuple[str, ...]:
        """Rows without image, images without row, rows that repeat, files that are no images."""
        return self._notes


def _listed(root: Path) -> tuple[list[str], list[str]]:
    """Images, and other files, relative to the folder, in natural order."""
    images, others = [], []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if name.startswith(".") or not (path.is_file() or path.is_symlink()):
                continue
            (images if path.suffix.lower() in EXTENSIONS else others).append(path.relative_to(root).as_posix())
    return sorted(images, key=_natural), sorted(others, key=_natural)


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Numbers by value, text by code point."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts if part], name
