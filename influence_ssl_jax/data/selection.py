"""Select a part of a data set by its examples' ids."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from influence_ssl_jax.data.attributes import compose, read_table, texts
from influence_ssl_jax.data.examples import Example, OpenSource, Skipped, UnreadableExample, digest, note_names
from influence_ssl_jax.errors import DataError, printable

Kind = TypeVar("Kind", bound=Example | Skipped)

ID, KEEP = "id", "keep"
LARGEST_UNKNOWN = 0.01
"""Largest share of ids that may name no example; with more, the file belongs to another data set."""
ORIGINAL = "original"
"""The attribute of planted truth that refers to an example by its number."""
_YES, _NO = frozenset({"true", "yes", "1", "1.0"}), frozenset({"false", "no", "0", "0.0"})


class Selection(OpenSource):
    """Some examples of a source, in its order, numbered from 0."""

    def __init__(self, source: OpenSource, chosen: Int[np.ndarray, " chosen"], notes: tuple[str, ...] = ()) -> None:
        self._source, self._chosen, self._notes = source, chosen, notes

    def __len__(self) -> int:
        return len(self._chosen)

    def read(self, index: int) -> Example:
        """Read the example with this number in the selection."""
        try:
            read = self._source.read(int(self._chosen[index]))
        except UnreadableExample as error:
            raise UnreadableExample(index, error.skipped.id, error.skipped.reason) from error
        return _renumber(read, index)

    def read_many(self, indices: Sequence[int]) -> Iterator[Example | Skipped]:
        """Read several examples, as the source does."""
        read = self._source.read_many([int(self._chosen[index]) for index in indices])
        return (_renumber(each, index) for each, index in zip(read, indices, strict=True))

    def content(self, index: int) -> bytes:
        """Return the digest of the example with this number in the selection."""
        try:
            return self._source.content(int(self._chosen[index]))
        except UnreadableExample as error:
            raise UnreadableExample(index, error.skipped.id, error.skipped.reason) from error

    def class_names(self) -> tuple[str, ...] | None:
        """Return the names of the classes of the whole source."""
        return self._source.class_names()

    def ids(self) -> Sequence[str]:
        """Return the ids of the selected examples."""
        every = self._source.ids()
        return [every[int(index)] for index in self._chosen]

    def labels(self) -> Int[np.ndarray, " examples"]:
        """Return the selected examples' classes, with the whole source's numbers."""
        return self._source.labels()[self._chosen]

    def truth(self) -> tuple[str, ...]:
        """Return the names of the attributes that say what the source planted."""
        return self._source.truth()

    def attributes(self) -> pa.Table | None:
        """Return the attributes of the selected examples.

        Numbers of examples in planted truth become their numbers in the selection, −1 for examples outside it.
        """
        every = self._source.attributes()
        if every is None:
            return None
        table = every.take(pa.array(self._chosen))
        if ORIGINAL in self.truth():
            here = np.full(len(self._source) + 1, -1, np.int64)  # the last entry is read for −1, "no original"
            here[self._chosen] = np.arange(len(self))
            column = pa.array(here[table[ORIGINAL].to_numpy()], every.schema.field(ORIGINAL).type)
            table = table.set_column(table.column_names.index(ORIGINAL), ORIGINAL, column)
        return table

    def fingerprint(self) -> str:
        """Return a hash of the source's fingerprint and the selection."""
        return digest("selected", self._source.fingerprint(), self._chosen.astype("<i8").tobytes())

    def members(self) -> str:
        """Return a hash of the members of source and selection."""
        return digest("selected", self._source.members(), self._chosen.astype("<i8").tobytes())

    def notes(self) -> tuple[str, ...]:
        """Return the notes of the source and those about the ids."""
        return (*self._source.notes(), *self._notes)


def _renumber(read: Kind, index: int) -> Kind:
    """Return the example with its number in the selection."""
    return dataclasses.replace(read, index=index)


