"""Which inverse-Hessian backend is how far from exact scores, at what cost?

Question: after calibration on a certified sample, how large is each backend's error, over its main knob and over the
damping, and what does it know beyond the alignment loss?

    python experiments/compare_ihvp.py                    a small trained net, dense truth
    python experiments/compare_ihvp.py --encoder experiments/encoders/simclr_w16_cifar10.npz --data-dir DATA

The first takes minutes on two cores. The second certifies each audited image by Lanczos quadrature (some 30 products
with C for each draw) and takes hours on two cores, minutes on an accelerator.
"""

import dataclasses
import json
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.figure import Figure
from rich.console import Console

from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.commands.score import Score
from influence_ssl_jax.commands.score_run import prepare, problem_over
from influence_ssl_jax.commands.scoring_settings import CurvatureSet
from influence_ssl_jax.configuration import describe
from influence_ssl_jax.data import Digits
from influence_ssl_jax.data.loader import batches
from influence_ssl_jax.data.tfds import Tfds
from influence_ssl_jax.ihvp import (
    EKFAC,
    KFAC,
    Arnoldi,
    Backend,
    Damping,
    Deflated,
    Diagonal,
    Exact,
    Identity,
    LoGra,
    Nystrom,
)
from influence_ssl_jax.influence.audit import Audit, absolute_damping, audit, sample
from influence_ssl_jax.influence.calibration import Calibration
from influence_ssl_jax.influence.comparison import Contender, fitted, raced
from influence_ssl_jax.influence.fidelity import fidelity
from influence_ssl_jax.influence.scores import Scoring


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compared.

    Attributes:
        encoder: A pretrained encoder.
        out: Folder for comparison.json and two figures.
        data_dir: Where tensorflow-datasets keeps CIFAR-10; the bundled digits where None.
        examples: Certified images.
        width: Width of their bounds.
        curvature: Images that C is averaged over.
        draws: Noise draws per image.
        ranks: The main knob of low-rank backends.
        dampings: λ over the mean eigenvalue.
        dense: Take exact scores from the dense matrix instead of certifying them.
    """

    encoder: Path = Path("demo/encoder")
    out: Path = Path("runs/compare_ihvp")
    data_dir: Path | None = None
    examples: int = 200
    width: float = 0.01
    curvature: int = 512
    draws: int = 2
    ranks: tuple[int, ...] = (16, 64)
    dampings: tuple[float, ...] = (0.01, 0.1, 1.0)
    dense: bool = False

    @classmethod
    def tiny(cls, encoder: Path, out: Path) -> "Config":
        """Seconds on two cores."""
        return cls(encoder, out, examples=12, width=0.05, curvature=32, draws=1, ranks=(4,), dampings=(0.1,))


def backends(config: Config) -> list[Backend]:
    """Every scalable backend over its main knob."""
    low_rank = [make(rank) for rank in config.ranks for make in (_logra, _arnoldi, _nystrom, _deflated)]
    return [Identity(), Diagonal(samples=4), KFAC(samples=4), EKFAC(samples=4), *low_rank]


def run(config: Config) -> list[dict]:
    """Certify, fit, score; one row for each backend and damping."""
    source = Tfds("cifar10", split="test", data_dir=str(config.data_dir)) if config.data_dir else Digits()
    scoring = Scoring(draws=config.draws)
    made = Score(
        config.encoder,
        config.out,
        source,
        perturbation=GaussianNoise(),
        curvature=CurvatureSet(examples=config.curvature),
        scoring=scoring,
    )
    given = prepare(made, Console())
    problem, settings = problem_over(made, given), Audit(config.examples, config.width, batch_size=4)
    chosen = sample(settings, len(given.source))
    loaded = list(batches(given.source, given.transform, 20, jax.random.key(scoring.seed), chosen))
    valid = np.concatenate([part.valid for part in loaded])
    contenders = [fitted(backend, problem) for backend in backends(config)]
    rows = []
    for relative in config.dampings:
        damping = absolute_damping(problem, Damping(relative), settings)
        lower, upper = _truth(config, problem, given, damping, scoring, settings, loaded)
        for contender in contenders:
            race = raced(
                contender,
                problem,
                given.measurement,
                [part.batch for part in loaded],
                Damping(absolute=float(damping)),
                scoring,
            )
            found = fidelity(race.scores[valid], lower, upper, race.alignment_loss[valid], Calibration())
            rows.append(_row(contender, relative, race.seconds_per_thousand, race.megabytes, found))
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "comparison.json").write_text(json.dumps({"config": describe(config), "rows": rows}, indent=2))
    return rows


def plot(rows: list[dict], relative: float) -> Figure:
    """Calibrated error against the time for 1,000 scores, and against damping."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    names = list(dict.fromkeys(row["name"] for row in rows))
    for name in names:
        own = [row for row in rows if row["name"] == name]
        at = next(row for row in own if row["damping"] == relative)
        left.scatter(at["seconds_per_thousand"], at["error"], label=name)
        left.annotate(name, (at["seconds_per_thousand"], at["error"]), fontsize=7)
        right.plot([row["damping"] for row in own], [row["error"] for row in own], marker="o", label=name)
    left.set(xscale="log", yscale="log", xlabel="seconds per 1,000 scores", ylabel="median error, one factor")
    right.set(xscale="log", yscale="log", xlabel="damping / mean eigenvalue", ylabel="median error, one factor")
    right.legend(fontsize=7)
    return figure


