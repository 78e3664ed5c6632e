"""A part of a data set, by the ids of its examples."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from influence_ssl_jax.data.source import Example, OpenSource, Skipped, UnreadableExample, counted, digest
from influence_ssl_jax.data.table import composed, read_table, texts
from influence_ssl_jax.errors import DataError, printable

Kind = TypeVar("Kind", bound=Example | Skipped)

ID, KEEP = "id", "keep"
LARGEST_UNKNOWN = 0.01
"""Share of ids that may name nothing: more says that the file is of another data set."""
ORIGINAL = "original"
"""The attribute of planted truth that names an example by its number."""
_YES, _NO = frozenset({"true", "yes", "1", "1.0"}), frozenset({"false", "no", "0", "0.0"})


class Selected(OpenSource):
    """Some examples of another source, in its order, numbered anew from 0."""

    def __init__(self, source: OpenSource, chosen: Int[np.ndarray, " chosen"], notes: tuple[str, ...] = ()) -> None:
        self._source, self._chosen, self._notes = source, chosen, notes

    def __len__(self) -> int:
        return len(self._chosen)

    def read(self, index: int) -> Example:
        """Read the example that has this number here."""
        try:
            read = self._source.read(int(self._chosen[index]))
        except UnreadableExample as error:
            raise UnreadableExample(index, error.skipped.id, error.skipped.reason) from error
        return _numbered(read, index)

    def read_many(self, indices: Sequence[int]) -> Iterator[Example | Skipped]:
        """Read several together, as the source does."""
        read = self._source.read_many([int(self._chosen[index]) for index in indices])
        return (_numbered(each, index) for each, index in zip(read, indices, strict=True))

    def content(self, index: int) -> bytes:
        """Return the digest of the example that has this number here."""
        try:
            return self._source.content(int(self._chosen[index]))
        except UnreadableExample as error:
            raise UnreadableExample(index, error.skipped.id, error.skipped.reason) from error

    def class_names(self) -> tuple[str, ...] | None:
        """Those of the whole source, which numbers the classes."""
        return self._source.class_names()

    def ids(self) -> Sequence[str]:
        """Return the ids of the chosen examples."""
        every = self._source.ids()
        return [every[int(index)] for index in self._chosen]

    def labels(self) -> Int[np.ndarray, " examples"]:
        """Return the classes of the chosen examples, numbered as in the whole source."""
        return self._source.labels()[self._chosen]

    def truth(self) -> tuple[str, ...]:
        """Name the attributes that tell what the source planted."""
        return self._source.truth()

    def attributes(self) -> pa.Table | None:
        """Return those of the chosen examples; numbers of other examples in planted truth are numbers here."""
        every = self._source.attributes()
        if every is None:
            return None
        table = every.take(pa.array(self._chosen))
        if ORIGINAL in self.truth():
            here = np.full(len(self._source) + 1, -1, np.int64)  # the last place is that of −1: no original
            here[self._chosen] = np.arange(len(self))
            column = pa.array(here[table[ORIGINAL].to_numpy()], every.schema.field(ORIGINAL).type)
            table = table.set_column(table.column_names.index(ORIGINAL), ORIGINAL, column)
        return table

    def fingerprint(self) -> str:
        """Hash that of the source, and which examples are chosen."""
        return digest("selected", self._source.fingerprint(), self._chosen.astype("<i8").tobytes())

    def notes(self) -> tuple[str, ...]:
        """Those of the source, and what was noticed of the ids."""
        return (*self._source.notes(), *self._notes)


def _numbered(read: Kind, index: int) -> Kind:
    """Give an example the number that it has in the selection."""
    return dataclasses.replace(read, index=index)


def selected(source: OpenSource, file: str) -> Selected:
    """Keep the examples whose ids a file names, in the order of the source.

    Args:
        source: All examples.
        file: A list of ids, or a table; see `Source.only`.

    Raises:
        DataError: The file cannot be read, more than one in a hundred of its ids name nothing, or it keeps no example.
    """
    ids, kept = _read(Path(file).expanduser())
    here = collections.defaultdict(list)
    for index, name in enumerate(source.ids()):
        here[composed(name)].append(index)
    named = [composed(printable(name)) for name in ids]
    unknown = [name for name in named if name not in here]
    if len(unknown) > LARGEST_UNKNOWN * len(named):
        first = next(iter(here), "")
        raise DataError(
            f"Of {len(named)} ids in {file!r}, {len(unknown)} name no example, more than one in a hundred: {unknown[0]!r}; "
            f"the ids of this data set are such as {first!r}. Is it a list for another data set?"
        )
    decided: dict[str, bool] = {}
    undecided = [name for name, keep in zip(named, kept, strict=True) if decided.setdefault(name, keep) != keep]
    if undecided:
        raise DataError(
            f"{file!r} both keeps and leaves out {undecided[0]!r}, and {len(undecided) - 1} further ids: keep one row "
            "of each."
        )
    chosen = sorted(index for name, keep in decided.items() if keep for index in here.get(name, ()))
    if not chosen:
        raise DataError(f"{file!r} keeps no example: of its {len(named)} ids none is to be kept.")
    notes = (
        f"{len(chosen)} of {len(source)} examples are used, as {printable(file)} says",
        *counted("ids of that file that name no example", unknown),
        *counted(
            "ids of that file that name several examples, all used", [n for n in decided if len(here.get(n, ())) > 1]
        ),
        *counted(
            "ids that are in that file again", [n for n, count in collections.Counter(named).items() if count > 1]
        ),
    )
    return Selected(source, np.array(chosen, np.int64), notes)


def _read(path: Path) -> tuple[list[str], list[bool]]:
    """Read ids, and for each whether it is kept."""
    if path.suffix.lower() not in (".csv", ".tsv", ".parquet", ".pq"):
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"The list of ids {str(path)!r} cannot be read: {error}.") from error
        ids = [line.strip() for line in lines if line.strip()]
        return ids, [True] * len(ids)
    table = read_table(path, (ID, KEEP) if path.suffix.lower() in (".csv", ".tsv") else ())
    if ID not in table.column_names:
        raise DataError(
            f"The table {path} has no column {ID!r}; it has {', '.join(table.column_names)}. Name the ids so."
        )
    ids = texts(table[ID], f"The column {ID!r} of {path}")
    if None in ids:
        raise DataError(f"Row {ids.index(None)} of {path} has no id.")
    kept = [True] * len(ids)
    if KEEP in table.column_names:
        answers = texts(table[KEEP], f"The column {KEEP!r} of {path}")
        kept = [_is_yes(answer, row, path) for row, answer in enumerate(answers)]
    return [name for name in ids if name is not None], kept


def _is_yes(answer: str | None, row: int, path: Path) -> bool:
    plain = (answer or "").strip().lower()
    if plain not in _YES | _NO:
        raise DataError(f"Row {row} of {path} has {KEEP} = {answer!r}; write true or false.")
    return plain in _YES
