"""How good are the encoders of the study? Their classes by a linear classifier and by neighbours, on all test images.

    python -m experiments.study.accuracy --data-dir DIR                      (eight minutes of a busy core)

Published (solo-learn): 90.7 % (SimCLR), 92.6 % (BYOL) and 92.1 % (Barlow Twins), of a classifier that is trained beside
encoders four times as wide for 1,000 epochs. Here it is fitted to the representations of all training images afterwards.

Found: 67.6 % (SimCLR), 63.3 % (BYOL), 65.7 % (Barlow Twins).
"""

from typing import Any

from rich.console import Console

from experiments.study import results
from experiments.study.table import Study
from influence_ssl_jax.cli.console import Renderer
from influence_ssl_jax.data import Source, Tfds
from influence_ssl_jax.evaluation.statistics import share
from influence_ssl_jax.runs.probe import ProbeRun, probe
from influence_ssl_jax.runs.settings import Unseen


def divided(study: Study) -> tuple[Source, Unseen]:
    """Return training images and test images; the digits' are divided in halves."""
    if study.images != "digits":
        return Tfds("cifar10", "train", study.data_dir), Unseen(split="test")
    study.run.mkdir(parents=True, exist_ok=True)
    ids = list(study.source().open().ids())
    for name, half in {"train": ids[::2], "test": ids[1::2]}.items():
        (study.run / f"{name}.txt").write_text("\n".join(half) + "\n", encoding="utf-8")
    return study.source(study.run / "train.txt"), Unseen(only=str(study.run / "test.txt"))


def find(study: Study) -> tuple[dict[str, Any], None]:
    """Measure the accuracies, with Wilson's intervals over the test images."""
    source, test = divided(study)
    record = probe(ProbeRun(study.encoder, source, test, study.run / "probe.json"), Renderer(Console()))
    counts = {name: record["counts"][name] for name in ("training", "test", "classes")}
    accuracies = {
        name: share(round(value * counts["test"]), counts["test"]) for name, value in record["accuracies"].items()
    }
    return {**counts, "accuracy": accuracies}, None


if __name__ == "__main__":
    results.main("accuracy", find)
