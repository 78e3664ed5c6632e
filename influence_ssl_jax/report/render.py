"""Render the report of a run as one self-contained HTML page."""

import itertools
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from influence_ssl_jax.configuration import flatten
from influence_ssl_jax.data import Source
from influence_ssl_jax.report import audited, plots
from influence_ssl_jax.report.analysis import (
    Categories,
    Names,
    Quantity,
    breakdown,
    compare,
    explained_by_baselines,
    kinds,
    members,
    recoveries,
    signal_share,
)
from influence_ssl_jax.report.gallery import Images, images_of, tiles
from influence_ssl_jax.report.scored_run import LISTED, Extent, ScoredRun
from influence_ssl_jax.report.words import decimal, duration, interval, number, percent
from influence_ssl_jax.scoring.table import IN_CURVATURE_SET
from influence_ssl_jax.store.files import write_atomically

DRAWN = 4_000_000
"""Number of examples that the bootstrap of a statistic draws in total, which takes seconds."""


def render(
    folder: Path,
    out: Path | None = None,
    images: Images | None = None,
    extent: Extent | None = None,
    source: Source | None = None,
) -> Path:
    """Write the report of a finished run, and return its path.

    Args:
        folder: The folder with `scores.parquet` and `run.json`.
        out: The page; None takes `report.html` in the folder.
        images: A function from the number of an example to its pixels; None reads the source. Without the source, the
            report has no pictures but is complete otherwise.
        extent: How much is shown; None takes `Extent()`.
        source: The source of the images; None takes the one that `run.json` names.

    Raises:
        StoreError: If the folder does not contain a finished run.
    """
    extent = extent or Extent()
    run, why = ScoredRun.load_bounded(folder, extent.images), ""
    if images is None:
        images, why = images_of(run, extent.images, source)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("influence_ssl_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {say.__name__: say for say in (number, decimal, percent, interval, duration)}
    style = Markup(environment.get_template("style.css").render())
    page = environment.get_template("report.html").render(style=style, **_contents(run, images, why, extent))
    path = folder / "report.html" if out is None else out
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page.encode())
    return path


