"""Show a comparison of backends as JSON, table, and two figures."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from influence_ssl_jax.configuration import Plain, describe
from influence_ssl_jax.evaluation.calibration import Calibration, Coverage, Deviation, Errors, deviation
from influence_ssl_jax.evaluation.comparison import Row, label
from influence_ssl_jax.evaluation.exact import Truth
from influence_ssl_jax.evaluation.statistics import Estimate
from influence_ssl_jax.report.words import decimal, number, percent

Rows = Sequence[dict[str, Plain]]
"""The rows of a comparison as `row_as_json` writes them."""
PARETO, STABILITY = "pareto.png", "damping.png"


def row_as_json(row: Row) -> dict[str, Plain]:
    """Return a row as JSON.

    Nested results become `{name: value}`, numbers that are not finite null.
    """
    values = {name: as_json(getattr(row, name)) for name in Row._fields if name != "backend"}
    if isinstance(row.backend, str):
        return {"name": row.backend, "backend": None, **values}
    return {"name": label(row.backend), "backend": describe(row.backend), **values}


def baseline_rows(values: Mapping[str, np.ndarray], truths: Sequence[Truth]) -> list[dict[str, Plain]]:
    """Return the rows of baselines, with the same columns as backends."""
    loss = values["alignment loss"]
    return [
        row_as_json(
            Row(name, t.relative, deviation=deviation(each, t.lower, t.upper, loss, Calibration()), scores=each)
        )
        for name, each in values.items()
        for t in truths
    ]


def as_json(value: object) -> Plain:
    """Return statistics as JSON.

    Named results become `{name: value}`, arrays lists with six digits, numbers that are not finite null.

    Examples:
        >>> import numpy as np
        >>> as_json(np.asarray([0.1234567, np.nan]))
        [0.123457, None]
    """
    if isinstance(value, Estimate | Errors | Coverage | Deviation):
        return {name: as_json(item) for name, item in value._asdict().items()}
    if isinstance(value, np.ndarray):
        return [as_json(float(f"{item:.6g}")) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


HEADS = (
    "backend",
    "uncalibrated error",
    "error, one factor",
    "calibrated error",
    "Spearman",
    "given the loss",
    "top",
    "bottom",
    "fit, s",
    "1,000 scores, s",
    "MB",
)
"""Titles of the columns of `table`."""


def table(rows: Rows, damping: float) -> list[list[str]]:
    """Return a row of `HEADS` for each backend, the best first.

    Backends without scores at this damping have no row.
    """
    lines = []
    own = [row for row in rows if row["damping"] == damping and row["deviation"]]
    for row in sorted(own, key=lambda row: _error(row, "calibrated")):
        deviation = row["deviation"]
        lines.append(
            [
                row["name"],
                *(percent(_error(row, name)) for name in ("raw", "proportional", "calibrated")),
                *(decimal(_number(deviation[name]["value"])) for name in ("spearman", "partial")),
                *(percent(_number(deviation[name])) for name in ("top", "bottom")),
                *(number(row[name]) for name in ("fit_seconds", "seconds_per_thousand")),
                number(max(_number(row["fit_megabytes"]), _number(row["megabytes"]))),
            ]
        )
    return lines


def write_figures(rows: Rows, folder: Path) -> None:
    """Write two figures, of error over time and error over damping.

    Error over time is that at the middle damping.
    """
    dampings = sorted({row["damping"] for row in rows})
    pareto(rows, dampings[len(dampings) // 2]).savefig(folder / PARETO, dpi=130)
    stability(rows).savefig(folder / STABILITY, dpi=130)


def pareto(rows: Rows, damping: float) -> Figure:
    """Plot median error over time, with the Pareto front.

    The error is calibrated; the time is that to fit and score.
    """
    figure, axes = _figure()
    own = [
        row
        for row in rows
        if row["damping"] == damping and row["backend"] and row["deviation"] and _error(row, "calibrated") > 0
    ]
    points = [
        (_number(row["fit_seconds"]) + _number(row["seconds_per_thousand"]), _error(row, "calibrated")) for row in own
    ]
    for row, (seconds, error) in zip(own, points, strict=True):
        axes.scatter(seconds, error, s=18, color="tab:blue")
        axes.annotate(row["name"], (seconds, error), fontsize=7, xytext=(3, 3), textcoords="offset points")
    best = np.inf
    front = [point for point in sorted(points) if point[1] < best and (best := point[1])]
    axes.plot(*zip(*front, strict=True), color="tab:blue", alpha=0.4) if front else None
    axes.set(xscale="log", yscale="log", xlabel="seconds to fit and score 1,000 images")
    axes.set(ylabel="median relative error, calibrated", title=f"λ = {damping:g} × mean eigenvalue")
    return figure


def stability(rows: Rows) -> Figure:
    """Plot each backend's median calibrated error over damping as a line."""
    figure, axes = _figure()
    for name in dict.fromkeys(row["name"] for row in rows):
        own = sorted((row["damping"], _error(row, "calibrated")) for row in rows if row["name"] == name)
        axes.plot(*zip(*own, strict=True), marker="o", markersize=3, label=name)
    positive = any(_error(row, "calibrated") > 0 for row in rows)  # there is none if the sample is too small
    axes.set(xscale="log", yscale="log" if positive else "linear")
    axes.set(xlabel="λ / mean eigenvalue", ylabel="median relative error, calibrated")
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _figure() -> tuple[Figure, Axes]:
    """Return an empty figure."""
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    return figure, figure.subplots()


def _number(value: float | None) -> float:
    """Return a number; NaN for None."""
    return math.nan if value is None else value


def _error(row: dict[str, Plain], name: str) -> float:
    """Return the median of an error; NaN if there is none."""
    deviation = row["deviation"]
    return math.nan if deviation is None else _number(deviation[name]["median"])
