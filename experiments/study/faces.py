"""Which faces are influential? Figures 7 and 8: light and pose, and which groups are frequent among the highest.

Published (BYOL, 200 epochs, FairFace): the highest 10 are side poses in poor light; among the highest 100, Black and Middle
Eastern faces are over-represented, then White ones, and East and Southeast Asian ones under-represented.

    python -m experiments.study.faces --fairface DIR

DIR holds FairFace (Kärkkäinen & Joo 2021, CC BY 4.0) as it is published. The encoder is that of experiments/train_faces.py,
and scored are the images that it was trained on: cosine distance of the representations under noise of σ = 0.2, LoGra of
rank 16 over the Gauss–Newton matrix of 1,024 images, two draws. The run continues where it was stopped, and leaves one row
an image in table.parquet.

Counted are race, gender and age (FairFace's own words) among the highest and lowest 100 and 400, by the score and by its
rivals: alignment loss, norm of the gradient, and darkness, the mean of the pixels. Dark skin is dark, and so is poor light,
so every count stands beside the one of faces drawn at random with as many in each tenth of brightness. What is left is not
explained by how dark the image is; what is gone may be skin or light, which brightness does not tell apart.

Poor light is measured as the share of the darkest tenth and of the tenth of least contrast among the highest. Pose has no
label in FairFace. The asymmetry of the image is a stand-in that side light and background change too; nothing is judged by
it.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from jaxtyping import Bool, Int
from matplotlib.figure import Figure
from rich.console import Console

from experiments.study import measures, results
from experiments.study.beyond_loss import reliability
from experiments.study.table import EXPERIMENTS, NUMBERS, Table, embed_images, find_encoder, scored_parts
from influence_ssl_jax.cli.console import Renderer
from influence_ssl_jax.cli.environment import keep_compiled_programs, keep_convolutions_whole
from influence_ssl_jax.configuration import describe
from influence_ssl_jax.data import Folder
from influence_ssl_jax.encoder import Encoder
from influence_ssl_jax.evaluation.statistics import Estimate, bootstrap, share, spearman
from influence_ssl_jax.nets.network import Network
from influence_ssl_jax.provenance import versions
from influence_ssl_jax.runs.prepare import load_encoder
from influence_ssl_jax.runs.score import score
from influence_ssl_jax.runs.settings import CurvatureSet, ScoreRun
from influence_ssl_jax.scoring.scores import Scoring
from influence_ssl_jax.train.probes import Labelled, knn_accuracy, linear_accuracy

ATTRIBUTES = ("race", "gender", "age")
MEASURED = ("brightness", "contrast", "asymmetry")
RANKINGS = {
    "highest scores": ("score", -1),
    "lowest scores": ("score", 1),
    "highest alignment losses": ("alignment_loss", -1),
    "highest gradient norms": ("gradient_norm", -1),
    "darkest": ("brightness", 1),
}
"""What faces are ordered by, and with which sign: the first come first."""
SIZES = (100, 400)
TENTHS = 10
PICTURES, ACROSS = 20, 10


@dataclasses.dataclass(frozen=True)
class Faces:
    """Which faces are scored, and how.

    Attributes:
        encoder: The network: the name of a folder in experiments/encoders, another folder of an imported encoder, or
            package.module:function, which returns one.
        fairface: Folder of FairFace: the two lists of labels, `train` and `val`.
        sizes: How many of the highest and of the lowest are counted.
        scoring: Draws and batches.
        curvature: The matrix that is inverted.
        so_far: Write the result of the faces that are scored so far, and score no more. They are the first of the list.
        runs: Folder of the runs.
        results: Folder of the results.
        figures: Folder of the pictures.
    """

    encoder: Path = EXPERIMENTS / "encoders" / "byol_torch_w8_fairface"
    fairface: Path | None = None
    sizes: tuple[int, ...] = SIZES
    scoring: Scoring = dataclasses.field(default_factory=lambda: Scoring(draws=2, batch_size=64))
    curvature: CurvatureSet = dataclasses.field(default_factory=CurvatureSet)
    so_far: bool = False
    runs: Path = Path("runs/study")
    results: Path = EXPERIMENTS / "results" / "study"
    figures: Path = EXPERIMENTS.parent / "docs" / "results" / "figures"

    def __post_init__(self) -> None:
        """Find the encoder."""
        object.__setattr__(self, "encoder", find_encoder(self.encoder))

    @property
    def run(self) -> Path:
        """Folder of the scores."""
        return self.runs / self.encoder.name

    @property
    def kept(self) -> Path:
        """Folder of the results."""
        return self.results / self.encoder.name

    def source(self, split: Literal["train", "val"], label: str | None = None) -> Folder:
        """Return the faces of a split with their attributes.

        Raises:
            ValueError: If the folder of FairFace is not named.
        """
        if self.fairface is None:
            raise ValueError("The faces are needed: name the folder of FairFace with --fairface.")
        table = self.fairface / f"fairface_label_{split}.csv"
        return Folder(str(self.fairface / split), table=str(table), label_column=label)

    def settings(self) -> ScoreRun:
        """Return the settings of the run of scores."""
        return ScoreRun(
            self.encoder, self.run / "scores", self.source("train"), curvature=self.curvature, scoring=self.scoring
        )

    def pixels(self, ids: np.ndarray) -> np.ndarray:
        """Read the images with these ids."""
        opened = self.source("train").open()
        place = {name: number for number, name in enumerate(opened.ids())}
        return np.stack([opened.read(place[name]).image for name in ids])


def run(faces: Faces) -> Path:
    """Score, measure, and write the table; returns its place.

    Raises:
        ValueError: If nothing is scored so far, and no more is to be.
    """
    began = time.monotonic()
    if not faces.so_far:
        score(faces.settings(), Renderer(Console()))
    elif not any((faces.run / "scores" / "parts").glob("**/*.arrow")):
        raise ValueError(f"No face is scored yet, found no scores in {str(faces.run)!r}: leave --so-far out.")
    scored, opened = scored_parts(faces.run), faces.source("train").open()
    rows, known = scored["index"].to_numpy(), opened.attributes()
    assert known is not None  # the list of labels is always given
    images = np.stack([opened.read(int(row)).image for row in rows])
    columns = {
        "id": scored["id"],
        **{name: scored[name].to_numpy().astype(np.float32) for name in NUMBERS},
        **{name: getattr(measures, name)(images).astype(np.float32) for name in MEASURED},
        **{name: known[name].take(pa.array(rows)).cast(pa.string()).dictionary_encode() for name in ATTRIBUTES},
    }
    faces.kept.mkdir(parents=True, exist_ok=True)
    out, settings = faces.kept / "table.parquet", faces.settings()
    pq.write_table(pa.table(columns), out, compression="zstd", compression_level=19)
    record = {
        "command": f"python -m experiments.study.faces --encoder {faces.encoder.name} --fairface DIR",
        "minutes": round((time.monotonic() - began) / 60, 1),
        "images": {"all": len(rows), "of": len(opened)},
        "settings": {
            name: describe(getattr(settings, name))
            for name in ("output", "perturbation", "measurement", "curvature", "backend", "scoring")
        },
        "accuracy": results.rounded(accuracies(faces)),
        "versions": versions(),
    }
    out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return out


def untrained(encoder: Encoder) -> Encoder:
    """Return the same network with fresh parameters and statistics."""
    network = encoder.network
    assert isinstance(network, Network)  # encoders of files and of linen modules are
    images = jnp.zeros((1, encoder.input.height, encoder.input.width, encoder.input.channels), jnp.float32)
    arguments: dict[str, Any] = dict(network.arguments)
    variables = network.module.init(jax.random.key(0), images, method=network.method, **arguments)
    frozen = {name: state for name, state in variables.items() if name != "params"}
    return dataclasses.replace(encoder, params=variables["params"], frozen=frozen)


CLASSIFIERS = {
    "20 neighbours": lambda known, asked: knn_accuracy(known, asked, 20, 0.07),
    "linear probe": linear_accuracy,
}
"""What tells an attribute of some faces by those of others."""


def accuracies(faces: Faces) -> dict[str, dict[str, Any]]:
    """Return how well the faces of train tell each attribute of those of val, by neighbours and by a linear probe.

    Beside the encoder stand the same network before training, and the most frequent value of train for every face.
    """
    trained, shares = load_encoder(faces.encoder), {name: {} for name in ATTRIBUTES}
    for title, encoder in {"encoder": trained, "untrained": untrained(trained)}.items():
        vectors = [embed_images(encoder, faces.source(split).open()) for split in ("train", "val")]
        for name in ATTRIBUTES:
            bank, asked = attribute(faces, "train", name), attribute(faces, "val", name)
            values, numbers = np.unique(np.concatenate([bank, asked]), return_inverse=True)
            labels = numbers[: len(bank)], numbers[len(bank) :]
            for classifier, accuracy in CLASSIFIERS.items():
                right = accuracy(Labelled(vectors[0], labels[0]), Labelled(vectors[1], labels[1]))
                shares[name].setdefault(classifier, {})[title] = share(round(right * len(asked)), len(asked))
            most = values[np.bincount(labels[0]).argmax()]
            shares[name]["most frequent"] = share(int(np.sum(asked == most)), len(asked))
            shares[name]["faces"] = len(asked)
    return shares


def attribute(faces: Faces, split: Literal["train", "val"], name: str) -> np.ndarray:
    """Return an attribute of all faces of a split."""
    known = faces.source(split).open().attributes()
    assert known is not None  # the list of labels is always given
    return known[name].cast(pa.string()).to_numpy(zero_copy_only=False).astype(str)


def tenths(values: np.ndarray) -> Int[np.ndarray, " faces"]:
    """Return the tenth of every value: 0 has the smallest."""
    ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return ranks * TENTHS // len(values)


def at_random(
    member: Bool[np.ndarray, " faces"],
    chosen: Int[np.ndarray, " rows"],
    stratum: Int[np.ndarray, " faces"],
    draws: int = 10_000,
) -> Estimate:
    """Return the share of members among faces drawn at random, as many in each stratum as there are chosen ones.

    Args:
        member: Who is a member.
        chosen: The rows that are compared with the draws.
        stratum: What the draws keep.
        draws: Number of draws.

    Returns:
        The expectation, and the interval that holds 95 % of the draws.
    """
    generator, drawn, expected = np.random.default_rng(0), np.zeros(draws), 0.0
    for each in np.unique(stratum[chosen]):
        inside, count = stratum == each, int(np.sum(stratum[chosen] == each))
        members = int(np.sum(member & inside))
        drawn += generator.hypergeometric(members, int(inside.sum()) - members, count, size=draws)
        expected += count * members / inside.sum()
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(expected / len(chosen), float(low) / len(chosen), float(high) / len(chosen))


def counted(table: Table, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Return the shares of every group in all and among the first of every ranking."""
    tenth = {name: tenths(table[name]) for name in ("brightness", "contrast")}
    groups: dict[str, Any] = {}
    for name in ATTRIBUTES:
        groups[name] = {}
        for value in np.unique(table[name].astype(str)):
            member = table[name].astype(str) == value
            groups[name][value] = {"all": float(member.mean()), "faces": int(member.sum())}
            groups[name][value] |= {
                f"{ranking} {size}": {
                    "share": share(int(member[rows].sum()), size),
                    "at the same brightness": at_random(member, rows, tenth["brightness"]),
                }
                for ranking, size, rows in first(table, sizes)
            }
    dim = {"darkest tenth": tenth["brightness"] == 0, "tenth of least contrast": tenth["contrast"] == 0}
    light = {
        f"{ranking} {size}": {name: share(int(member[rows].sum()), size) for name, member in dim.items()}
        for ranking, size, rows in first(table, sizes)
        if ranking != "darkest"
    }
    return {"groups": groups, "light": light}