def select(source: OpenSource, file: str) -> Selection:
    r"""Select the examples whose ids a file names, in source order.

    Args:
        source: All examples.
        file: A list of ids, or a table; see `Source.only`.

    Raises:
        DataError: If the file cannot be read, more than one in a hundred of its ids name no example, it both keeps and
            leaves out an id, or it keeps no example.

    Examples:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from influence_ssl_jax.data import Arrays
        >>> from influence_ssl_jax.data.selection import select
        >>> source = Arrays(np.zeros((3, 2, 2)), ids=["a", "b", "c"]).open()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "keep.csv"
        ...     size = file.write_text("id,keep\na,true\nb,false\nc,true\n")
        ...     select(source, str(file)).ids()
        ['a', 'c']
    """
    ids, kept = _read_ids(Path(file).expanduser())
    here = collections.defaultdict(list)
    for index, name in enumerate(source.ids()):
        here[compose(name)].append(index)
    written = [compose(printable(name)) for name in ids]
    named = [name if name in here or name.strip() not in here else name.strip() for name in written]
    unknown = [name for name in named if name not in here]
    if len(unknown) > LARGEST_UNKNOWN * len(named):
        first = next(iter(here), "")
        raise DataError(
            f"Of {len(named)} ids in {file!r}, {len(unknown)} name no example, more than one in a hundred; the first is "
            f"{unknown[0]!r}, and ids of this data set look like {first!r}. Give a list that was made for this data set."
        )
    decided: dict[str, bool] = {}
    undecided = [name for name, keep in zip(named, kept, strict=True) if decided.setdefault(name, keep) != keep]
    if undecided:
        raise DataError(
            f"{file!r} both keeps and leaves out {undecided[0]!r} and {len(undecided) - 1} more ids. Give each id one row."
        )
    chosen = sorted(index for name, keep in decided.items() if keep for index in here.get(name, ()))
    if not chosen:
        raise DataError(
            f"{file!r} keeps no example of this data set: it has {len(named)} ids. Name the ids of examples to use."
        )
    notes = (
        f"{len(chosen)} of {len(source)} examples are used, as {printable(file)} says",
        *note_names("ids of that file that name no example", unknown),
        *note_names(
            "ids of that file that name several examples, all used", [n for n in decided if len(here.get(n, ())) > 1]
        ),
        *note_names(
            "ids with several rows in that file", [n for n, count in collections.Counter(named).items() if count > 1]
        ),
    )
    return Selection(source, np.array(chosen, np.int64), notes)


def _read_ids(path: Path) -> tuple[list[str], list[bool]]:
    """Read ids, and whether each of them is kept."""
    if path.suffix.lower() not in (".csv", ".tsv", ".parquet", ".pq"):
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise DataError(f"The list of ids {str(path)!r} is not a file; give a list, or a .csv or .parquet table.")
        try:
            content = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"The list of ids {str(path)!r} cannot be read: {error}.") from error
        ids = [line for line in content.split("\n") if line.strip()]  # spaces are part of an id
        return ids, [True] * len(ids)
    table = read_table(path, (ID, KEEP) if path.suffix.lower() in (".csv", ".tsv") else ())
    if ID not in table.column_names:
        raise DataError(
            f"The table {path} has no column {ID!r}; it has {', '.join(table.column_names)}. Name the column of ids {ID!r}."
        )
    ids = texts(table[ID], f"The column {ID!r} of {path}")
    if None in ids:
        raise DataError(f"Row {ids.index(None)} of {path} has no id; give it one or remove it.")
    kept = [True] * len(ids)
    if KEEP in table.column_names:
        answers = texts(table[KEEP], f"The column {KEEP!r} of {path}")
        kept = [_is_yes(answer, row, path) for row, answer in enumerate(answers)]
    return [name for name in ids if name is not None], kept


def _is_yes(answer: str | None, row: int, path: Path) -> bool:
    """Return a truth value that is written as text.

    Raises:
        DataError: If the text is not a truth value.
    """
    plain = (answer or "").strip().lower()
    if plain not in _YES | _NO:
        raise DataError(f"Row {row} of {path} has {KEEP} = {answer!r}; write true or false.")
    return plain in _YES
