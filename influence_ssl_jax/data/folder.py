"""Define data sets of image files in a folder.

A table of attributes may be given.
"""

import dataclasses
import functools
import os
import posixpath
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from influence_ssl_jax.data.attributes import Classes, Matched, match, number_classes, read_table
from influence_ssl_jax.data.encoded import EXTENSIONS, Encoded, UndecodableImage, read_file
from influence_ssl_jax.data.examples import digest, note_names
from influence_ssl_jax.data.listing import Links, Listing, list_in_first_process
from influence_ssl_jax.data.source import Source, absolute_path
from influence_ssl_jax.errors import DataError, printable


@dataclasses.dataclass(frozen=True)
class Folder(Source):
    """All image files in a folder and its subfolders.

    Ids are the relative paths, in natural order (2.jpg before 10.jpg); control characters in them are written as escapes.
    Other files and hidden files are left out. Without a table, subfolders become the attribute `folder`. For security, a
    link that leads out of the folder is not followed but skipped, with a reason. Other entries with the suffix of an image
    that are not images are skipped too: links to nothing, pipes, files that are gone when they are read.

    Attributes:
        path: The folder of images.
        table: A .csv, .tsv or .parquet file with one row per image.
        file_column: The column of file names in the table, relative to the folder of images or to that of the table.
        label_column: The attribute that is the class; its values are numbered in sorted order, an empty cell means no class.
        links: `skip` links that lead out of the folder and links to folders, or `follow` them if you trust the folder.
        encoding: Encoding of a .csv or .tsv table.

    Examples:
        >>> import pathlib, tempfile
        >>> from influence_ssl_jax import Folder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("10", "2"):
        ...         size = (pathlib.Path(folder) / f"{name}.pgm").write_bytes(b"P5 2 1 255 " + bytes(2))
        ...     opened = Folder(folder).open()
        ...     opened.ids(), opened.read(0).image.shape
        (['2.pgm', '10.pgm'], (1, 2))
    """

    path: str
    table: str | None = None
    file_column: str = "file"
    label_column: str | None = None
    links: Links = "skip"
    encoding: str = "utf-8"

    def absolute(self) -> "Source":
        """Return the same data set with absolute paths of folder and table."""
        return dataclasses.replace(super().absolute(), path=absolute_path(self.path), table=absolute_path(self.table))

    def _open(self) -> "OpenFolder":
        """List the images and match the table to them.

        Raises:
            DataError: If there is no such folder, it contains no images, or the table cannot be used.
        """
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise DataError(f"There is no folder {self.path!r}; give the path of a folder of images.")
        listing = list_in_first_process(root, self.links)
        if not listing.images:
            kinds, passed = " ".join(sorted(EXTENSIONS)), "".join(f"; {note}" for note in listing.notes)
            raise DataError(
                f"The folder {self.path!r} contains no {kinds} files, only {len(listing.others)} other files{passed}. Give "
                "the path of a folder of images."
            )
        matched = self._match(root, listing)
        labels = None
        if self.label_column is not None:
            known = matched.columns.column_names
            if self.label_column not in known:
                raise DataError(
                    f"There is no attribute {self.label_column!r} to use as the class; choose one of {known}."
                )
            labels = number_classes(matched.columns[self.label_column], f"The label column {self.label_column!r}")
        table = None if self.table is None else Path(self.table).expanduser().resolve()
        strange = [name for name in listing.others if (root / name).resolve() != table]
        notes = (
            *listing.notes,
            *matched.notes,
            *note_names("files without the suffix of an image, left out", strange),
        )
        return OpenFolder(root, listing, matched.columns, labels, notes, self.links)

    def _match(self, root: Path, listing: Listing) -> Matched:
        """Return the files' attributes: those of the table, or the subfolder."""
        if self.table is None:
            names = (printable(posixpath.dirname(name)) for name in listing.images)
            folders = pa.array(names, pa.string(), size=len(listing.images))
            return Matched(pa.table({"folder": folders} if folders.unique().to_pylist() != [""] else {}), ())
        path = Path(self.table).expanduser()
        folder = Path(os.path.relpath(root.resolve(), path.parent.resolve())).as_posix()
        table = read_table(path, (self.file_column,), self.encoding)
        return match(table, self.file_column, list(listing.images), folder)


class OpenFolder(Encoded):
    """An opened folder; a file is opened when it is read."""

    def __init__(
        self,
        root: Path,
        listing: Listing,
        columns: pa.Table,
        labels: Classes | None,
        notes: tuple[str, ...],
        links: Links,
    ) -> None:
        self._root, self._listing, self._columns, self._labels, self._notes = root, listing, columns, labels, notes
        self._within = root.resolve() if links == "skip" else None

    def __len__(self) -> int:
        return len(self._listing.images)

    def _id(self, index: int) -> str:
        return printable(self._listing.images[index])

    def _class(self, index: int) -> int:
        return -1 if self._labels is None else int(self._labels.labels[index])

    def class_names(self) -> tuple[str, ...] | None:
        """Return the values of the class column, in order of numbers."""
        return None if self._labels is None else self._labels.values

    def _stored(self, index: int) -> bytes:
        """Return the bytes of a file."""
        path = self._root / self._listing.images[index]
        if self._within is not None and not _resolve(path).is_relative_to(self._within):
            raise UndecodableImage("a link out of the folder (links='follow' follows it)")
        return read_file(path)

    def ids(self) -> list[str]:
        """Return the relative paths."""
        return [printable(name) for name in self._listing.images]

    def labels(self) -> Int[np.ndarray, " examples"]:
        """Return the class of every file, −1 if it has none."""
        return np.full(len(self), -1, np.int32) if self._labels is None else self._labels.labels

    def attributes(self) -> pa.Table | None:
        """Return the other columns of the table, or the subfolder."""
        return self._columns if self._columns.column_names else None

    @functools.cached_property
    def _members(self) -> str:
        names = self._listing.images.digest()
        columns = digest(
            str(self._columns.schema.remove_metadata()), *(str(c.to_pylist()) for c in self._columns.columns)
        )
        known = "" if self._labels is None else digest(*self._labels.values, self._labels.labels.tobytes())
        return digest("folder", names, columns, known, "follow" if self._within is None else "skip")

    def fingerprint(self) -> str:
        """Return a hash of files, attributes, classes, and the setting `links`.

        Names and sizes of the files, in order, are part of it; the path of the folder, and times and content of the files,
        are not: if two files of the same size are exchanged, the hash stays.
        """
        return digest(self._members, self._listing.sizes.astype("<i8").tobytes())

    def members(self) -> str:
        """Return a hash of which files there are.

        It covers their names in order, attributes, classes, and the setting `links`.
        """
        return self._members

    def notes(self) -> tuple[str, ...]:
        """Return notes on unmatched rows and images, and left-out entries."""
        return self._notes


def _resolve(path: Path) -> Path:
    """Return the target of a path.

    Raises:
        UndecodableImage: If it is a link to itself.
    """
    try:
        return path.resolve()
    except (RuntimeError, OSError):  # RuntimeError in Python 3.11, OSError in 3.13
        raise UndecodableImage("a link to itself") from None