def first(table: Table, sizes: tuple[int, ...]) -> list[tuple[str, int, np.ndarray]]:
    """Return ranking, size and rows of the first of every ranking; those without a number come last."""
    return [
        (ranking, size, np.argsort(sign * table[column], kind="stable")[:size])
        for ranking, (column, sign) in RANKINGS.items()
        for size in sizes
    ]


def compared(table: Table, sizes: tuple[int, ...], resamples: int = 1000) -> dict[str, Any]:
    """Return what the table says: groups, light, and what else goes along with the score.

    Raises:
        ValueError: If there are fewer faces than the largest size, or faces without a score.
    """
    if len(table["id"]) < max(sizes) or not np.isfinite(table["score"]).all():
        scored = int(np.isfinite(table["score"]).sum())
        raise ValueError(f"{max(sizes)} scored faces are needed, and none without a score: got {scored} scored faces.")
    rivals = ("alignment_loss", "gradient_norm", *MEASURED)
    return {
        "images": len(table["id"]),
        "of": table.record["images"]["of"],
        "sizes": sizes,
        "accuracy": table.record["accuracy"],
        "reliability of the score": reliability(table),
        "spearman": {name: bootstrap(spearman, table["score"], table[name], resamples=resamples) for name in rivals},
        **counted(table, sizes),
    }


