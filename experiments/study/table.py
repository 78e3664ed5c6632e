"""Which images does an encoder's score rank first and last, and what else is known of these images?

One table that the other files of this folder read. Scored are, in one run and with one curvature matrix: a random sample of
the training images, all training images of one class, and every image of a pair that people judged to be duplicates
(between test and train, or within test). Cosine distance of the representations of an image and of itself under noise of
σ = 0.2, LoGra of rank 16 over the Gauss–Newton matrix of 1,024 images, two draws.

    python -m experiments.study.table --data-dir DIR --truth DIR

`--truth` names a folder with ciFAIR's lists (cifair_duplicates_cifar10.csv and cifair_duplicates_cifar10_test.csv:
TestID, TrainID, Distance, Judgment). The run continues where it was stopped. Written to `results/study/<encoder>`:
table.parquet, 32-bit numbers, one row for each image; table.json, how it was made.

Found (SimCLR of 29 epochs): 20 images a second of one core, two draws each; the fit and compiling take a minute and a half.
"""

import dataclasses
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from jaxtyping import Float, Int, Shaped, UInt8
from rich.console import Console

from experiments.study import measures
from influence_ssl_jax.cli.console import Renderer
from influence_ssl_jax.cli.environment import keep_compiled_programs, keep_convolutions_whole
from influence_ssl_jax.configuration import describe
from influence_ssl_jax.data import Digits, OpenSource, Parquet, Source, Tfds, batches
from influence_ssl_jax.encoder import Encoder
from influence_ssl_jax.provenance import versions
from influence_ssl_jax.runs.score import score
from influence_ssl_jax.runs.settings import CurvatureSet, ScoreRun
from influence_ssl_jax.scoring.neighbours import find_neighbours
from influence_ssl_jax.scoring.scores import Scoring
from influence_ssl_jax.scoring.stream import embedding_matrix

EXPERIMENTS = Path(__file__).parent.parent
TRUTH = ("cifair_duplicates_cifar10.csv", "cifair_duplicates_cifar10_test.csv")
NUMBERS = ("score", "score_se", "alignment_loss", "gradient_norm", "pixel_variance")


def find_encoder(named: Path) -> Path:
    """Return the folder in experiments/encoders that is named, as results name it, or what is named."""
    committed = EXPERIMENTS / "encoders" / named.name
    return committed if len(named.parts) == 1 and committed.is_dir() and not named.exists() else named


@dataclasses.dataclass(frozen=True)
class Study:
    """What is studied, and at which scale.

    Attributes:
        encoder: The network: the name of a folder in experiments/encoders, another folder of an imported encoder, or
            package.module:function, which returns one.
        images: Which data: CIFAR-10, or the bundled digits, which need no download.
        data_dir: Where tensorflow-datasets keeps prepared data sets.
        files: Folder of CIFAR-10 as parquet files, as `benchmarks.gpu` writes them, in place of `data_dir`.
        truth: Folder of the lists of judged duplicates; not read for digits, which know their own.
        sample: Random training images.
        variants: Images of the sample that are scored under other perturbations, curvatures and dampings too.
        whole_class: The class of which every training image is scored; 1 is 'automobile'.
        scoring: Draws and batches.
        curvature: The matrix that is inverted.
        exact_rows: Images of the matrix that is inverted exactly, of those of `curvature` at most; a row each.
        so_far: Write the table of the images that are scored so far, and score no more. Test images come first, then
            training images in the random order of tensorflow-datasets' files, so that what is scored of the sample is a
            random sample itself.
        runs: Folder of the runs.
        results: Folder of the results.
        figures: Folder of the pictures.
    """

    encoder: Path = EXPERIMENTS / "encoders" / "simclr_torch_w16_cifar10"
    images: Literal["cifar10", "digits"] = "cifar10"
    data_dir: str | None = None
    files: Path | None = None
    truth: Path | None = None
    sample: int = 6_000
    variants: int = 200
    whole_class: int = 1
    scoring: Scoring = dataclasses.field(default_factory=lambda: Scoring(draws=2, batch_size=64))
    curvature: CurvatureSet = dataclasses.field(default_factory=CurvatureSet)
    exact_rows: int = 512
    so_far: bool = False
    runs: Path = Path("runs/study")
    results: Path = EXPERIMENTS / "results" / "study"
    figures: Path = EXPERIMENTS.parent / "docs" / "results" / "figures"

    def __post_init__(self) -> None:
        """Find the encoder."""
        object.__setattr__(self, "encoder", find_encoder(self.encoder))

    @classmethod
    def tiny(cls, folder: Path, encoder: Path) -> "Study":
        """Return settings that run every step on a few small digits."""
        return cls(
            encoder=encoder,
            images="digits",
            sample=40,
            variants=20,
            scoring=Scoring(draws=2, batch_size=16),
            curvature=CurvatureSet(examples=8, batch_size=8),
            runs=folder / "runs",
            results=folder / "results",
            figures=folder / "figures",
        )

    @property
    def run(self) -> Path:
        """Folder of this encoder's runs."""
        return self.runs / self.encoder.name

    @property
    def kept(self) -> Path:
        """Folder of this encoder's results."""
        return self.results / self.encoder.name

    def source(self, only: Path | None = None) -> Source:
        """Return the images, or those that a file names."""
        chosen = None if only is None else str(only)
        if self.images == "digits":
            return Digits(8, digits=60, only=chosen)
        if self.files is not None:
            return Parquet(str(self.files), id="id", only=chosen)
        return Tfds("cifar10", "test+train", self.data_dir, only=chosen)

    def source_of_scored(self) -> Source:
        """Return the images that are scored: those that the run names or, without a run, the written table."""
        ids = self.run / "ids.txt"
        if not ids.exists():
            write_ids(self, pq.read_table(self.kept / "table.parquet", columns=["id"])["id"].to_pylist())
        return self.source(ids)

    def pairs(self) -> list[tuple[str, str, int]]:
        """Return pairs of ids with the judgement of each pair.

        0 is equal pixels, 1 the same shot, 2 very similar.
        """
        if self.images == "digits":
            opened, judged = self.source().open(), {"exact_duplicate": 0, "near_duplicate": 1}
            ids, known = list(opened.ids()), opened.attributes()
            assert known is not None  # digits know what was planted
            planted, originals = known["planted"].to_pylist(), known["original"].to_pylist()
            return [(ids[k], ids[originals[k]], judged[kind]) for k, kind in enumerate(planted) if kind in judged]
        if self.truth is None:
            raise ValueError("The lists of judged duplicates are needed: name their folder with --truth.")
        between, within = (np.loadtxt(self.truth / name, delimiter=",", skiprows=1, ndmin=2) for name in TRUTH)
        return [
            *((f"test_{int(test):05d}", f"train_{int(train):05d}", int(judged)) for test, train, _, judged in between),
            *((f"test_{int(one):05d}", f"test_{int(other):05d}", int(judged)) for one, other, _, judged in within),
        ]


