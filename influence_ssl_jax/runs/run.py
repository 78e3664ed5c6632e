"""Score images from Python, and read, audit and report finished scores."""

import contextlib
import dataclasses
import json
import tempfile
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
from influence_ssl_jax.parallel import Distributed, start
from influence_ssl_jax.progress import Event, Progress, Written, silent
from influence_ssl_jax.report.render import render
from influence_ssl_jax.report.scored_run import Extent, ScoredFile
from influence_ssl_jax.runs import audit as audits
from influence_ssl_jax.runs import score as scores
from influence_ssl_jax.runs.settings import (
    AnyPerturbation,
    AuditRun,
    CurvatureSet,
    Precision,
    ScoreRun,
)
from influence_ssl_jax.scoring.scores import Scoring
from influence_ssl_jax.store import RUN, SCORES, read_record, write_sealed
from influence_ssl_jax.store.files import SUM


@dataclasses.dataclass(frozen=True)
class AuditResult:
    """The result of an audit: how good a run's scores are.

    Attributes:
        record: The content of `audit.json`: errors, rank correlations and coverage of the score and of each baseline.
        bounds: `index, id, lower, upper, products, reason` of each image of the sample.
        calibrated: `index, id, score, score_lo, score_hi` of every image; None if the sample is too small.
    """

    record: dict[str, Plain]
    bounds: pa.Table
    calibrated: pa.Table | None


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A finished run of scores: its table, its audit, its report.

    Scores that `score` made without a folder are in memory: then `folder` is None, and `files` holds the contents of
    what the folder would hold. An audit and a report of them work in a temporary folder, which they delete.

    Attributes:
        folder: The folder of the scores; None if they are in memory.
        encoder: The encoder, if the scores were made from an object and not from a file.
        source: The images, likewise.
        files: Contents of the files of scores in memory, by path.

    Examples:
        >>> import influence_ssl_jax as isj
        >>> try:
        ...     run = isj.Run(Path("runs/simclr/scores"))  # of `influence-ssl score --out runs/simclr/scores`
        ... except isj.InfluenceError as error:
        ...     print(str(error).partition(":")[0])
        runs/simclr/scores has no scores.parquet
    """

    folder: Path | None
    encoder: Encoder | None = None
    source: Source | None = None
    files: dict[str, bytes] = dataclasses.field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Read the folder as a path, and refuse one without finished scores."""
        if self.folder is not None:
            object.__setattr__(self, "folder", Path(self.folder))
            ScoredFile.open(Path(self.folder))
        elif not {SCORES, RUN} <= self.files.keys():
            raise InfluenceError(f"Without a folder, a run needs the contents of {SCORES} and {RUN}; got neither.")

    @property
    def table(self) -> pa.Table:
        """One row for each image, in order of index.

        The columns are score, errors, baselines, reason, and attributes of the source.
        """
        if self.folder is None:
            return pq.read_table(pa.BufferReader(self.files[SCORES]))
        return pq.read_table(self.folder / SCORES)

    @property
    def record(self) -> dict[str, Plain]:
        """How the scores were made: what `run.json` holds."""
        if self.folder is not None:
            return read_record(self.folder, RUN)
        return {name: value for name, value in json.loads(self.files[RUN]).items() if name != SUM}

    def audit(
        self,
        audit: Audit = Audit(),
        calibration: Calibration = Calibration(),
        precision: Literal["float32", "float64"] = "float32",
        progress: Progress = silent,
    ) -> AuditResult:
        """Certify a sample of the scores, and calibrate every score by it.

        It does the same as `influence-ssl audit`. A larger sample later adds to the certificates that are there.

        Args:
            audit: How many images, and how narrow.
            calibration: How scores are brought to the certified scale.
            precision: The type in which the certificates are computed.
            progress: Called at every stage and batch.

        Raises:
            InfluenceError: The encoder or the images differ from those that were scored, or are not given.
        """
        with self._open_folder() as folder:
            with _full_precision():
                settings = AuditRun(folder, audit, precision, calibration)
                record = audits.audit(settings, self._tell(progress), self.encoder, self.source)
            calibrated = folder / audits.CALIBRATED
            # Read whole, without a memory map: a temporary folder is deleted at the end of this block.
            return AuditResult(
                record,
                pq.read_table(folder / audits.BOUNDS, memory_map=False),
                pq.read_table(calibrated, memory_map=False) if calibrated.exists() else None,
            )

    def report(self, out: str | Path | None = None, extent: Extent = Extent(), progress: Progress = silent) -> Path:
        """Write the report, one HTML page, and return its path.

        Args:
            out: The page; `report.html` in the folder of the scores if None.
            extent: How much is shown.
            progress: Called with the page that was written.

        Raises:
            InfluenceError: The scores are in memory and no page is named.
        """
        if out is None and self.folder is None:
            raise InfluenceError("These scores are in memory, without a folder. Name the page: run.report('x.html').")
        with self._open_folder() as folder:
            page = render(folder, None if out is None else Path(out), extent=extent, source=self.source)
        progress(Written("Report", page))
        return page

    @contextlib.contextmanager
    def _open_folder(self) -> Iterator[Path]:
        """Yield the folder, or a temporary one with the files in memory.

        The files of a temporary folder are read back before it is deleted.
        """
        if self.folder is not None:
            yield self.folder
            return
        with tempfile.TemporaryDirectory(prefix="influence-ssl-") as temporary:
            folder = Path(temporary) / "scores"
            for name, content in self.files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
            try:
                yield folder
            finally:  # an audit that is interrupted keeps its certificates
                self.files.update(_contents(folder))

    def _tell(self, progress: Progress) -> Progress:
        """Leave out what is said of files in a temporary folder."""
        return progress if self.folder is not None else _without_files(progress)


