"""Scored batches into the store, as parts of many rows."""

import time
from collections.abc import Iterable

import pyarrow as pa
from rich.console import Console

from influence_ssl_jax.commands.scoring_settings import Parts
from influence_ssl_jax.data.source import Skipped
from influence_ssl_jax.influence.stream import Scored
from influence_ssl_jax.run_log import Pace, RunLog, watched
from influence_ssl_jax.store import ScoreStore


def fill(store: ScoreStore, scored: Iterable[Scored], size: int, parts: Parts, log: RunLog, out: Console) -> float:
    """Write scored batches as parts, with a bar, a heartbeat, and a line in the log for every part; seconds of writing."""
    tables: list[pa.Table] = []
    skipped: list[Skipped] = []
    written = time.monotonic()
    pace = Pace(size, len(store.done()))
    spent = 0.0

    def write() -> None:
        nonlocal spent
        began = time.monotonic()
        if tables:
            store.append(pa.concat_tables(tables))
        store.skip(skipped)
        spent += time.monotonic() - began
        log.event("part", rows=sum(map(len, tables)), skipped=len(skipped), **pace.facts())
        tables.clear()
        skipped.clear()

    with watched(out, log, "scoring", pace) as watch:
        for batch in scored:
            tables.append(batch.table)
            skipped.extend(batch.skipped)
            watch.advance(batch.table.num_rows + len(batch.skipped))
            if sum(map(len, tables)) >= parts.rows or time.monotonic() - written > parts.seconds:
                write()
                written = time.monotonic()
        if tables or skipped:
            write()
    return spent
