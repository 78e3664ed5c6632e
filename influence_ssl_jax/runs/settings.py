"""Define the settings of every run, as dataclasses that JSON can hold."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.augment.recipes import PERTURBATIONS
from influence_ssl_jax.augment.transform import Views
from influence_ssl_jax.configuration import CLASS, COUNT, POSITIVE, Plain, check_numbers, describe
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
"""Metadata of a group of settings whose options have no prefix on a command line."""
POSITIONAL: dict[str, Any] = {"positional": True}
"""Metadata of a setting whose value is given without an option's name on a command line."""


def describe_without(settings: object, aside: Collection[str]) -> dict[str, Plain]:
    """Describe settings as JSON, without some of their fields.

    Args:
        settings: A dataclass of settings.
        aside: Names of the fields that are left out.
    """
    fields = [field.name for field in dataclasses.fields(cast(Any, settings)) if field.name not in aside]
    return {CLASS: type(settings).__name__, **{name: describe(getattr(settings, name)) for name in fields}}


def option_name(name: str) -> dict[str, Any]:
    """Return metadata of a setting with another name as an option.

    Args:
        name: The name of the option.
    """
    return {"name": name}


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A named perturbation in place of noise.

    Attributes:
        name: {names}; noise has σ = 0.2.

    Examples:
        >>> import influence_ssl_jax as isj
        >>> crop = isj.Augmentation("crop")  # isj.score(encoder, images, perturbation=crop)
    """

    name: str = "crop"

    def __post_init__(self) -> None:
        """Refuse a name that is not known."""
        if self.name not in PERTURBATIONS:
            raise ValueError(f"There is no perturbation {self.name!r}; there are {', '.join(PERTURBATIONS)}.")


# The names come from the list itself, so that the help text cannot differ from it.
Augmentation.__doc__ = (Augmentation.__doc__ or "").format(names=", ".join(PERTURBATIONS))
AnyPerturbation: TypeAlias = GaussianNoise | Augmentation


def views(perturbation: AnyPerturbation) -> Views:
    """Return a perturbation's pair of views: clean and perturbed image."""
    return PERTURBATIONS[perturbation.name] if isinstance(perturbation, Augmentation) else perturbation


@dataclasses.dataclass(frozen=True)
class CurvatureSet:
    """The inverted matrix C, and the images it is averaged over.

    Attributes:
        objective: The curvature of the measurement itself, or of the loss that the network was pretrained with. The
            pretraining loss includes the heads, whichever output is scored.
        kind: `ggn` (positive semi-definite by construction), `fisher`, `empirical_fisher`, or the exact `hessian`. A
            hessian is indefinite away from a minimum, and is refused there.
        examples: Number of random images that the matrix is averaged over.
        batch_size: Images in a batch; a pretraining loss couples the images of one batch. Backends that draw gradients
            see the `ggn` of SimCLR, Barlow Twins and VICReg through gradients of whole batches: give such a backend more
            `samples` then, for example 16.
        samples: Draws per batch of the sampled `fisher`.

    Examples:
        >>> import influence_ssl_jax as isj
        >>> fisher = isj.CurvatureSet(kind="fisher", examples=2048)  # isj.score(encoder, images, curvature=fisher)
    """

    objective: Literal["measurement", "pretraining"] = "measurement"
    kind: Curvature = "ggn"
    examples: int = 1024
    batch_size: int = 64
    samples: int = 1

    def __post_init__(self) -> None:
        """Refuse numbers that average over nothing."""
        check_numbers(self, examples=COUNT, batch_size=COUNT, samples=COUNT)


@dataclasses.dataclass(frozen=True)
class Parts:
    """The intervals at which finished scores are written.

    An interruption can cost the scores of one interval.

    Attributes:
        rows: Write after this many images,
        seconds: or after this many seconds, whichever comes first; only whole batches are written.
        embeddings: `keep` leaves the embeddings (4 bytes a number) in the folder; `drop` deletes them once the
            distances to the nearest ones are known. After `drop`, images that are scored again have no such distance.
    """

    rows: int = 2048
    seconds: float = 20.0
    embeddings: Literal["keep", "drop"] = "keep"

    def __post_init__(self) -> None:
        """Refuse numbers that say nothing."""
        if self.rows < 1 or not self.seconds >= 0:
            raise ValueError(
                f"A part is written after at least one image or some seconds, got rows={self.rows}, seconds={self.seconds}."
            )


