"""An audit through the command: certificates that hold, stopped on the way and gone on with, scores untouched."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from influence_ssl_jax import provenance
from influence_ssl_jax.cli import commands
from influence_ssl_jax.cli.options import parse
from influence_ssl_jax.configuration import describe, fingerprint
from influence_ssl_jax.data import Arrays, ToInput
from influence_ssl_jax.data.examples import Skipped
from influence_ssl_jax.errors import DataError, InfluenceError, StoreError
from influence_ssl_jax.evaluation.calibration import Calibration
from influence_ssl_jax.evaluation.certificate import Audit
from influence_ssl_jax.ihvp import Arnoldi, Damping, Exact
from influence_ssl_jax.losses import CosineDistance
from influence_ssl_jax.report import audited
from influence_ssl_jax.run_log import json_lines
from influence_ssl_jax.runs import audit
from influence_ssl_jax.runs.prepare import Prepared
from influence_ssl_jax.runs.settings import AuditRun, ScoreRun
from influence_ssl_jax.scoring import Scoring, self_influence
from influence_ssl_jax.store import ScoreStore, file_digest, read_sealed, write_sealed
from influence_ssl_jax.store.files import lock
from influence_ssl_jax.store.manifest import Manifest
from tests import problems

SIZE, BROKEN, IMAGE = 40, 7, 3
TRANSFORM = ToInput(IMAGE, IMAGE, 3)


@functools.cache
def source():
    """Random images; one has a pixel that is not a number."""
    rng = np.random.default_rng(1)
    shape = (IMAGE, IMAGE, 3)
    images = [rng.integers(0, 256, shape).astype(np.float32) / 255 * rng.uniform() for _ in range(SIZE)]
    images[BROKEN][0, 0, 0] = np.nan
    return Arrays(images).open()


@functools.cache
def the_problem():
    return problems.problem(CosineDistance(), module=problems.Linear(), image=IMAGE, channels=3)


@functools.cache
def exact():
    settings = Scoring(Damping(0.1), draws=1)
    return self_influence(the_problem(), Exact(), source(), TRANSFORM, settings)


@functools.cache
def mean_eigenvalue():
    return float(jnp.mean(jax.jit(Exact().fit)(the_problem(), jax.random.key(0)).eigenvalues))


@pytest.fixture
def folder(tmp_path, monkeypatch, few_resamples):
    """Scores of which half is missing, and more or less by chance."""
    monkeypatch.setattr(audit, "prepare", lambda *_: Prepared(None, TRANSFORM, the_problem().objective, source()))
    monkeypatch.setattr(audit, "draw_problem", lambda *_: (the_problem(), {}))
    monkeypatch.setattr(audit, "identity", lambda *given: {"data": given[-1].members()})
    table = exact().filter(np.arange(SIZE) != BROKEN)
    noise = np.exp(0.1 * np.random.default_rng(0).normal(size=SIZE - 1))
    table = table.set_column(2, "score", pa.array(0.5 * noise * table["score"].to_numpy()))
    facts = {
        "configuration": describe(ScoreRun(tmp_path, tmp_path, scoring=Scoring(draws=1))),
        "damping": {"resolved": 0.1 * mean_eigenvalue()},
    }
    with ScoreStore.open(tmp_path, {"data": source().members()}, SIZE) as store:
        store.append(table.drop_columns("knn_distance"))
        store.skip([Skipped(BROKEN, str(BROKEN), "pixels are not finite")])
        store.finish(None, lambda index: {"knn_distance": exact()["knn_distance"].to_numpy()[index]}, facts)
    return tmp_path


def command(folder, examples=SIZE, **changes):
    return AuditRun(folder, Audit(examples, 0.02, 60, 8, **changes), "float64")


def run(settings):
    said = Console(width=300)
    with said.capture() as text:
        commands.audit(settings, said)
    return text.get()


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept") / "finished"


@pytest.fixture
def finished(folder, kept):
    """Scores with an audit of 24, which is run once and copied."""
    if kept.exists():
        shutil.copytree(kept, folder, dirs_exist_ok=True)
    else:
        run(command(folder, 24))
        shutil.copytree(folder, kept)
    return folder


def test_certificates_and_calibrated_scores_beside_untouched_ones(folder):
    before = (folder / "scores.parquet").read_bytes()
    text = run(command(folder))
    assert (folder / "scores.parquet").read_bytes() == before
    want = exact()["score"].to_numpy()
    bounds = pq.read_table(folder / "audit.parquet")
    assert bounds["index"].to_pylist() == list(range(SIZE))
    lower, upper = bounds["lower"].to_numpy(), bounds["upper"].to_numpy()
    good = np.arange(SIZE) != BROKEN
    assert (lower[good] <= want[good]).all()
    assert (want[good] <= upper[good]).all()
    assert bounds["reason"].to_pylist()[BROKEN]
    assert [reason for reason in bounds["reason"].to_pylist() if reason] == [bounds["reason"].to_pylist()[BROKEN]]
    record = json.loads((folder / "audit.json").read_text())
    assert record["counts"]["certified"] == record["counts"]["narrow"] == SIZE - 1
    assert sum(record["counts"]["reasons"].values()) == 1
    score = record["deviation"]["score"]
    assert 0.4 < score["raw"]["median"] < 0.6
    assert score["calibrated"]["median"] < 0.15
    assert set(record["deviation"]) >= {"alignment_loss", "gradient_norm", "pixel_variance", "knn_distance"}
    every = pq.read_table(folder / "calibrated.parquet")
    assert every["index"].to_pylist() == list(range(SIZE))
    low, high = every["score_lo"].to_numpy()[good], every["score_hi"].to_numpy()[good]
    assert np.mean((low <= want[good]) & (want[good] <= high)) >= 0.85
    assert "Calibrated scores" in text
    assert f"Of {SIZE} images, {SIZE - 1} have bounds as narrow as requested" in text
    assert "gradient norm" in text


def test_a_stopped_audit_goes_on_and_a_larger_one_adds(finished, monkeypatch):
    whole = (finished / "audit.parquet").read_bytes()
    for path in (finished / "audit").rglob("*"):
        if path.is_file():
            path.unlink()
    added = Manifest.add

    def add_once(manifest, *given):
        if manifest.parts:
            raise KeyboardInterrupt
        added(manifest, *given)

    monkeypatch.setattr(Manifest, "add", add_once)
    with pytest.raises(KeyboardInterrupt):
        run(command(finished, 24))
    monkeypatch.setattr(Manifest, "add", added)
    assert "Continuing: 8 of 24 images are certified." in run(command(finished, 24))
    assert (finished / "audit.parquet").read_bytes() == whole
    assert f"Continuing: 24 of {SIZE}" in run(command(finished))
    assert json.loads((finished / "audit.json").read_text())["counts"]["sample"] == SIZE
    with pytest.raises(StoreError, match=r"audit.seed: 0 → 1"):
        run(command(finished, seed=1))


@pytest.mark.parametrize("kind", ["scored", "skipped"])
def test_damaged_certificates_are_computed_again_to_the_same_bits_and_counted(folder, kind):
    run(command(folder))
    whole, counts = ((folder / name).read_bytes() for name in ("audit.parquet", "audit.json"))
    assert json.loads(counts)["counts"]["recomputed"] == 0
    owner = fingerprint(read_sealed(folder / "audit" / "identity.json"))
    parts = Manifest.load(folder / "audit" / "parts", owner).parts
    skipped = next(n for n, part in enumerate(parts) if part.kind == "skipped")
    damaged = parts[skipped - 1 if kind == "scored" else skipped]  # of one batch, which is written in two parts
    path = folder / "audit" / "parts" / damaged.name
    path.write_bytes(path.read_bytes()[:-7])
    (folder / "audit" / "identity.json").write_text('{"scores": "of another run"')
    with pytest.raises(StoreError, match=r"not those of this command.* or delete .*audit: the scores stay"):
        run(command(folder, seed=1))
    text = run(command(folder))
    assert f"{damaged.rows} certificates were damaged; they are computed again." in text
    assert f"Continuing: {SIZE - damaged.rows} of {SIZE}" in text
    assert (folder / "audit.parquet").read_bytes() == whole
    assert json.loads((folder / "audit.json").read_text())["counts"]["recomputed"] == damaged.rows
    starts = [line["recomputed"] for line in json_lines(folder / "audit" / "log.jsonl") if line["event"] == "start"]
    assert starts == [0, damaged.rows]
    assert json.loads((folder / "audit" / "heartbeat.json").read_text())["doing"] == "finished"


def test_a_sample_too_small_to_calibrate_says_so_and_leaves_no_older_calibration(folder):
    (folder / "calibrated.parquet").write_text("of an earlier audit")
    text = run(command(folder, 3))
    assert "No calibrated scores: Calibration needs at least 4 examples" in text
    assert not (folder / "calibrated.parquet").exists()


def test_scores_from_a_shared_subspace_have_rigorous_intervals_for_every_image(folder, monkeypatch):
    monkeypatch.setattr(audit, "draw_problem", lambda *_: (the_problem(), {}))
    record = read_sealed(folder / "run.json")
    record["configuration"]["backend"] = describe(Arnoldi(12, block=2, probes=2))
    write_sealed(folder / "run.json", record)
    run(command(folder, 12))
    table = pq.read_table(folder / "calibrated.parquet")
    good, want = np.arange(SIZE) != BROKEN, exact()["score"].to_numpy()
    lower, upper = table["galerkin_lo"].to_numpy(), table["galerkin_hi"].to_numpy()
    assert (lower[good] <= want[good]).all()
    assert (want[good] <= upper[good]).all()
    assert np.isnan(lower[BROKEN])


def test_the_folder_is_locked_until_the_last_file_is_written(finished, monkeypatch):
    written, held = audit.write_sealed, []

    def write(path, content):
        with pytest.raises(StoreError, match="is being written by another run"):
            lock(finished / "audit")
        held.append(path.name)
        written(path, content)

    monkeypatch.setattr(audit, "write_sealed", write)
    run(command(finished, 24))
    assert held == ["audit.json"]
    lock(finished / "audit").close()


def test_certificates_of_another_device_or_precision_are_not_added_to(finished, monkeypatch):
    with pytest.raises(StoreError, match=r"precision: float64 → float32"):
        run(dataclasses.replace(command(finished, 24), precision="float32"))
    here = provenance.decisive()
    other = {**here, "device": {**here["device"], "platform": "tpu"}}
    monkeypatch.setattr(audit.provenance, "decisive", lambda *_: other)
    with pytest.raises(StoreError, match=r"device.platform: cpu → tpu"):
        run(command(finished, 24))


def test_images_that_have_changed_are_refused(folder, monkeypatch):
    other = Arrays(np.zeros((SIZE, IMAGE, IMAGE, 3), np.uint8)).open()
    prepared = Prepared(None, TRANSFORM, the_problem().objective, other)
    monkeypatch.setattr(audit, "prepare", lambda *_: prepared)
    with pytest.raises(DataError, match=rf"{SIZE - 1} images have changed since they were scored"):
        run(command(folder))
    fewer = Arrays(np.zeros((SIZE - 1, IMAGE, IMAGE, 3), np.uint8)).open()
    monkeypatch.setattr(audit, "prepare", lambda *_: prepared._replace(source=fewer))
    with pytest.raises(
        InfluenceError, match=r"(?s)made from other inputs than those that are there now.*data: .*other images, names"
    ):
        run(command(folder))


def test_of_the_curvature_set_no_image_may_have_changed(folder, monkeypatch):
    monkeypatch.setattr(audit, "draw_problem", lambda *_: (the_problem(), {4: source().content(4), 5: b"other"}))
    with pytest.raises(DataError, match=r"1 images have changed since they were scored:\n  5 .example 5.: its bytes"):
        run(command(folder))


@pytest.mark.parametrize("name", ["audit.parquet", "calibrated.parquet", "audit.json", "scores.parquet"])
def test_a_damaged_product_is_refused_by_the_report_and_made_again_by_the_same_command(finished, name):
    section = audited.section(finished)
    whole = (finished / name).read_bytes()
    middle = len(whole) // 2
    (finished / name).write_bytes(whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :])
    with pytest.raises(StoreError, match=r"Repeat the `influence-ssl audit` command"):
        audited.section(finished)
    if name == "scores.parquet":
        with pytest.raises(StoreError, match="Repeat the `influence-ssl score` command"):
            run(command(finished, 24))
        return
    run(command(finished, 24))
    if name != "audit.json":  # which counts what was resumed
        assert (finished / name).read_bytes() == whole
    assert audited.section(finished)["rows"] == section["rows"]


def test_an_audit_of_scores_that_were_made_again_since_is_none_of_theirs(finished):
    table = pq.read_table(finished / "scores.parquet")
    pq.write_table(table.set_column(2, "score", pa.array(2 * table["score"].to_numpy())), finished / "scores.parquet")
    record = read_sealed(finished / "run.json")
    record["files"]["scores.parquet"] = file_digest(finished / "scores.parquet")
    write_sealed(finished / "run.json", record)
    with pytest.raises(StoreError, match=r"is not the file that audit.json was written for"):
        audited.section(finished)


def test_what_is_typed_is_what_is_run():
    typed = ["runs/x", "--examples", "50", "--width", "0.02", "--calibration.level", "0.95", "--precision", "float64"]
    settings = parse(AuditRun, typed, "influence-ssl audit", "")
    assert settings == AuditRun(Path("runs/x"), Audit(50, 0.02), "float64", Calibration(level=0.95))