def chosen_ids(study: Study) -> dict[str, list[str]]:
    """Return the ids of the scored images, by purpose.

    The purposes are `sample`, `class` and `pairs`.
    """
    opened = study.source().open()
    ids, labels = list(opened.ids()), opened.labels()
    train = np.array([k for k, name in enumerate(ids) if not name.startswith("test")])
    drawn = np.random.default_rng(0).choice(train, min(study.sample, len(train)), replace=False)
    return {
        "sample": [ids[k] for k in np.sort(drawn)],
        "class": [ids[k] for k in train if labels[k] == study.whole_class],
        "pairs": sorted({name for one, other, _ in study.pairs() for name in (one, other)}),
    }


def write_ids(study: Study, ids: Iterable[str]) -> None:
    """Write which images are scored."""
    study.run.mkdir(parents=True, exist_ok=True)
    (study.run / "ids.txt").write_text("\n".join(sorted(ids)) + "\n", encoding="utf-8")


def settings_of(study: Study) -> ScoreRun:
    """Return the settings of the run of scores."""
    source = study.source_of_scored()
    return ScoreRun(study.encoder, study.run / "scores", source, curvature=study.curvature, scoring=study.scoring)


def run(study: Study) -> Path:
    """Score, measure, and write the table; returns its place."""
    began = time.monotonic()
    chosen = chosen_ids(study)
    write_ids(study, set().union(*chosen.values()))
    if not study.so_far:
        score(settings_of(study), Renderer(Console()))
    study.kept.mkdir(parents=True, exist_ok=True)
    return condense(study, chosen, time.monotonic() - began)


def condense(study: Study, chosen: dict[str, list[str]], seconds: float) -> Path:
    """Write what is known of every scored image in 32 bits, and how it was made, without the places of this machine."""
    scored, opened = scored_parts(study.run), study.source_of_scored().open()
    columns = describe_images(scored, opened, chosen)
    ids = columns["id"]
    out = study.kept / "table.parquet"
    pq.write_table(pa.table(columns), out, compression="zstd", compression_level=19)
    settings = settings_of(study)
    record = {
        "command": f"python -m experiments.study.table --encoder {study.encoder.name} --data-dir DIR --truth DIR",
        "minutes": round(seconds / 60, 1),
        "chosen": {"all": len(opened), **{name: len(each) for name, each in chosen.items()}},
        "images": {"all": len(ids), **{name: int(columns[name].sum()) for name in chosen}},
        "settings": {
            name: describe(getattr(settings, name))
            for name in ("output", "perturbation", "measurement", "curvature", "backend", "scoring")
        },
        "versions": versions(),
    }
    out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return out