@dataclasses.dataclass(frozen=True)
class ScoreRun:
    """Score every image by its influence on the representation: `g·(C + λI)⁻¹g`.

    Scores are written while the run works. If the run was stopped, the same command continues it. At the end the folder
    holds scores.parquet (one row for each image, with the baselines beside the score) and run.json (how the scores were
    made).

    influence-ssl score --encoder runs/simclr --out runs/simclr/scores source:tfds --source.name cifar10

    influence-ssl score --encoder runs/simclr --out scores --draws 8 backend:logra --backend.rank 32

    influence-ssl score --encoder runs/simclr --also runs/byol runs/vicreg --out scores source:folder --source.path faces

    Attributes:
        encoder: A folder of `pretrain` or `import`, a file of weights, or package.module:function (returns an Encoder);
            `influence-ssl import` lists the layouts of files.
        out: The folder of the scores. A run that is there is continued if it has the same settings.
        also: Further encoders, scored in the same pass: each image is read and decoded once for all. The scores of each
            encoder are then in a folder of its name in `out`, as its own command would write them.
        source: The images.
        output: The embedding that is compared: the encoder's representation or the projector's output.
        trainable: The parameters that count, by name, part of a path or glob (`layer4_1`, `*/bias`; `!` excludes); all
            parameters if no name is given.
        perturbation: What an image is compared with: the image with noise, or with a named augmentation.
        measurement: How two embeddings are compared, and through which of them the gradient goes.
        curvature: Which matrix is inverted.
        backend: How it is inverted.
        scoring: Damping, draws, and how the draws are averaged.
        precision: The type in which layers compute; gradients, curvature and scores are summed in float32 in either
            case. With bfloat16 the rank correlation with float32 scores of up to 512 images is measured and reported.
        parts: How often finished scores are written.
        distributed: For a run of several processes without a scheduler that numbers them.
        scored_images: `compare` reads the images that have a score again and compares their bytes with those that were
            scored (nothing is decoded); `trust` assumes that they are the same.
        rescore_changed: Score images again if their bytes have changed; without it, such a run is refused.
        retry_skipped: Read the images again that could not be used before.
        most_skipped: Largest share of skipped images with which a finished run counts as a success; with more, the exit
            status is 3.
    """

    encoder: Path | Encoder
    out: Path
    also: tuple[Path, ...] = dataclasses.field(default=(), kw_only=True)
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

    def __post_init__(self) -> None:
        """Refuse a share outside 0 to 1."""
        if not 0 <= self.most_skipped <= 1:
            raise ValueError(f"most_skipped is a share of the images, 0 to 1, got {self.most_skipped}.")


