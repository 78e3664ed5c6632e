"""Do calibrated intervals hold the exact score in every group of scores, and how often does one audit fall short?

    python -m benchmarks.coverage

A population of 20,000 pairs (score, exact score) is drawn for each of four backends on three encoders from the committed
comparisons (experiments/results/compare_*): pairs with replacement, each moved a little along their relation and across it,
so that no two are equal. Every audit takes a random sample of it, calibrates, and is judged by all the others: the share of
exact scores inside their interval in each tenth of the scores and in the highest twentieth. Expected is
`⌈(m + 1) 0.9⌉ / (m + 1)` for the m examples that a group's radius came from: 0.9 for 9, 19, 29, …, which are the counts that
the calibration takes.

Standard errors are over audits. A population is fixed, its groups are fixed, and its audits are independent samples of it:
nothing else varies. No two populations share a random number, but the four of one encoder share its images. Where nothing is
wrong, 4.8 % of groups are more than two standard errors off (Student's t of 100 audits).

The same is done where one exact score in a hundred is 1e-29, as those of blank images are, and for 1,000 audits, whose
standard errors are a third. Minutes; results: benchmarks/results/coverage.json.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from influence_ssl_jax.evaluation.calibration import SHARES, Calibration
from influence_ssl_jax.store import read_sealed

COMPARISONS = Path(__file__).parents[1] / "experiments" / "results"
RESULT = Path(__file__).parent / "results" / "coverage.json"
BACKENDS = ("LoGra 8", "Arnoldi 24", "EKFAC", "Identity")
DAMPING, SIZE, LEVEL, BLANK = 0.1, 20_000, 0.9, 1e-29
CASES = ((200, 0.0, 100), (500, 0.0, 100), (200, 0.01, 100), (200, 0.0, 1000), (500, 0.0, 1000), (200, 0.01, 1000))
"""Audited images, share of exact scores that are nearly zero, number of audits."""
GROUPS = (*(f"tenth {k + 1}" for k in range(10)), "highest twentieth")


def pairs(folder: Path, backend: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores and exact scores of a backend in a committed comparison."""
    rows = json.loads((folder / "comparison.json").read_text())["rows"]
    (row,) = (row for row in rows if row["name"] == backend and row["damping"] == DAMPING)
    (truth,) = (each for each in read_sealed(folder / "truth.json")["rows"] if each["relative"] == DAMPING)
    return np.array(row["scores"], float), np.array(truth["lower"], float)


def population(
    scores: np.ndarray, exact: np.ndarray, blank: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw many pairs like some: with replacement, moved along the line of their logarithms and across it.

    Args:
        scores: Scores.
        exact: Exact scores.
        blank: Share of pairs whose exact score becomes nearly zero.
        rng: What is drawn from.
    """
    x, y = np.log(scores), np.log(exact)
    slope, shift = np.polyfit(x, y, 1)
    chosen = rng.integers(len(x), size=SIZE)
    along = 0.5 * len(x) ** -0.2 * np.std(x) * rng.normal(size=SIZE)
    across = 0.3 * np.std(y - slope * x - shift) * rng.normal(size=SIZE)
    truth = np.exp(y[chosen] + slope * along + across)
    return np.exp(x[chosen] + along), np.where(rng.uniform(size=SIZE) < blank, BLANK, truth)


def judge(scores: np.ndarray, exact: np.ndarray, audited: int, audits: int, rng: np.random.Generator) -> dict[str, Any]:
    """Measure the coverage by group over audits, beside what is expected, and the median width of an interval."""
    tenths = np.quantile(scores, SHARES)
    group = np.searchsorted(tenths, scores)
    shares, expected, whole, widths = [], [], [], []
    for seed in range(audits):
        sample = rng.choice(len(scores), audited, replace=False)
        fitted = Calibration(level=LEVEL, seed=seed).fit(scores[sample], exact[sample], exact[sample], tenths)
        intervals, promised = fitted(scores), fitted.expected[fitted.groups(scores)]
        inside = (intervals.low <= exact) & (exact <= intervals.high)
        unseen = np.bincount(group, minlength=11) - np.bincount(group[sample], minlength=11)
        inside[sample] = promised[sample] = 0
        shares.append(_by_group(inside, group, unseen))
        expected.append(_by_group(promised, group, unseen))
        whole.append(inside.sum() / unseen.sum())
        widths.append(np.median(intervals.high / intervals.low))
    shares, expected = np.array(shares), np.array(expected)
    off = np.mean(shares - expected, axis=0)
    error = np.std(shares - expected, axis=0, ddof=1) / audits**0.5
    return {
        "coverage": _rounded(np.mean(shares, axis=0)),
        "expected": _rounded(np.mean(expected, axis=0)),
        "standard_error": _rounded(error),
        "within_two": int(np.sum(np.abs(off) <= 2 * error)),
        "below_level_by_two": int(np.sum(np.mean(shares, axis=0) < LEVEL - 2 * error)),
        "groups": len(GROUPS),
        "audits_below_level": float(np.mean(np.array(whole) < LEVEL)),
        "worst_of_20_audits": round(float(np.quantile(whole, 0.05)), 4),
        "worst_of_20_audits_in_one_group": round(float(np.mean(np.quantile(shares, 0.05, axis=0))), 4),
        "median_width": round(float(np.median(widths)), 3),
    }


def _by_group(values: np.ndarray, group: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return means over the ten tenths and over the highest twentieth, from sums over the eleven parts that SHARES cut."""
    total = np.bincount(group, values, minlength=11)
    means = total / count
    return np.array([*means[:9], (total[9] + total[10]) / (count[9] + count[10]), means[10]])


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]


def main() -> None:
    """Judge every backend on every encoder; write and print the results."""
    rows = []
    for encoder, folder in enumerate(sorted(COMPARISONS.glob("compare_*_w16_cifar10"))):
        for kind, backend in enumerate(BACKENDS):
            for case, (audited, blank, audits) in enumerate(CASES):
                rng = np.random.default_rng([encoder, kind, case])
                many = population(*pairs(folder, backend), blank, rng)
                row = judge(*many, audited, audits, rng)
                rows.append(
                    {"encoder": folder.name, "backend": backend, "audited": audited, "blank": blank, "audits": audits}
                    | row
                )
                print(json.dumps(rows[-1]), flush=True)
    settings = {"level": LEVEL, "population": SIZE, "damping": DAMPING, "groups": GROUPS}
    RESULT.write_text(json.dumps({**settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
