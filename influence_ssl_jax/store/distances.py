"""Keep nearest neighbours in a file.

The file is used while a table is written, and after embeddings are deleted.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from influence_ssl_jax.scoring.neighbours import NONE, Neighbours
from influence_ssl_jax.store.files import DamagedError, file_digest, replacing, write_sealed
from influence_ssl_jax.store.result import FILES, OWNER, read_record

FILE, RECORD = "distances.parquet", "distances.json"
SCHEMA = pa.schema({"index": pa.int64(), "distance": pa.float64(), "nearest": pa.int64()})


@dataclasses.dataclass(frozen=True)
class Distances:
    """A file with the distances of examples in order of index.

    A bounded number of its rows is in memory.

    Attributes:
        folder: The folder of the run.
        owner: Fingerprint of the run.
    """

    folder: Path
    owner: str

    @classmethod
    def open(cls, folder: Path, owner: str) -> "Distances | None":
        """Return a folder's distances, or None.

        It is None if they are absent, damaged or of another run.
        """
        try:
            record = read_record(folder, RECORD)
        except (DamagedError, FileNotFoundError):
            return None
        ours = record.get(OWNER) == owner and pq.read_schema(folder / FILE).names == SCHEMA.names
        return cls(folder, owner) if ours else None

    @classmethod
    def write(cls, folder: Path, owner: str, pieces: Iterable[Neighbours]) -> "Distances":
        """Write the neighbours of examples, piece by piece, in order of index.

        Raises:
            FullDiskError: The disk is full.
        """
        with replacing(folder / FILE) as temporary:
            with pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
                for piece in pieces:
                    writer.write_table(pa.table(dict(zip(SCHEMA.names, piece, strict=True)), schema=SCHEMA))
            digest = file_digest(temporary)
        write_sealed(folder / RECORD, {OWNER: owner, FILES: {FILE: digest}})
        return cls(folder, owner)

    def of(self, index: Int[np.ndarray, " some"]) -> Neighbours:
        """Return the neighbours of some examples.

        Those that the file does not hold have the distance NaN and the nearest `NONE`.

        Args:
            index: The numbers of the examples, ascending.
        """
        neighbours = Neighbours(index, np.full(len(index), np.nan), np.full(len(index), NONE))
        if len(index):
            within = [("index", ">=", int(index[0])), ("index", "<=", int(index[-1]))]
            table = pq.read_table(self.folder / FILE, filters=within)
            _, here, there = np.intersect1d(index, table["index"].to_numpy(), assume_unique=True, return_indices=True)
            neighbours.distance[here], neighbours.nearest[here] = (
                table[name].to_numpy()[there] for name in ("distance", "nearest")
            )
        return neighbours

    def forget(self, indices: Int[np.ndarray, " count"]) -> None:
        """Remove some examples from the file."""
        with pq.ParquetFile(self.folder / FILE) as file:
            tables = (file.read_row_group(number) for number in range(file.num_row_groups))
            kept = (table.filter(~np.isin(table["index"].to_numpy(), indices)) for table in tables)
            pieces = (Neighbours(*(table[name].to_numpy() for name in SCHEMA.names)) for table in kept)
            self.write(self.folder, self.owner, pieces)

    def delete(self) -> None:
        """Delete the file and its record."""
        for name in (RECORD, FILE):
            (self.folder / name).unlink(missing_ok=True)
