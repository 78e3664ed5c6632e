"""Settings of every run: plain frozen dataclasses, described and restored as JSON."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.augment.recipes import PERTURBATIONS
from influence_ssl_jax.augment.transform import Views
from influence_ssl_jax.configuration import CLASS, Plain, describe
from influence_ssl_jax.data import Digits, Source, ToInput
from influence_ssl_jax.encoder import Encoder, Output
from influence_ssl_jax.evaluation.calibration import Calibration
from influence_ssl_jax.evaluation.certificate import Audit
from influence_ssl_jax.evaluation.comparison import Grid
from influence_ssl_jax.ihvp import Backend, LoGra
from influence_ssl_jax.losses import CosineDistance, Measurement
from influence_ssl_jax.parallel import Distributed
from influence_ssl_jax.problem import Curvature
from influence_ssl_jax.report.scored_run import Extent
from influence_ssl_jax.scoring.scores import Scoring
from influence_ssl_jax.train.probes import Probe
from influence_ssl_jax.train.settings import RECIPES, Precision, Pretrain

INLINE: dict[str, Any] = {"inline": True}
"""Metadata of a group of settings whose options stand without the group's name on a command line."""
POSITIONAL: dict[str, Any] = {"positional": True}
"""Metadata of a setting that stands without a name on a command line."""


def describe_without(settings: object, aside: Collection[str]) -> dict[str, Plain]:
    """Describe settings as JSON, without the fields that are named."""
    fields = [field.name for field in dataclasses.fields(cast(Any, settings)) if field.name not in aside]
    return {CLASS: type(settings).__name__, **{name: describe(getattr(settings, name)) for name in fields}}


