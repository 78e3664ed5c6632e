"""Score images from Python, and read, audit and report what a folder of scores holds."""

import contextlib
import dataclasses
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.configuration import Plain
from influence_ssl_jax.data import Arrays, Folder, Source
from influence_ssl_jax.encoder import Encoder, Output
from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.evaluation.calibration import Calibration
from influence_ssl_jax.evaluation.certificate import Audit
from influence_ssl_jax.ihvp import Backend, LoGra
from influence_ssl_jax.losses import CosineDistance, Measurement
from influence_ssl_jax.progress import Progress, silent
from influence_ssl_jax.report.scored_run import Extent, ScoredRun
from influence_ssl_jax.runs import audit as audits
from influence_ssl_jax.runs import report as reports
from influence_ssl_jax.runs import score as scores
from influence_ssl_jax.runs.settings import (
    AnyPerturbation,
    AuditRun,
    CurvatureSet,
    Precision,
    ReportRun,
    ScoreRun,
)
from influence_ssl_jax.scoring.scores import Scoring
from influence_ssl_jax.store import RUN, SCORES, read_record


@dataclasses.dataclass(frozen=True)
class AuditResult:
    """How good the scores of a run are.

    Attributes:
        record: What `audit.json` holds: errors, rank correlations and coverage of the score and of each baseline.
        bounds: `index, id, lower, upper, products, reason` of each image of the sample.
        calibrated: `index, id, score, score_lo, score_hi` of every image; None if the sample is too small.
    """

    record: dict[str, Plain]
    bounds: pa.Table
    calibrated: pa.Table | None


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A finished run of scores: its table, its audit, its report.

    Example:
        ```python
        run = isj.Run(Path("runs/simclr/scores"))  # of the command line, or of `score(…, out="runs/simclr/scores")`
        ```

    Attributes:
        folder: The folder of the scores.
        encoder: The encoder, if the scores were made of an object and not of a file.
        source: The images, likewise.
        temporary: Whether the folder is deleted with the run.
    """

    folder: Path
    encoder: Encoder | None = None
    source: Source | None = None
    temporary: bool = False

    def __post_init__(self) -> None:
        """Read the folder as a path, and refuse one without finished scores."""
        object.__setattr__(self, "folder", Path(self.folder))
        ScoredRun.load(self.folder)

    @property
    def table(self) -> pa.Table:
        """One row an image, in order of index: score, errors, baselines, reason, attributes of the source."""
        return pq.read_table(self.folder / SCORES)

    @property
    def record(self) -> dict[str, Plain]:
        """How the scores were made: what `run.json` holds."""
        return read_record(self.folder, RUN)

    def audit(
        self,
        audit: Audit = Audit(),
        calibration: Calibration = Calibration(),
        precision: Literal["float32", "float64"] = "float32",
        progress: Progress = silent,
    ) -> AuditResult:
        """Certify a sample of the scores, and calibrate every score by it, as `influence-ssl audit` does.

        Args:
            audit: How many images, and how narrow.
            calibration: How scores are brought to the certified scale.
            precision: In which the certificates are computed.
            progress: Who is told.

        Raises:
            InfluenceError: The encoder or the images are others than those that were scored, or are not given.
        """
        with _full_precision():
            settings = AuditRun(self.folder, audit, precision, calibration)
            record = audits.audit(settings, progress, self.encoder, self.source)
        calibrated = self.folder / audits.CALIBRATED
        return AuditResult(
            record,
            pq.read_table(self.folder / audits.BOUNDS),
            pq.read_table(calibrated) if calibrated.exists() else None,
        )

    def report(self, out: str | Path | None = None, extent: Extent = Extent(), progress: Progress = silent) -> Path:
        """Write the report, one HTML page, and return where it is.

        Args:
            out: The page; `report.html` in the folder of the scores if None.
            extent: How much is shown.
            progress: Who is told.

        Raises:
            InfluenceError: The folder is temporary and no page is named.
        """
        if out is None and self.temporary:
            raise InfluenceError(
                "These scores are in a temporary folder, which is deleted with the run. Name the page: run.report('x.html')."
            )
        settings = ReportRun(self.folder, extent, None if out is None else Path(out))
        return reports.report(settings, progress, self.source)


def score(
    encoder: Encoder | str | Path,
    images: Source | str | Path | np.ndarray | Sequence[np.ndarray],
    out: str | Path | None = None,
    backend: Backend = LoGra(),
    *,
    output: Output = "encoder",
    trainable: tuple[str, ...] = (),
    perturbation: AnyPerturbation = GaussianNoise(),
    measurement: Measurement = CosineDistance(),
    curvature: CurvatureSet = CurvatureSet(),
    scoring: Scoring = Scoring(),
    precision: Precision = "float32",
    rescore_changed: bool = False,
    retry_skipped: bool = False,
    most_skipped: float = 0.1,
    progress: Progress = silent,
) -> Run:
    """Score every image by its influence on the representation: `gᵀ(C + λI)⁻¹g`.

    The same function as `influence-ssl score`: given again with the same folder, it scores what is missing. float32
    products are whole (JAX's matmul precision "highest") unless JAX is configured otherwise.

    Example:
        >>> import jax.numpy as jnp, numpy as np, influence_ssl_jax as isj
        >>> images = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), np.uint8)
        >>> embed = lambda params, x: jnp.reshape(x, (len(x), -1)) @ params["kernel"]
        >>> kernel = np.random.default_rng(1).normal(size=(48, 3)).astype(np.float32)
        >>> encoder = isj.Encoder.from_function(embed, {"kernel": kernel}, input=isj.ToInput(4, 4))
        >>> run = isj.score(encoder, images, backend=isj.EKFAC(rank=8), scoring=isj.Scoring(batch_size=12))
        >>> run.table.num_rows, run.table.column_names[:4]
        (12, ['index', 'id', 'score', 'score_se'])

    Args:
        encoder: The network: an `Encoder`; or the folder of a `pretrain` run or of an imported encoder, a file of
            weights, or `package.module:function`.
        images: A folder of image files, a data source, or an array [n, height, width, channels] of 8- or 16-bit
            integers or of floating-point numbers in [0, 1].
        out: The folder of the scores. If None, they are kept in a temporary folder, which is deleted when the run is no
            longer used or Python ends.
        backend: How the matrix is inverted.
        output: Which embedding is compared: `encoder`, `projector` or `predictor`.
        trainable: Which parameters count; see `Encoder.with_trainable`.
        perturbation: What an image is compared with.
        measurement: How two embeddings are compared.
        curvature: Which matrix is inverted, over how many of the images.
        scoring: Damping, draws, seed, and what the draws are averaged into.
        precision: What layers compute in.
        rescore_changed: Score images again whose bytes have changed since.
        retry_skipped: Read the images again that could not be used before.
        most_skipped: Largest share of skipped images that is no error.
        progress: Who is told of every stage and batch.

    Raises:
        StoreError: The folder holds something else, or is in use.
        DataError: The images cannot be read, or have changed since they were scored.
        SkippedError: More images were skipped than allowed.
        IndefiniteError: C + λI is not positive definite.
    """
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="influence-ssl-"))
    delete = contextlib.ExitStack()
    if out is None:
        delete.callback(shutil.rmtree, folder, ignore_errors=True)
    with delete:
        source = source_of(images)
        settings = ScoreRun(
            encoder if isinstance(encoder, Encoder) else Path(encoder),
            folder,
            source,
            output=output,
            trainable=trainable,
            perturbation=perturbation,
            measurement=measurement,
            curvature=curvature,
            backend=backend,
            scoring=scoring,
            precision=precision,
            rescore_changed=rescore_changed,
            retry_skipped=retry_skipped,
            most_skipped=most_skipped,
        )
        with _full_precision():
            scores.score(settings, progress)
        run = Run(folder, encoder if isinstance(encoder, Encoder) else None, source, temporary=out is None)
        weakref.finalize(run, delete.pop_all().close)
    return run


def source_of(images: Source | str | Path | np.ndarray | Sequence[np.ndarray]) -> Source:
    """Return the data source that images are given as: itself, a folder of files, or arrays.

    Example:
        >>> source_of("faces")
        Folder(only=None, path='faces', table=None, file_column='file', label_column=None, links='skip', encoding='utf-8')

    Raises:
        InfluenceError: They are none of these.
    """
    if isinstance(images, Source):
        return images
    if isinstance(images, str | Path):
        return Folder(path=str(images))
    if isinstance(images, np.ndarray) or (isinstance(images, Sequence) and len(images) > 0):
        return Arrays(images)
    raise InfluenceError(
        f"Images are a folder, a data source or an array [n, height, width, channels], got a {type(images).__name__}."
    )


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Let float32 mean float32 on accelerators, as the command line does, unless JAX is configured otherwise."""
    chosen = jax.default_matmul_precision.value is not None
    with contextlib.nullcontext() if chosen else jax.default_matmul_precision("highest"):
        yield