def _truth(config, problem, given, damping, scoring, settings, loaded):
    """Exact scores, dense or as bounds, in the order of the sample."""
    if not config.dense:
        table = audit(problem, given.source, given.transform, damping, scoring, settings, given.measurement)
        return table["lower"].to_numpy(), table["upper"].to_numpy()
    parts = [part.batch for part in loaded]
    valid = np.concatenate([part.valid for part in loaded])
    exact = fitted(Exact(), problem)
    scores = raced(exact, problem, given.measurement, parts, Damping(absolute=float(damping)), scoring).scores[valid]
    return scores, scores


def _row(contender: Contender, relative: float, seconds: float, megabytes: float, found) -> dict:
    settings = describe(contender.backend)
    knob = settings.get("rank")
    return {
        "name": type(contender.backend).__name__ + (f" {knob}" if knob else ""),
        "backend": settings,
        "damping": relative,
        "fit_seconds": contender.seconds,
        "fit_megabytes": contender.megabytes,
        "seconds_per_thousand": seconds,
        "megabytes": megabytes,
        "raw_error": found.raw.median,
        "error": found.proportional.median,
        "calibrated_error": found.calibrated.median,
        "spearman": found.spearman._asdict(),
        "partial_spearman": found.partial._asdict(),
        "coverage": found.coverage._asdict(),
        "inside": found.inside._asdict(),
        "top": found.top,
        "bottom": found.bottom,
    }


def _logra(rank: int) -> Backend:
    return LoGra(rank, complement="keep")


def _arnoldi(rank: int) -> Backend:
    return Arnoldi(rank)


def _nystrom(rank: int) -> Backend:
    return Nystrom(rank, complement="mean")


def _deflated(rank: int) -> Backend:
    return Deflated(rank, samples=4)


if __name__ == "__main__":
    chosen = tyro.cli(Config)
    found = run(chosen)
    plot(found, 0.1 if 0.1 in chosen.dampings else chosen.dampings[0]).savefig(chosen.out / "comparison.png", dpi=150)
    for row in sorted(found, key=lambda row: (row["damping"], row["error"])):
        print(
            f"{row['damping']:<6} {row['name']:<14} {row['raw_error']:8.3f} {row['error']:8.4f} {row['spearman']['value']:.4f}"
        )
