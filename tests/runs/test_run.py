"""Scores from Python: the folder of the command line, resumed by either; arrays without a folder; audit and report."""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import influence_ssl_jax as isj
from influence_ssl_jax.cli import main
from influence_ssl_jax.errors import DataError, InfluenceError, StoreError
from influence_ssl_jax.nets.linear import Linear
from influence_ssl_jax.progress import Advanced, Ended, Note, Started, Written
from influence_ssl_jax.runs.run import source_of
from influence_ssl_jax.store import COLUMNS

SCORING = isj.Scoring(draws=2, batch_size=6)
SET = isj.CurvatureSet(examples=6, batch_size=6)
TYPED = ["--draws", "2", "--batch-size", "6", "--curvature.examples", "6", "--curvature.batch-size", "6"]


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), np.uint8)


@pytest.fixture(scope="module")
def encoder():
    module = Linear(3)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    return isj.Encoder.from_linen(module, variables, input=isj.ToInput(4, 4))


def scored(encoder, images, out=None, **changes):
    return isj.score(encoder, images, out, isj.Identity(probes=2), curvature=SET, scoring=SCORING, **changes)


def test_python_and_the_command_line_write_one_folder_and_go_on_with_each_others(encoder, images, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.png")
    encoder.save(tmp_path / "encoder")
    encoder = isj.Encoder.load(tmp_path / "encoder")
    run = scored(encoder, folder, tmp_path / "python")
    typed = ["score", "--encoder", str(tmp_path / "encoder"), *TYPED]
    choices = ["source:folder", "--source.path", str(folder), "backend:identity", "--backend.probes", "2"]
    with jax.default_matmul_precision("highest"):  # what the console script asks JAX for
        assert main.run([*typed, "--out", str(tmp_path / "line"), *choices]) == 0
        assert main.run([*typed, "--out", str(tmp_path / "python"), *choices]) == 0
    tables = [(tmp_path / name / "scores.parquet").read_bytes() for name in ("python", "line")]
    assert tables[0] == tables[1]
    assert run.table.equals(pq.read_table(tmp_path / "line" / "scores.parquet"))
    said = []
    again = scored(encoder, folder, tmp_path / "line", progress=said.append)
    assert said[-1] == Note(f"Nothing to do: {tmp_path / 'line' / 'scores.parquet'} is finished.")
    assert again.record["configuration"]["encoder"] == str(tmp_path / "encoder")
    assert run.record["configuration"]["encoder"] is None  # an object has no place
    with pytest.raises(StoreError, match=r"configuration.backend.probes: 2 → 3"):
        isj.score(encoder, folder, tmp_path / "line", isj.Identity(probes=3), curvature=SET, scoring=SCORING)
    with pytest.raises(InfluenceError, match="made in Python from an object \\(encoder\\)"):
        isj.Run(tmp_path / "python").audit()


@pytest.fixture
def working(monkeypatch, tmp_path):
    """The place of temporary folders, and a working folder in which relative paths would be written."""
    (tmp_path / "temporary").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def files_below(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_arrays_without_a_folder_are_scored_audited_and_reported_and_leave_nothing(encoder, images, working):
    events = []
    run = scored(encoder, images, progress=events.append)
    assert files_below(working) == []
    assert not list((working / "temporary").iterdir())
    assert run.table.column_names == [*COLUMNS, "in_curvature_set"]
    assert run.table["in_curvature_set"].to_pylist().count(True) == 6
    assert all(reason is None for reason in run.table["reason"].to_pylist())
    assert run.record["counts"]["scored"] == 12
    assert run.folder is run.record["configuration"]["out"] is None

    (scoring,) = (event for event in events if isinstance(event, Started) and event.total)
    assert (scoring.stage, scoring.done, scoring.total) == ("scoring", 0, 12)
    assert [event.done for event in events if isinstance(event, Advanced)] == [6, 12]
    assert [event.rate is None for event in events if isinstance(event, Advanced)] == [True, False]
    stages = [event.stage for event in events if isinstance(event, Started)]
    assert stages == [event.stage for event in events if isinstance(event, Ended)]
    assert not any(isinstance(event, Written) for event in events)  # no file is left that could be named

    result = run.audit(isj.Audit(examples=6, width=0.01, batch_size=6))
    assert result.record["counts"]["certified"] == result.bounds.num_rows == 6
    lower, upper = (result.bounds[name].to_numpy() for name in ("lower", "upper"))
    assert (lower <= upper).all()
    more = run.audit(isj.Audit(examples=12, width=0.01, batch_size=6))
    assert (more.record["counts"]["resumed"], more.bounds.num_rows) == (6, 12)
    with pytest.raises(InfluenceError, match="Name the page"):
        run.report()
    page = run.report("page.html")
    assert page.read_text().count("data:image/png") > 0
    assert str(working / "temporary") not in page.read_text()  # no name of a folder that is deleted
    assert files_below(working) == [working / "here" / "page.html"]
    assert not list((working / "temporary").iterdir())


def test_several_processes_need_a_folder(encoder, images, monkeypatch, working):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(InfluenceError, match="The 2 processes of this run write into one shared folder"):
        scored(encoder, images)
    assert not list((working / "temporary").iterdir())


def test_an_error_leaves_no_temporary_folder(encoder, working):
    with pytest.raises(DataError):
        scored(encoder, np.zeros((0, 4, 4, 3), np.uint8))
    assert not list((working / "temporary").iterdir())
    with pytest.raises(InfluenceError, match=r"contents of scores\.parquet and run\.json"):
        isj.Run(None)


def test_a_model_is_no_encoder(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for a user, whose types nobody checks
    with pytest.raises(InfluenceError, match=r"got a type. Make one by Encoder.from_linen, from_nnx or from_function"):
        isj.score(int, np.zeros((2, 4, 4, 3), np.uint8))


def test_images_are_a_folder_a_source_or_arrays():
    assert source_of("faces") == source_of(Path("faces")) == isj.Folder(path="faces")
    assert source_of(isj.Digits()) == isj.Digits()
    assert isinstance(source_of([np.zeros((2, 2)), np.zeros((3, 3))]), isj.Arrays)
    assert isinstance(source_of(jnp.zeros((2, 2, 2))), isj.Arrays)
    with pytest.raises(InfluenceError, match="got a list"):
        source_of([])