def _contents(run: ScoredRun, images: Images | None, why: str, extent: Extent) -> dict[str, Any]:
    """Return everything that the template shows."""
    rows, tail = run.ranking(), run.tail(extent.tail)
    resamples = limit_resamples(extent.resamples, len(rows))
    comparisons, attributes = compare(run, resamples), breakdown(run, tail, resamples)
    telling = [item.name for item in attributes if not isinstance(item, Names)]
    shown = min(extent.images, max(1, len(rows) // 2))
    highest, lowest = run.ends(shown)
    return {
        "title": _title(run),
        "counts": run.record["counts"],
        "wall_seconds": run.record.get("wall_seconds", math.nan),
        "sample": run.table.num_rows if run.sampled else 0,
        "top": tiles(highest, images, telling),
        "bottom": tiles(lowest, images, telling),
        "no_images": why,
        "tail": min(tail, len(rows)),
        "scored": len(rows),
        "distribution": plots.distribution(run, tail) if len(rows) else None,
        "inside": _inside(run),
        "by_halves": run.record.get("curvature_set"),
        "searched": _count_searched(run),
        "uncertainty": plots.uncertainty(run) if len(rows) else None,
        "comparisons": [(comparison, plots.scatter(run, comparison)) for comparison in comparisons],
        "closest": max(comparisons, key=lambda c: abs(c.spearman.value), default=None),
        "audit": audited.section(run.folder),
        "explained": explained_by_baselines(run),
        "reliability": signal_share(run),
        "recoveries": [list(ends) for _, ends in itertools.groupby(recoveries(run), lambda recovery: recovery.kind)],
        "by_kind": plots.by_kind(run) if len(rows) else None,
        "planted_counts": _planted_counts(run, *(() if run.sampled else (shown,)), tail),
        "shown": shown,
        "categories": [item for item in attributes if isinstance(item, Categories)],
        "quantities": [item for item in attributes if isinstance(item, Quantity)],
        "names": [item for item in attributes if isinstance(item, Names)],
        **_problems(run),
        **_how(run),
    }


def limit_resamples(resamples: int, examples: int) -> int:
    """Limit the number of bootstrap draws, to at least 30.

    With many examples an interval is narrow, and its draws are slow.

    Examples:
        >>> limit_resamples(200, 1_000), limit_resamples(200, 100_000)
        (200, 40)
    """
    return min(resamples, max(30, DRAWN // max(1, examples)))


def _title(run: ScoredRun) -> str:
    """Return the report's title: the run's own, or the data set's name."""
    source = run.record.get("configuration", {}).get("source") or {}
    named = source.get("name") or source.get("path") or source.get("class") or run.folder.resolve().name
    return str(run.record.get("title") or named)


def _planted_counts(run: ScoredRun, *ends: int) -> list[dict[str, Any]]:
    """Count each kind among the highest and the lowest scores.

    The numbers expected by chance are beside them.

    Args:
        run: The scores.
        *ends: Numbers of highest, and of lowest, scores.
    """
    rows = run.ranking()
    counts = []
    for kind in kinds(run):
        is_kind = members(run, kind)[rows]
        chance = is_kind.sum() / max(1, len(rows))
        at = [(int(is_kind[:k].sum()), int(is_kind[::-1][:k].sum()), min(k, len(rows)) * chance) for k in ends]
        counts.append({"kind": kind, "total": int(is_kind.sum()), "ends": at})
    return counts


def _inside(run: ScoredRun) -> dict[str, Any] | None:
    """Return the median scores inside and outside the curvature set.

    It is None if no image is marked.
    """
    inside = run.inside()
    if not len(inside):
        return None
    outside = np.isfinite(run.score) & ~run.table[IN_CURVATURE_SET].fill_null(False).to_numpy()
    return {
        "count": len(inside),
        "left_out": run.record.get("configuration", {}).get("scoring", {}).get("leave_own_out", False),
        "median": float(np.median(inside)),
        "others": float(np.median(run.score[outside])) if outside.any() else math.nan,
    }


def _count_searched(run: ScoredRun) -> dict[str, int] | None:
    """Return among how many images nearest neighbours were searched.

    It is None if among all images.
    """
    record = run.record.get("nearest_neighbours") or {}
    return record if record.get("reference", 0) < record.get("images", 0) else None


def _problems(run: ScoredRun) -> dict[str, Any]:
    """Return the examples with a remark, by reason and one by one."""
    rows, total, reasons = run.remarks()
    return {
        "problems": rows,
        "more_problems": total - len(rows),
        "reasons": [(outcome, reason, times) for (outcome, reason), times in reasons.most_common(LISTED)],
    }


def _how(run: ScoredRun) -> dict[str, Any]:
    """Return how the run was made: command, tables of names and values."""
    known = {"identity", "counts", "attributes", "wall_seconds", "command", "title", "fingerprint", "configuration"}
    configuration = run.record.get("configuration", {})
    facts = {name: value for name, value in run.record.items() if name not in known}
    versions = facts.pop("versions", {})
    return {
        "command": shlex.join(run.record.get("command", [])),
        "configuration": list(flatten(configuration)),
        "facts": list(flatten(condense(facts))),
        "versions": list(flatten(versions)),
        "fingerprint": run.record.get("fingerprint", ""),
    }


def condense(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Shorten facts: numbers to four digits, long groups of them to ranges.

    Examples:
        >>> condense({"seconds": 1.23456, "damping": {f"layer{k}": 0.5 * k for k in range(8)}})
        {'seconds': '1.235', 'damping': '8 values, 0 … 3.5'}
    """
    shown: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping) and len(value) > 6 and all(isinstance(each, float) for each in value.values()):
            shown[name] = f"{len(value)} values, {min(value.values()):.4g} … {max(value.values()):.4g}"
        elif isinstance(value, Mapping):
            shown[name] = condense(value)
        else:
            shown[name] = f"{value:.4g}" if isinstance(value, float) else value
    return shown
