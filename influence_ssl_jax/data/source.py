"""Describe a data set by a small hashable object that opens it."""

import abc
import dataclasses
from pathlib import Path

from influence_ssl_jax.data.examples import OpenSource
from influence_ssl_jax.data.selection import select
from influence_ssl_jax.errors import DataError


@dataclasses.dataclass(frozen=True, eq=False)
class Source(abc.ABC):
    """The description of a data set.

    It serves as settings, as options on the command line, and as key in caches.

    Attributes:
        only: A file with the ids of the examples that are used; all others are left out. It is a list with one id per line
            (.txt), or a table (.csv, .tsv, .parquet) with a column `id`. If the table has a column `keep`, only rows that
            say true there are used.
    """

    only: str | None = dataclasses.field(default=None, kw_only=True)

    def open(self) -> OpenSource:
        """Find and check the data, and leave out what `only` excludes.

        Pixels on disk are not read.

        Raises:
            DataError: If there is no such data set, a path or name is empty, or `only` does not fit it; the message says
                what to do.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str) and not value:
                raise DataError(f"{type(self).__name__}: {field.name} is an empty text; give a value, or leave it out.")
        if self.only is None:
            return self._open()
        return select(self._open(), self.only)

    def absolute(self) -> "Source":
        """Return the same data set with absolute paths.

        It is then found from any folder.
        """
        return dataclasses.replace(self, only=absolute_path(self.only))

    @abc.abstractmethod
    def _open(self) -> OpenSource:
        """Find the whole data set and check it, without regard to `only`."""


def absolute_path(path: str | None) -> str | None:
    """Make a local path absolute; addresses and None stay as they are.

    Examples:
        >>> from influence_ssl_jax.data.source import absolute_path
        >>> absolute_path("s3://bucket/train"), absolute_path(None)
        ('s3://bucket/train', None)
    """
    return path if path is None or "://" in path else str(Path(path).expanduser().absolute())
