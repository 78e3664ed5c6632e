"""An audit in a table and remarks, for the report and the command line."""

import math
from pathlib import Path
from typing import Any

from influence_ssl_jax.configuration import Plain
from influence_ssl_jax.errors import StoreError
from influence_ssl_jax.report.words import decimal, percent
from influence_ssl_jax.store import DamagedError, read_record

AUDIT = "audit.json"
HEADS = (
    "",
    "inside",
    "error as it is",
    "one factor",
    "calibrated",
    "90th percentile",
    "Spearman",
    "beyond the loss",
    "coverage",
)

_RANKS = ("spearman", "partial")


def section(folder: Path) -> dict[str, Any] | None:
    """What the report says of a run's audit; None where it has not been audited.

    Raises:
        StoreError: A file of the audit is damaged, or it is an audit of other scores than those that are there.
    """
    if not (folder / AUDIT).is_file():
        return None
    try:
        record = read_record(folder, AUDIT)
    except (DamagedError, FileNotFoundError) as error:
        raise StoreError(
            f"{error} Give the same `influence-ssl audit` command again (it goes on from its certificates), or delete "
            f"{folder / AUDIT}."
        ) from error
    return {"record": record, "heads": HEADS, "rows": table(record), "remarks": remarks(record)}


def table(record: dict[str, Any]) -> list[list[str]]:
    """One row for the score and each baseline, under HEADS."""
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
    """What stands below the table."""
    counts, coverage = record["counts"], record["deviation"]["score"]["coverage"]
    level = record["configuration"]["calibration"]["level"]
    found = [
        f"Errors are medians relative to the middle of the bounds, whose median width is "
        f"{percent(_number(record['relative_width']))}; calibrated ones, their 90th percentile and the coverage are of "
        "images that the calibration has not seen.",
        f"Coverage of the score's {percent(level)} intervals: {percent(_number(coverage['share']))} of held-out images, "
        f"expected {percent(_number(coverage['expected']))} ± {percent(2 * _number(coverage['standard_error']))}; of "
        f"the lowest tenth of scores {percent(_number(coverage.get('lowest')))}, of the highest "
        f"{percent(_number(coverage.get('highest')))}.",
        f"{percent(level)} is the share of exact scores that intervals hold on average over audits, in every group of "
        "scores. One audit of this size holds less than that, over all images, with probability "
        f"{percent(_number(coverage.get('chance_below')))}, and about one of 20 less than "
        f"{percent(_number(coverage.get('floor')))}; audit more images to come closer.",
    ]
    if record["damping_by_block"]:
        found.append(
            "The scores took a damping for each block, certificates take one for the whole matrix: part of the "
            "difference is that. Score with an absolute damping to compare the same inverse."
        )
    if counts["reasons"]:
        listed = ", ".join(f"{times} {reason}" for reason, times in counts["reasons"].items())
        found.append(
            f"Of {counts['sample']} images {counts['narrow']} are certified as narrowly as asked for; the others: {listed}. "
            "They are named in audit.parquet."
        )
    return found


def _number(value: Plain) -> float:
    return math.nan if value is None else value


def _decimal(value: Plain) -> str:
    return decimal(_number(value))