def score(
    encoder: Encoder | str | Path,
    images: Source | str | Path | np.ndarray | jax.Array | Sequence[np.ndarray],
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

    It does the same as `influence-ssl score`: called again with the same folder, it scores what is missing. float32
    products have full precision (JAX's matmul precision "highest") unless JAX is configured otherwise.

    Examples:
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
        out: The folder of the scores. If None, the scores are returned in memory: the call works in a temporary folder
            and deletes it before it returns or raises, so such a run cannot be resumed.
        backend: How the matrix is inverted.
        output: Which embedding is compared: `encoder`, `projector` or `predictor`.
        trainable: Which parameters count; see `Encoder.with_trainable`.
        perturbation: What an image is compared with.
        measurement: How two embeddings are compared.
        curvature: Which matrix is inverted, over how many of the images.
        scoring: Damping, draws, seed, and how the draws are averaged.
        precision: The type in which layers compute.
        rescore_changed: Score images again if their bytes have changed.
        retry_skipped: Read the images again that could not be used before.
        most_skipped: Largest share of skipped images that is not an error.
        progress: Called at every stage and batch.

    Raises:
        StoreError: The folder holds something else, or is in use.
        DataError: The images cannot be read, or have changed since they were scored.
        SkippedError: More images were skipped than allowed.
        IndefiniteError: C + λI is not positive definite.
        InfluenceError: Several processes score together without a folder.
    """
    if not isinstance(encoder, Encoder | str | Path):
        raise InfluenceError(
            f"The encoder is an Encoder or the path of one, got a {type(encoder).__name__}. Make one by Encoder.from_linen, "
            "from_nnx or from_function."
        )
    source = source_of(images)
    with contextlib.ExitStack() as temporary:
        if out is None:
            start(Distributed())
            if jax.process_count() > 1:
                raise InfluenceError(
                    f"The {jax.process_count()} processes of this run write into one shared folder, got out=None; name it."
                )
            folder = Path(temporary.enter_context(tempfile.TemporaryDirectory(prefix="influence-ssl-"))) / "scores"
        else:
            folder = Path(out)
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
            scores.score(settings, progress if out is not None else _without_files(progress))
        network = encoder if isinstance(encoder, Encoder) else None
        if out is not None:
            return Run(folder, network, source)
        record = read_record(folder, RUN)
        record["configuration"]["out"] = None  # the folder is deleted
        write_sealed(folder / RUN, record)
        return Run(None, network, source, {name: (folder / name).read_bytes() for name in (SCORES, RUN)})


def _without_files(progress: Progress) -> Progress:
    """Return a progress function that is not told of written files."""

    def tell(event: Event) -> None:
        if not isinstance(event, Written):
            progress(event)

    return tell


def _contents(folder: Path) -> dict[str, bytes]:
    """Read all files below a folder, by relative path."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def source_of(images: Source | str | Path | np.ndarray | jax.Array | Sequence[np.ndarray]) -> Source:
    """Return the data source of images.

    Examples:
        >>> source_of("faces")
        Folder(only=None, path='faces', table=None, file_column='file', label_column=None, links='skip', encoding='utf-8')

    Args:
        images: A data source, which is returned as it is; a folder of files; or arrays.

    Raises:
        InfluenceError: The images are none of these.
    """
    if isinstance(images, Source):
        return images
    if isinstance(images, str | Path):
        return Folder(path=str(images))
    if isinstance(images, jax.Array):
        return Arrays(np.asarray(images))
    if isinstance(images, np.ndarray) or (isinstance(images, Sequence) and len(images) > 0):
        return Arrays(images)
    raise InfluenceError(
        f"Images are a folder, a data source or an array [n, height, width, channels], got a {type(images).__name__}."
    )


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Compute float32 products in full precision on accelerators.

    It changes nothing if JAX is configured otherwise.
    """
    chosen = jax.default_matmul_precision.value is not None
    with contextlib.nullcontext() if chosen else jax.default_matmul_precision("highest"):
        yield