def describe_images(scored: pa.Table, opened: OpenSource, chosen: dict[str, list[str]]) -> dict[str, Any]:
    """Return what is known of scored images, column by column.

    Args:
        scored: Their scores and embeddings.
        opened: The source that was scored.
        chosen: Ids by purpose, a column of marks each.
    """
    ids, numbers = scored["id"].to_pylist(), scored["index"].to_numpy()
    pixels, units = images(opened, numbers), unit_embeddings(scored)
    spread, mean = measures.border(pixels)
    columns: dict[str, Any] = {
        "id": ids,
        "label": opened.labels()[numbers].astype(np.int8),
        **{name: np.isin(ids, chosen[name]) for name in chosen},
        **{name: scored[name].to_numpy().astype(np.float32) for name in NUMBERS},
        "knn_distance": find_neighbours(units.astype(np.float32)).distance.astype(np.float32),
        "brightness": measures.brightness(pixels).astype(np.float32),
        "contrast": measures.contrast(pixels).astype(np.float32),
        "border_spread": spread.astype(np.float32),
        "border_mean": mean.astype(np.float32),
    }
    vectors = {
        "embedding": units,
        "pixels": measures.small_pixels(pixels),
        "hash": measures.perceptual_hash(pixels),
    }
    for name, rows in vectors.items():
        nearest = measures.nearest(rows)
        columns[f"{name}_nearest"] = nearest.row.astype(np.int32)
        columns[f"{name}_distance"] = nearest.distance.astype(np.float32)
    return columns


def scored_parts(run: Path) -> pa.Table:
    """Read the rows that the run in a folder has written, with embeddings, in the order of the source.

    Raises:
        FileNotFoundError: If there is no such run.
    """
    parts = []
    for beside in sorted((run / "scores" / "parts").glob("**/*.arrow")):
        embeddings = pa.ipc.open_file(beside).read_all()["embedding"]
        parts.append(pq.read_table(beside.with_suffix(".parquet")).append_column("embedding", embeddings))
    if not parts:
        raise FileNotFoundError(
            f"The folder {run / 'scores'} holds no scores; embeddings are in them, and not committed. Score first: "
            f"python -m experiments.study.table --encoder {run.name} --data-dir DIR --truth DIR"
        )
    return pa.concat_tables(parts).sort_by("index")


def images(opened: OpenSource, numbers: Int[np.ndarray, " rows"]) -> UInt8[np.ndarray, "rows height width 3"]:
    """Read the pixels of a source's images by their numbers."""
    return np.stack([opened.read(int(number)).image for number in numbers])


def images_of(study: Study, ids: Iterable[str]) -> UInt8[np.ndarray, "rows height width 3"]:
    """Read the pixels of images by their ids."""
    opened = study.source_of_scored().open()
    place = {name: number for number, name in enumerate(opened.ids())}
    return images(opened, np.array([place[name] for name in ids]))


def unit_embeddings(scored: pa.Table) -> Float[np.ndarray, "rows width"]:
    """Return the embeddings of scored rows, of length 1; a zero one stays."""
    return unit_rows(embedding_matrix(scored["embedding"]))


def unit_rows(rows: Float[np.ndarray, "rows width"]) -> Float[np.ndarray, "rows width"]:
    """Scale rows to length 1; a zero one stays."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def embed_images(
    encoder: Encoder, opened: OpenSource, chosen: Int[np.ndarray, " rows"] | None = None
) -> Float[np.ndarray, "rows width"]:
    """Compute the embeddings of a source's images, or of those with some numbers."""
    embed, rows = jax.jit(encoder.network), []
    for each in batches(opened, encoder.input, 250, jax.random.key(0), chosen):
        pixels = jnp.asarray(each.batch.image, jnp.float32) / 255
        rows.append(np.asarray(embed(encoder.params, encoder.frozen, pixels))[np.asarray(each.batch.index) >= 0])
    return np.concatenate(rows)


@dataclasses.dataclass(frozen=True)
class Table:
    """The written table, column by column.

    Attributes:
        columns: Numbers, ids and marks by name.
        record: How it was made.
    """

    columns: dict[str, np.ndarray]
    record: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> "Table":
        """Read `table.parquet` and `table.json`.

        Raises:
            FileNotFoundError: If there is no table yet.
        """
        if not (folder / "table.parquet").exists():
            raise FileNotFoundError(
                f"There is no table.parquet in {folder}. Write it with python -m experiments.study.table, or name with "
                "--results a copy of experiments/results/study, which has those of the committed encoders."
            )
        table = pq.read_table(folder / "table.parquet")
        columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
        return cls(columns, json.loads((folder / "table.json").read_text(encoding="utf-8")))

    def __getitem__(self, name: str) -> np.ndarray:
        """Return a column."""
        return self.columns[name]

    def replace(self, columns: dict[str, np.ndarray]) -> "Table":
        """Return the table with other columns of these names."""
        return Table({**self.columns, **columns}, self.record)

    def of(self, chosen: Shaped[np.ndarray, " rows"]) -> "Table":
        """Return the table of some rows; nearest rows keep their numbers in the whole table."""
        return Table({name: column[chosen] for name, column in self.columns.items()}, self.record)

    def sample(self) -> "Table":
        """Return the random sample alone."""
        return self.of(self["sample"])

    def ranking(self) -> Int[np.ndarray, " rows"]:
        """Return rows from the highest score to the lowest; ties by row, and what has no score is left out."""
        order = np.argsort(-self["score"], kind="stable")
        return order[np.isfinite(self["score"][order])]


if __name__ == "__main__":
    keep_compiled_programs()
    keep_convolutions_whole()
    run(tyro.cli(Study))
