"""A folder of images, with a table of attributes where there is one."""

import dataclasses
import functools
import os
import posixpath
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from influence_ssl_jax.data.encoded import EXTENSIONS, Encoded, UndecodableImage, contents
from influence_ssl_jax.data.listing import Links, Listing, listed_once
from influence_ssl_jax.data.source import Source, absolute_path, counted, digest
from influence_ssl_jax.data.table import Classes, Matched, classes, match, read_table
from influence_ssl_jax.errors import DataError, printable


@dataclasses.dataclass(frozen=True)
class Folder(Source):
    """All image files below a folder, in natural order of their relative paths (2.jpg before 10.jpg): their ids.

    Files of other kinds and hidden ones are passed over. Without a table, subfolders become the attribute `folder`. A link
    that leads out of the folder is not followed, since it shows whatever it was made to show: named and skipped. So is
    every other entry that has the name of an image and is none: a link that leads nowhere, a pipe, a file that is gone
    when it is read. In ids, characters that a terminal would obey are written as escapes.

    Attributes:
        path: The folder of images.
        table: A .csv, .tsv or .parquet file with one row per image.
        file_column: The table's column of file names, relative to the folder of images or to the table's own.
        label_column: The attribute that is the class; its values are numbered in sorted order, an empty cell is no class.
        links: Skip links that lead out of the folder and linked folders, or `follow` them, where the folder is your own.
        encoding: Of a .csv or .tsv table.
    """

    path: str
    table: str | None = None
    file_column: str = "file"
    label_column: str | None = None
    links: Links = "skip"
    encoding: str = "utf-8"

    def absolute(self) -> "Source":
        """Return the same folder and table by absolute paths."""
        return dataclasses.replace(super().absolute(), path=absolute_path(self.path), table=absolute_path(self.table))

    def _open(self) -> "OpenFolder":
        """List the images and match the table to them.

        Raises:
            DataError: There is no such folder, no image in it, or the table cannot be used.
        """
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise DataError(f"There is no folder {self.path!r}; give the path of a folder of images.")
        found = listed_once(root, self.links)
        if not found.images:
            kinds, passed = " ".join(sorted(EXTENSIONS)), "".join(f"; {note}" for note in found.notes)
            raise DataError(
                f"The folder {self.path!r} holds no images (looked for {kinds}; found {len(found.others)} other files"
                f"{passed})."
            )
        matched = self._matched(root, found)
        labels = None
        if self.label_column is not None:
            known = matched.columns.column_names
            if self.label_column not in known:
                raise DataError(f"There is no attribute {self.label_column!r} to use as the class; there are {known}.")
            labels = classes(matched.columns[self.label_column], f"The label column {self.label_column!r}")
        table = None if self.table is None else Path(self.table).expanduser().resolve()
        strange = [name for name in found.others if (root / name).resolve() != table]
        notes = (
            *found.notes,
            *matched.notes,
            *counted("files that are no images by their name, passed over", strange),
        )
        return OpenFolder(root, found, matched.columns, labels, notes, self.links)

    def _matched(self, root: Path, found: Listing) -> Matched:
        if self.table is None:
            names = (printable(posixpath.dirname(name)) for name in found.images)
            folders = pa.array(names, pa.string(), size=len(found.images))
            return Matched(pa.table({"folder": folders} if folders.unique().to_pylist() != [""] else {}), ())
        path = Path(self.table).expanduser()
        folder = Path(os.path.relpath(root.resolve(), path.parent.resolve())).as_posix()
        table = read_table(path, (self.file_column,), self.encoding)
        return match(table, self.file_column, list(found.images), folder)


class OpenFolder(Encoded):
    """Listed files; each is opened when it is read."""

    def __init__(
        self,
        root: Path,
        found: Listing,
        columns: pa.Table,
        labels: Classes | None,
        notes: tuple[str, ...],
        links: Links,
    ) -> None:
        self._root, self._found, self._columns, self._labels, self._notes = root, found, columns, labels, notes
        self._within = root.resolve() if links == "skip" else None

    def __len__(self) -> int:
        return len(self._found.images)

    def _id(self, index: int) -> str:
        return printable(self._found.images[index])

    def _class(self, index: int) -> int:
        return -1 if self._labels is None else int(self._labels.labels[index])

    def class_names(self) -> tuple[str, ...] | None:
        """The values of the class column, in the order in which they are numbered."""
        return None if self._labels is None else self._labels.values

    def _stored(self, index: int) -> bytes:
        """Return the bytes of one file."""
        path = self._root / self._found.images[index]
        if self._within is not None and not _resolved(path).is_relative_to(self._within):
            raise UndecodableImage("a link that leads out of the folder (links='follow' would follow it)")
        return contents(path)

    def ids(self) -> list[str]:
        """Return the relative paths."""
        return [printable(name) for name in self._found.images]

    def labels(self) -> Int[np.ndarray, " examples"]:
        """Return the class of every file, −1 where it has none."""
        return np.full(len(self), -1, np.int32) if self._labels is None else self._labels.labels

    def attributes(self) -> pa.Table | None:
        """The table's other columns, or the subfolder."""
        return self._columns if self._columns.column_names else None

    @functools.cached_property
    def _identity(self) -> str:
        names = self._found.images.digest()
        sizes = digest(self._found.sizes.astype("<i8").tobytes())
        columns = digest(
            str(self._columns.schema.remove_metadata()), *(str(c.to_pylist()) for c in self._columns.columns)
        )
        known = "" if self._labels is None else digest(*self._labels.values, self._labels.labels.tobytes())
        return digest("folder", names, sizes, columns, known, "follow" if self._within is None else "skip")

    def fingerprint(self) -> str:
        """Hash the names and sizes of the files, in order, the attributes, the classes, and whether links are followed.

        The place of the folder and the times of the files do not count. Nor does what is in them: two files of one size
        may change places unseen.
        """
        return self._identity

    def notes(self) -> tuple[str, ...]:
        """Rows without image, images without row, rows that repeat, entries that are passed over."""
        return self._notes


def _resolved(path: Path) -> Path:
    """Return where a path leads.

    Raises:
        UndecodableImage: To itself.
    """
    try:
        return path.resolve()
    except (RuntimeError, OSError):  # Python 3.11 and 3.13 say it differently
        raise UndecodableImage("a link that leads to itself") from None