def find(faces: Faces, resamples: int = 1000) -> tuple[dict[str, Any], Figure]:
    """Compare groups, and show the highest, the lowest and random faces."""
    table = Table.load(faces.kept)
    order = np.argsort(-table["score"], kind="stable")
    drawn = np.random.default_rng(0).choice(len(order), min(PICTURES, len(order)), replace=False)
    shown = []
    for title, rows in {"highest": order[:PICTURES], "lowest": order[::-1][:PICTURES], "random": drawn}.items():
        words = [f"{table['score'][row]:.3g}" for row in rows]
        shown.append((f"{title} scores", faces.pixels(table["id"][rows]), words))
    return compared(table, faces.sizes, resamples), results.gallery(shown, ACROSS)


def answer(faces: Faces) -> Path:
    """Score, compare, and write the result with its figure, whose faces are credited beside it."""
    run(faces)
    record, figure = find(faces)
    faces.figures.mkdir(parents=True, exist_ok=True)
    figure.savefig(faces.figures / "faces.jpg", dpi=72, pil_kwargs={"quality": 85})
    made = {name: Table.load(faces.kept).record[name] for name in ("command", "minutes")}
    return results.write(faces.kept, "faces", {**made, **record})


if __name__ == "__main__":
    keep_compiled_programs()
    keep_convolutions_whole()
    print(answer(tyro.cli(Faces)).read_text(encoding="utf-8"))
