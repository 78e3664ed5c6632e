"""Do calibrated intervals hold the exact score in every group of scores, and how often does one audit fall short?

    python -m benchmarks.coverage

A population of 20,000 pairs (score, exact score) is drawn for each of four backends on three encoders from the committed
comparisons (experiments/results/compare_*): pairs with replacement, each moved a little along their relation and across it,
so that no two are equal. Each of 100 seeds audits a random sample of it, calibrates, and is judged by the whole population:
the share of exact scores inside their interval in each tenth of the scores and in the highest twentieth. Expected is
`⌈(m + 1) 0.9⌉ / (m + 1)` for the m examples that a group's radius came from, at least 0.9. The same is done with two of the
sample's exact scores set to 1e-29, as blank images have them. Seconds; results: benchmarks/results/coverage.json.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from influence_ssl_jax.evaluation.calibration import SHARES, Calibration
from influence_ssl_jax.store import read_sealed

COMPARISONS = Path(__file__).parents[1] / "experiments" / "results"
RESULT = Path(__file__).parent / "results" / "coverage.json"
BACKENDS = ("LoGra 8 dropped", "Arnoldi 24", "EKFAC", "Identity")
DAMPING, SIZE, SEEDS, LEVEL = 0.1, 20_000, 100, 0.9
AUDITED = (200, 500)
GROUPS = (*(f"tenth {k + 1}" for k in range(10)), "highest twentieth")


def pairs(folder: Path, backend: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores and exact scores of a backend in a committed comparison."""
    rows = json.loads((folder / "comparison.json").read_text())["rows"]
    (row,) = (row for row in rows if row["name"] == backend and row["damping"] == DAMPING)
    (truth,) = (each for each in read_sealed(folder / "truth.json")["rows"] if each["relative"] == DAMPING)
    return np.array(row["scores"], float), np.array(truth["lower"], float)


def population(scores: np.ndarray, exact: np.ndarray, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Many pairs like some: drawn with replacement, moved along the line of their logarithms and across it."""
    rng, x, y = np.random.default_rng(seed), np.log(scores), np.log(exact)
    slope, shift = np.polyfit(x, y, 1)
    chosen = rng.integers(len(x), size=size)
    along = 0.5 * len(x) ** -0.2 * np.std(x) * rng.normal(size=size)
    across = 0.3 * np.std(y - slope * x - shift) * rng.normal(size=size)
    return np.exp(x[chosen] + along), np.exp(y[chosen] + slope * along + across)


def judged(scores: np.ndarray, exact: np.ndarray, audited: int, seeds: int, zeros: int = 0) -> dict[str, Any]:
    """Coverage by group over seeds, beside what is expected; and the median width of an interval."""
    rank = np.argsort(np.argsort(scores))
    members = [rank * 10 // len(scores) == k for k in range(10)] + [rank >= 0.95 * len(scores)]
    shares, expected, whole, widths, tenths = [], [], [], [], np.quantile(scores, SHARES)
    for seed in range(seeds):
        sample = np.random.default_rng(seed).permutation(len(scores))[:audited]
        known = np.where(np.arange(audited) < zeros, 1e-29, exact[sample])
        made = Calibration(level=LEVEL, seed=seed).fit(scores[sample], known, known, tenths)
        found, promised = made(scores), made.expected[made.groups(scores)]
        inside = (found.low <= exact) & (exact <= found.high)
        shares.append([inside[each].mean() for each in members])
        expected.append([promised[each].mean() for each in members])
        whole.append(inside.mean())
        widths.append(np.median(found.high / found.low))
    off = np.array(shares) - np.array(expected)
    error = np.std(off, axis=0, ddof=1) / seeds**0.5
    return {
        "coverage": _rounded(np.mean(shares, axis=0)),
        "expected": _rounded(np.mean(expected, axis=0)),
        "standard_error": _rounded(error),
        "within_two": int(np.sum(np.abs(np.mean(off, axis=0)) <= 2 * error)),
        "not_below_level": int(
            np.sum(np.mean(shares, axis=0) >= LEVEL - 2 * np.std(shares, axis=0, ddof=1) / seeds**0.5)
        ),
        "groups": len(members),
        "audits_below_level": float(np.mean(np.array(whole) < LEVEL)),
        "worst_of_20_audits": round(float(np.quantile(whole, 0.05)), 4),
        "median_width": round(float(np.median(widths)), 3),
    }


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]


def main() -> None:
    """Judge every backend on every encoder, write and print what came out."""
    rows = []
    for folder in sorted(COMPARISONS.glob("compare_*_w16_cifar10")):
        for backend in BACKENDS:
            many = population(*pairs(folder, backend), SIZE)
            for audited, zeros in (*((count, 0) for count in AUDITED), (AUDITED[0], 2)):
                found = judged(*many, audited, SEEDS, zeros)
                rows.append({"encoder": folder.name, "backend": backend, "audited": audited, "zeros": zeros, **found})
                print(json.dumps(rows[-1]), flush=True)
    settings = {"level": LEVEL, "seeds": SEEDS, "population": SIZE, "damping": DAMPING, "groups": GROUPS}
    RESULT.write_text(json.dumps({**settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
