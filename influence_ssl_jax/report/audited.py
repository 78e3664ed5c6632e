"""Show an audit as a table with remarks.

The report and the command line show the same.
"""

import math
from pathlib import Path
from typing import Any

from influence_ssl_jax.configuration import Plain
from influence_ssl_jax.errors import StoreError
from influence_ssl_jax.report.words import decimal, percent
from influence_ssl_jax.store import DamagedError, read_record

AUDIT = "audit.json"
KEYS = ("configuration", "counts", "deviation", "relative_width")
"""Some keys of `audit.json`."""
HEADS = (
    "",
    "inside bounds",
    "uncalibrated error",
    "error, one factor",
    "calibrated error",
    "90th percentile",
    "Spearman",
    "given the loss",
    "coverage",
)
"""Titles of the columns of `table`."""

_RANKS = ("spearman", "partial")


def section(folder: Path) -> dict[str, Any] | None:
    """Return what the report shows of an audit, if there is one.

    Raises:
        StoreError: If a file of the audit is damaged or belongs to other scores.
    """
    if not (folder / AUDIT).is_file():
        return None
    try:
        record = read_record(folder, AUDIT, KEYS)
    except (DamagedError, FileNotFoundError) as error:
        raise StoreError(
            f"{error} Repeat the `influence-ssl audit` command, which continues from its certificates, or delete "
            f"{folder / AUDIT}."
        ) from error
    return {"record": record, "heads": HEADS, "rows": table(record), "remarks": remarks(record)}


def table(record: dict[str, Any]) -> list[list[str]]:
    """Return a row for the score and each baseline, under `HEADS`."""
    rows = []
    for name, item in record["deviation"].items():
        errors = (percent(_number(item[kind]["median"])) for kind in ("raw", "proportional", "calibrated"))
        ranks = (
            f"{_decimal(item[k]['value'])} ({_decimal(item[k]['low'])} to {_decimal(item[k]['high'])})" for k in _RANKS
        )
        inside, late = _number(item["inside"]["value"]), _number(item["calibrated"]["p90"])
        coverage = percent(_number(item["coverage"]["share"]))
        rows.append([name.replace("_", " "), percent(inside), *errors, percent(late), *ranks, coverage])
    return rows


def remarks(record: dict[str, Any]) -> list[str]:
    """Return the remarks below the table."""
    counts, coverage = record["counts"], record["deviation"]["score"]["coverage"]
    level = record["configuration"]["calibration"]["level"]
    remarks = [
        f"Errors are medians, relative to the midpoint of the bounds; the median width of the bounds is "
        f"{percent(_number(record['relative_width']))}. Calibrated errors, their 90th percentile and the coverage are "
        "those of images that were not used to calibrate.",
        f"The {percent(level)} intervals of the score contain the exact score of "
        f"{percent(_number(coverage['share']))} of the held-out images; expected are "
        f"{percent(_number(coverage['expected']))} ± {percent(2 * _number(coverage['standard_error']))}. For the lowest "
        f"tenth of the scores it is {percent(_number(coverage.get('lowest')))}, for the highest tenth "
        f"{percent(_number(coverage.get('highest')))}.",
        f"On average over audits, the intervals contain {percent(level)} of the exact scores, in every group of scores. "
        "An audit of this size contains less, over all images, with probability "
        f"{percent(_number(coverage.get('chance_below')))}, and about one audit in 20 contains less than "
        f"{percent(_number(coverage.get('floor')))}. Audit more images for intervals closer to {percent(level)}.",
    ]
    if record["damping_by_block"]:
        remarks.append(
            "The scores have a damping for each block, the certificates have one for the whole matrix; this is part of the "
            "error. Score with an absolute damping to compare the same inverse."
        )
    if counts["reasons"]:
        listed = ", ".join(f"{times} {reason}" for reason, times in counts["reasons"].items())
        remarks.append(
            f"Of {counts['sample']} images, {counts['narrow']} have bounds as narrow as requested. The others: {listed}. "
            "audit.parquet names them."
        )
    return remarks


def _number(value: Plain) -> float:
    """Return a number of a record; NaN for null."""
    return math.nan if value is None else value


def _decimal(value: Plain) -> str:
    """Write a number of a record with three decimals."""
    return decimal(_number(value))