def option_name(name: str) -> dict[str, Any]:
    """Metadata of a setting that has another name on a command line."""
    return {"name": name}


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A named perturbation in place of noise.

    Attributes:
        name: {names}; noise has σ = 0.2.
    """

    name: str = "crop"

    def __post_init__(self) -> None:
        """Refuse a name that is not known."""
        if self.name not in PERTURBATIONS:
            raise ValueError(f"There is no perturbation {self.name!r}; there are {', '.join(PERTURBATIONS)}.")


Augmentation.__doc__ = (Augmentation.__doc__ or "").format(names=", ".join(PERTURBATIONS))  # of the one list
AnyPerturbation: TypeAlias = GaussianNoise | Augmentation


def views(perturbation: AnyPerturbation) -> Views:
    """The pair of clean and perturbed image."""
    return PERTURBATIONS[perturbation.name] if isinstance(perturbation, Augmentation) else perturbation


@dataclasses.dataclass(frozen=True)
class CurvatureSet:
    """Which matrix is inverted.

    Attributes:
        objective: The curvature of the measurement itself, or of the loss that the network was pretrained with, heads
            included, whichever output is scored.
        kind: `ggn` (positive semi-definite by construction), `fisher`, `empirical_fisher`, or the exact `hessian`,
            which is indefinite away from a minimum and then refused.
        examples: Random images that the matrix is averaged over.
        batch_size: Images at a time; a pretraining loss couples those of one batch. SimCLR's and Barlow Twins' `ggn` is
            seen by drawn gradients of whole batches: give a backend that draws them more `samples` then, such as 16.
        samples: Draws per batch of the sampled `fisher`.
    """

    objective: Literal["measurement", "pretraining"] = "measurement"
    kind: Curvature = "ggn"
    examples: int = 1024
    batch_size: int = 64
    samples: int = 1


@dataclasses.dataclass(frozen=True)
class Parts:
    """When finished scores are written: what a kill can cost.

    Attributes:
        rows: After so many images,
        seconds: or after so many seconds, whichever comes first; whole batches.
        embeddings: Whether the embeddings, 4 bytes a number, stay in the folder once the distances to the nearest ones are
            known (`keep`), or go (`drop`): images that are scored again later then have no such distance.
    """

    rows: int = 2048
    seconds: float = 20.0
    embeddings: Literal["keep", "drop"] = "keep"


@dataclasses.dataclass(frozen=True)
class ScoreRun:
    """Score every image of a data set by its influence on the representation: g·(C + λI)⁻¹g.

    Scores are kept as they are made: the same command given again goes on where it stopped. The folder then holds
    scores.parquet (one row an image, the baselines beside each score) and run.json (how it was made).

    influence-ssl score --encoder runs/simclr --out runs/simclr/scores source:tfds --source.name cifar10

    influence-ssl score --encoder runs/simclr --out scores --draws 8 backend:logra --backend.rank 32

    Attributes:
        encoder: The folder of a `pretrain` run or of an imported encoder; a file of weights (`influence-ssl import` says
            which are known); or package.module:function, which returns an Encoder.
        out: The folder of the scores; an existing one is gone on with if it was made by the same settings.
        source: The images.
        output: Which embedding is compared: the encoder's representation or the projector's output.
        trainable: Which parameters count, by name, part of a path or glob (`layer4_1`, `*/bias`; `!` takes away); all
            where none is named.
        perturbation: What an image is compared with: itself under noise, or under a named augmentation.
        measurement: How two embeddings are compared, and through which of them the gradient goes.
        curvature: Which matrix is inverted.
        backend: How it is inverted.
        scoring: Damping, draws and what they are averaged into.
        precision: What layers compute in; gradients, curvature and scores are added up in float32 either way. With bfloat16
            the rank correlation with float32, over some hundred images, is measured and said.
        parts: How often finished scores are written.
        distributed: For a run of several processes, where no scheduler says who they are.
        scored_images: Whether a run that goes on reads the images that have a score again and compares their bytes with
            those that were scored (`compare`; nothing is decoded), or takes it that they are the same (`trust`).
        rescore_changed: Give images whose bytes have changed a new score, where the run would else be refused.
        retry_skipped: Read the images again that could not be used before.
        most_skipped: Largest share of skipped images with which a finished run counts as a success; beyond it the exit
            status is 3.
    """

    encoder: Path | Encoder
    out: Path
    source: Source = dataclasses.field(default_factory=Digits)
    output: Output = "encoder"
    trainable: tuple[str, ...] = ()
    perturbation: AnyPerturbation = dataclasses.field(default_factory=GaussianNoise)
    measurement: Measurement = dataclasses.field(default_factory=CosineDistance)
    curvature: CurvatureSet = dataclasses.field(default_factory=CurvatureSet)
    backend: Backend = dataclasses.field(default_factory=LoGra)
    scoring: Scoring = dataclasses.field(default_factory=Scoring, metadata=INLINE)
    precision: Precision = "float32"
    parts: Parts = dataclasses.field(default_factory=Parts)
    distributed: Distributed = dataclasses.field(default_factory=Distributed)
    scored_images: Literal["compare", "trust"] = "compare"
    rescore_changed: bool = False
    retry_skipped: bool = False
    most_skipped: float = 0.1


@dataclasses.dataclass(frozen=True)
class CompareRun:
    """Which inverse is good enough, and what does it cost: every backend against exact scores of one sample of images.

    All backends approximate the same (C + λI)⁻¹, over their main knob and over the damping. The folder then holds
    comparison.json, pareto.png (error against time), damping.png (error against λ), and a table is printed. A backend
    that cannot do it (it diverges, or needs layers that are not there) is a row with the reason. The same command given
    again goes on with the backends that are missing.

    influence-ssl compare --encoder runs/simclr --out runs/simclr/compare source:tfds --source.name cifar10

    influence-ssl compare --encoder runs/simclr --out compare --examples 50 --dampings 0.1 1 --grid.ranks 32
    --grid.iterations --grid.depths

    Exact scores come from the dense matrix of up to 3,000 parameters; at any size from the outer products of a Fisher
    (--curvature.kind fisher --curvature.examples 64 --curvature.samples 16: at most 4,096 products of examples and
    samples); and otherwise from Lanczos quadrature, some 20 to 100 products with C for each image and draw.

    Attributes:
        encoder: The folder of a `pretrain` run or of an imported encoder; a file of weights (`influence-ssl import` says
            which are known); or package.module:function, which returns an Encoder.
        out: The folder of the comparison.
        source: The images.
        output: Which embedding is compared: the encoder's representation or the projector's output.
        trainable: Which parameters count, by name, part of a path or glob (`layer4_1`, `*/bias`; `!` takes away); all
            where none is named.
        perturbation: What an image is compared with: itself under noise, or under a named augmentation.
        measurement: How two embeddings are compared, and through which of them the gradient goes.
        curvature: Which matrix is inverted.
        grid: How the backends are varied.
        dampings: λ over the mean eigenvalue of C; one number for the whole matrix in every backend.
        truth: Where exact scores come from.
        scoring: Draws and what they are averaged into; `damping` is not read.
        audit: How many images, and how narrow where their scores are certified.
        calibration: How scores are brought to the exact scale.
    """

    encoder: Path | Encoder
    out: Path
    source: Source = dataclasses.field(default_factory=Digits)
    output: Output = "encoder"
    trainable: tuple[str, ...] = ()
    perturbation: AnyPerturbation = dataclasses.field(default_factory=GaussianNoise)
    measurement: Measurement = dataclasses.field(default_factory=CosineDistance)
    curvature: CurvatureSet = dataclasses.field(default_factory=CurvatureSet)
    grid: Grid = dataclasses.field(default_factory=Grid)
    dampings: tuple[float, ...] = (0.01, 0.1, 1.0)
    truth: Literal["auto", "dense", "function_space", "certified"] = "auto"
    scoring: Scoring = dataclasses.field(default_factory=lambda: Scoring(draws=1, batch_size=20))
    audit: Audit = dataclasses.field(default_factory=Audit, metadata=INLINE)
    calibration: Calibration = dataclasses.field(default_factory=Calibration)

    def __post_init__(self) -> None:
        """Refuse a matrix of its own for every image: backends are compared over one."""
        if self.scoring.leave_own_out:
            raise ValueError(
                "A comparison is over one matrix for all images, got leave_own_out=True, which gives every image of the "
                "curvature set its own; leave it off."
            )


@dataclasses.dataclass(frozen=True)
class AuditRun:
    """Certify a random sample of a scored data set, and calibrate every score by it.

    Of each sampled image the exact score g·(C + λI)⁻¹g is enclosed between two bounds, at any size of network (Gauss and
    Gauss–Radau quadrature by Lanczos; rounding is measured and allowed for, by the assumptions that `ihvp.rounding`
    states). The sample says how far the scores are from
    exact ones, beside the trivial baselines, and turns each into a calibrated score with an interval that holds the
    exact one with a known probability (split conformal prediction).

    The folder then also holds audit.parquet (the bounds, and a reason where there are none or too wide ones),
    calibrated.parquet (score, score_lo and score_hi of every image; where the scores came from `backend:arnoldi`,
    galerkin_lo and galerkin_hi too, which hold as the certificates do) and audit.json (how good the scores are).
    scores.parquet is not touched. Certificates are kept as they are made: the same command given again goes on where it
    stopped, and a larger --examples adds to the sample.

    influence-ssl audit runs/simclr/scores

    influence-ssl audit runs/simclr/scores --examples 50 --width 0.02 --calibration.level 0.95

    influence-ssl audit runs/simclr/scores --by rows

    What it costs: up to --steps products with C for each image and draw, a product being some two gradients of the whole
    curvature set. Certificates get narrow in fewer steps with more damping; with little (λ below about 1e-5 of the
    largest eigenvalue) float32 leaves no bound, and audit.parquet says so: take --precision float64 then. Where C is a
    `fisher` or an `empirical_fisher` of few images, --by rows is far cheaper, and bounds scores in float32 at less damping.

    Attributes:
        folder: A finished folder of scores.
        audit: How many images, and how narrow.
        precision: In which the certificates are computed; the noise is that of the scores in either.
        calibration: How scores are brought to the certified scale, and the coverage of their intervals.
    """

    folder: Path = dataclasses.field(metadata=POSITIONAL)
    audit: Audit = dataclasses.field(default_factory=Audit, metadata=INLINE)
    precision: Literal["float32", "float64"] = "float32"
    calibration: Calibration = dataclasses.field(default_factory=Calibration)


@dataclasses.dataclass(frozen=True)
class PretrainRun:
    """Train an encoder without labels, by SimCLR, BYOL or Barlow Twins (or with labels, the supervised baseline).

    A run that was stopped goes on from its last whole epoch when the same command is given again.

    influence-ssl pretrain --out runs/simclr source:tfds --source.name cifar10

    influence-ssl pretrain --out runs/byol source:folder --source.path faces training:table3-byol --training.epochs 100

    Attributes:
        out: Folder of the run: checkpoints, metrics.jsonl (one line an epoch), and the encoder that `score` reads.
        source: The images. Labels, where there are any, are read by the accuracy probe alone.
        training: A recipe, by name: loss, views, network, optimiser and duration, each of which can be changed.
        input: How an image becomes the network's input.
        probe: The nearest-neighbour and linear accuracy after each epoch.
        distributed: For a run of several processes, where no scheduler says who they are.
    """

    out: Path
    source: Source = dataclasses.field(default_factory=Digits)
    training: Pretrain = dataclasses.field(default_factory=lambda: RECIPES["solo_learn_simclr"])
    input: ToInput = dataclasses.field(default_factory=ToInput)
    probe: Probe = dataclasses.field(default_factory=Probe)
    distributed: Distributed = dataclasses.field(default_factory=Distributed)


@dataclasses.dataclass(frozen=True)
class ReportRun:
    """Write the report of a scored data set: one HTML page that needs nothing but itself.

    influence-ssl report runs/cifar10

    influence-ssl report runs/cifar10 --images 60 --tail 0.01 --out cifar10.html

    Attributes:
        folder: A finished folder of scores: it holds scores.parquet and run.json. Pictures are read again from the data
            set that it names.
        extent: How much is shown.
        out: The page to write; report.html in the folder where it is not given.
    """

    folder: Path = dataclasses.field(metadata=POSITIONAL)
    extent: Extent = dataclasses.field(default_factory=Extent, metadata=INLINE)
    out: Path | None = None