@dataclasses.dataclass(frozen=True)
class CompareRun:
    """Compare every backend with exact scores of one sample of images.

    This shows how good each backend is and what it costs. All backends approximate the same (C + λI)⁻¹, for several
    values of their main setting and of the damping. The folder then holds comparison.json, pareto.png (error against
    time) and damping.png (error against λ), and a table is printed. A backend that cannot do it (it diverges, or needs
    layers that are absent) is a row with the reason. The same command continues with the backends that are missing.

    influence-ssl compare --encoder runs/simclr --out runs/simclr/compare source:tfds --source.name cifar10

    influence-ssl compare --encoder runs/simclr --out compare --examples 50 --dampings 0.1 1 --grid.ranks 32
    --grid.iterations --grid.depths

    Exact scores come from the dense matrix of up to 3,000 parameters; at any size from the outer products of a Fisher
    (--curvature.kind fisher --curvature.examples 64 --curvature.samples 16: at most 4,096 products of examples and
    samples); and otherwise from Lanczos quadrature, about 20 to 100 products with C for each image and draw.

    Attributes:
        encoder: A folder of `pretrain` or `import`, a file of weights, or package.module:function (returns an Encoder);
            `influence-ssl import` lists the layouts of files.
        out: The folder of the comparison.
        source: The images.
        output: The embedding that is compared: the encoder's representation or the projector's output.
        trainable: The parameters that count, by name, part of a path or glob (`layer4_1`, `*/bias`; `!` excludes); all
            parameters if no name is given.
        perturbation: What an image is compared with: the image with noise, or with a named augmentation.
        measurement: How two embeddings are compared, and through which of them the gradient goes.
        curvature: Which matrix is inverted.
        grid: Which settings of the backends are tried.
        dampings: λ over the mean eigenvalue of C; one number for the whole matrix in every backend.
        truth: How exact scores are computed.
        scoring: Draws and how they are averaged; its `damping` is ignored.
        audit: How many images are scored, and how narrow certificates are.
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
        """Refuse a comparison without damping, and `leave_own_out`.

        A comparison needs one matrix for all images.
        """
        check_numbers(self, dampings=POSITIVE)
        if not self.dampings:
            raise ValueError("A comparison needs at least one damping, got none in dampings.")
        if self.scoring.leave_own_out:
            raise ValueError(
                "A comparison needs one matrix for all images, got leave_own_out=True, which gives every image of the "
                "curvature set a matrix of its own; leave it off."
            )


@dataclasses.dataclass(frozen=True)
class AuditRun:
    """Certify a random sample of scores, and calibrate every score by it.

    For each image of the sample the exact score g·(C + λI)⁻¹g is enclosed between two bounds, at any size of network
    (Gauss and Gauss–Radau quadrature by Lanczos; rounding is measured and allowed for, under the assumptions that
    `ihvp.rounding` states). The sample shows how far the scores, and the simple baselines beside them, are from the
    exact ones. It also gives every image a calibrated score with an interval that holds the exact score with a known
    probability (split conformal prediction).

    The folder then also holds audit.parquet (the bounds, and the reason if they are absent or too wide),
    calibrated.parquet (score, score_lo and score_hi of every image; for scores by `backend:arnoldi` also galerkin_lo
    and galerkin_hi, which hold as the certificates do) and audit.json (how good the scores are). scores.parquet is not
    changed. Certificates are written while the audit works: the same command continues it, and a larger --examples adds
    to the sample.

    influence-ssl audit runs/simclr/scores

    influence-ssl audit runs/simclr/scores --examples 50 --width 0.02 --calibration.level 0.95

    influence-ssl audit runs/simclr/scores --by rows

    Cost: up to --steps products with C for each image and draw; one product costs about two gradients of the whole
    curvature set. More damping makes certificates narrow in fewer steps. With little damping (λ below about 1e-5 of the
    largest eigenvalue) float32 gives no bound, and audit.parquet says so: use --precision float64 then. If C is a
    `fisher` or an `empirical_fisher` of few images, --by rows is far cheaper, and in float32 it gives bounds at less
    damping.

    Attributes:
        folder: A finished folder of scores.
        audit: How many images, and how narrow.
        precision: The type in which the certificates are computed; the noise of the scores is used in either case.
        calibration: How scores are brought to the certified scale, and the coverage of their intervals.
    """

    folder: Path = dataclasses.field(metadata=POSITIONAL)
    audit: Audit = dataclasses.field(default_factory=Audit, metadata=INLINE)
    precision: Literal["float32", "float64"] = "float32"
    calibration: Calibration = dataclasses.field(default_factory=Calibration)


@dataclasses.dataclass(frozen=True)
class Unseen:
    """Test images: in what they differ from the training images.

    They are of the same kind of source, with the settings of the training images apart from these.

    Attributes:
        split: Their split, for source:tfds.
        path: Their folder, file, pattern or address, for source:folder, source:parquet and source:shards.
        table: Their table of classes and attributes, for source:folder.
        only: A file with their ids, as --source.only.
    """

    split: str | None = None
    path: str | None = None
    table: str | None = None
    only: str | None = None


@dataclasses.dataclass(frozen=True)
class PretrainRun:
    """Train an encoder without labels.

    The supervised baseline alone reads labels. If a run was stopped, the same command continues it from its last complete
    epoch.

    influence-ssl pretrain --out runs/simclr --test.split test source:tfds --source.name cifar10

    influence-ssl pretrain --out runs/byol source:folder --source.path faces training:table3-byol --training.epochs 100

    Accuracies are of test images, never of images that were trained on. Without test images there are none.

    Attributes:
        out: Folder of the run: checkpoints, metrics.jsonl (one line for each epoch), and the encoder that `score`
            reads.
        source: The images. Labels, if there are any, are read by the supervised loss and for accuracies alone.
        training: A recipe, by name: loss, views, network, optimiser and duration, each of which can be changed.
        input: How an image becomes the network's input.
        test: The test images: a split, path or list of ids of their own.
        leave_out: Share of the images that is left out of training and serves as test images.
        probe: The nearest-neighbour and linear accuracy on test images between epochs.
        keep: Epochs after which the encoder is kept in encoders/epoch-N, which `--encoder` takes; 0 is untrained.
        distributed: For a run of several processes without a scheduler that numbers them.
    """

    out: Path
    source: Source = dataclasses.field(default_factory=Digits)
    training: Pretrain = dataclasses.field(default_factory=lambda: RECIPES["solo_learn_simclr"])
    input: ToInput = dataclasses.field(default_factory=ToInput)
    test: Unseen = dataclasses.field(default_factory=Unseen)
    leave_out: float = 0.0
    probe: Probe = dataclasses.field(default_factory=Probe)
    keep: tuple[int, ...] = ()
    distributed: Distributed = dataclasses.field(default_factory=Distributed)

    def __post_init__(self) -> None:
        """Refuse shares and epochs that do not exist, and two test sets."""
        if not 0 <= self.leave_out < 1:
            raise ValueError(f"leave_out is a share of the images, from 0 to below 1, got {self.leave_out}.")
        if self.leave_out and self.test != Unseen():
            raise ValueError("Test images are named (--test.…) or left out of training (--leave-out), not both.")
        beyond = [epoch for epoch in self.keep if not 0 <= epoch <= self.training.epochs]
        if beyond:
            raise ValueError(f"keep names epochs 0 to {self.training.epochs} of this run, got {beyond[0]}.")


@dataclasses.dataclass(frozen=True)
class ReportRun:
    """Write the report of a scored data set as one page.

    The page is HTML and needs no other file.

    influence-ssl report runs/cifar10

    influence-ssl report runs/cifar10 --images 60 --tail 0.01 --out cifar10.html

    Attributes:
        folder: A finished folder of scores, with scores.parquet and run.json. Pictures are read again from the data set
            that run.json names.
        extent: How much is shown.
        out: The page to write; report.html in the folder if it is not given.
    """

    folder: Path = dataclasses.field(metadata=POSITIONAL)
    extent: Extent = dataclasses.field(default_factory=Extent, metadata=INLINE)
    out: Path | None = None
