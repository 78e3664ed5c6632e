"""Images and encoders that are not what was scored: named and refused by every later step, or scored again on request."""

import contextlib
import dataclasses
import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from influence_ssl_jax.cli import main
from influence_ssl_jax.data import Folder, ToInput
from influence_ssl_jax.data.loader import draw_curvature_set
from influence_ssl_jax.encoder import Encoder
from influence_ssl_jax.errors import DataError, InfluenceError, SkippedError, StoreError
from influence_ssl_jax.evaluation.certificate import Audit
from influence_ssl_jax.ihvp import Identity
from influence_ssl_jax.nets.linear import Linear
from influence_ssl_jax.report.render import render
from influence_ssl_jax.report.scored_run import Extent
from influence_ssl_jax.runs.audit import audit
from influence_ssl_jax.runs.score import score
from influence_ssl_jax.runs.settings import AuditRun, CurvatureSet, Parts, ScoreRun
from influence_ssl_jax.scoring.scores import Scoring
from influence_ssl_jax.store import CONTENT, ScoreStore

SIZE = 12


def written(folder, seed=0):
    """Bitmaps, whose files all have one size whatever their pixels."""
    folder.mkdir(exist_ok=True)
    draw = np.random.default_rng(seed)
    for number in range(SIZE):
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number}.bmp")
    return folder


def saved(folder, seed=0):
    """A linear encoder with parameters of its seed, as a file."""
    kernel = np.random.default_rng(seed).normal(size=(8 * 8 * 3, 3)) / 14
    module, params = Linear(3), {"dense": {"kernel": kernel.astype(np.float32)}}
    return Encoder.from_linen(module, {"params": params}, input=ToInput(8, 8, 3)).save(folder).arrays


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def command(encoder, tmp_path, few_resamples):
    """A scoring run of three parts over a folder of images."""
    for file in encoder.parent.iterdir():
        shutil.copy(file, tmp_path)
    return ScoreRun(
        tmp_path / encoder.name,
        tmp_path / "scores",
        Folder(str(written(tmp_path / "images"))),
        curvature=CurvatureSet(examples=4, batch_size=4),
        backend=Identity(),
        scoring=Scoring(draws=2, batch_size=4),
        parts=Parts(4),
    )


def half(command, monkeypatch):
    """The run, stopped after its first part."""
    append = ScoreStore.append

    def once(store, table):
        if len(store.done()):
            raise KeyboardInterrupt
        append(store, table)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(ScoreStore, "append", once)
        score(command)


def in_curvature_set(command):
    """Numbers of the images that the matrix is averaged over."""
    return draw_curvature_set(command.source.open(), ToInput(8, 8, 3), 4, 4, 0).contents.keys()


def swap(folder, one, other):
    a, b = folder / f"{one}.bmp", folder / f"{other}.bmp"
    a.rename(folder / "aside")
    b.rename(a)
    (folder / "aside").rename(b)


def test_the_digest_of_each_file_stands_in_its_row(command):
    score(command)
    source = command.source.open()
    contents = pq.read_table(command.out / "scores.parquet")[CONTENT].to_pylist()
    assert contents == [source.content(index) for index in range(SIZE)]
    assert {len(content) for content in contents} == {16}
    assert len(set(contents)) == SIZE


@pytest.mark.parametrize("change", ["overwritten", "swapped", "resized"])
@pytest.mark.parametrize("finished", [False, True])
def test_a_run_over_changed_images_is_refused_and_names_them(command, tmp_path, monkeypatch, change, finished):
    if finished:
        score(command)
    else:
        half(command, monkeypatch)
    before = sorted(command.out.rglob("*.parquet"))
    if change == "overwritten":
        written(tmp_path / "images", seed=1)
    elif change == "swapped":
        swap(tmp_path / "images", 0, 1)
    else:
        Image.fromarray(np.full((9, 9, 3), 7, np.uint8)).save(tmp_path / "images" / "0.bmp")
    with pytest.raises(
        DataError, match=r"images have changed since they were scored:\n  0.bmp \(example 0\): its bytes"
    ):
        score(command)
    assert sorted(command.out.rglob("*.parquet")) == before


def test_a_changed_time_stamp_alone_is_no_change(command, tmp_path, monkeypatch):
    half(command, monkeypatch)
    for file in (tmp_path / "images").iterdir():
        os.utime(file, (0, 0))
    score(command)
    assert pq.read_table(command.out / "scores.parquet").num_rows == SIZE


def test_changed_images_are_scored_again_on_request_with_the_bytes_of_a_fresh_run(command, tmp_path):
    score(command)
    changed = next(index for index in range(SIZE) if index not in in_curvature_set(command))
    Image.fromarray(np.full((9, 10, 3), 7, np.uint8)).save(tmp_path / "images" / f"{changed}.bmp")
    score(dataclasses.replace(command, rescore_changed=True))
    fresh = dataclasses.replace(command, out=tmp_path / "fresh")
    score(fresh)
    assert (command.out / "scores.parquet").read_bytes() == (fresh.out / "scores.parquet").read_bytes()


def test_a_changed_image_of_the_curvature_set_is_refused_even_then(command, tmp_path, monkeypatch):
    half(command, monkeypatch)
    late = max(in_curvature_set(command))
    kept = (tmp_path / "images" / f"{late}.bmp").read_bytes()
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(tmp_path / "images" / f"{late}.bmp")
    with pytest.raises(DataError, match=rf"images that the curvature .* have changed: examples {late}"):
        score(dataclasses.replace(command, rescore_changed=True))
    (tmp_path / "images" / f"{late}.bmp").write_bytes(kept)
    score(command)
    whole = {file: file.read_bytes() for file in command.out.rglob("*.parquet")}
    Image.fromarray(np.full((9, 8, 3), 7, np.uint8)).save(tmp_path / "images" / f"{late}.bmp")
    with pytest.raises(
        DataError, match=rf"(?s)curvature was fitted to them.*{late}.bmp .example {late}.*was scored again"
    ):
        score(dataclasses.replace(command, rescore_changed=True))
    assert {file: file.read_bytes() for file in command.out.rglob("*.parquet")} == whole


def test_an_image_that_changes_between_fit_and_score_is_noticed(command, tmp_path, monkeypatch):
    from influence_ssl_jax.runs import score as module

    late, fitted = max(in_curvature_set(command)), module.fit_scorer

    def then_changed(*arguments):
        scorer = fitted(*arguments)
        Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(tmp_path / "images" / f"{late}.bmp")
        return scorer

    monkeypatch.setattr(module, "fit_scorer", then_changed)
    with pytest.raises(DataError, match="between fitting the curvature and scoring"):
        score(command)
    assert not (command.out / "scores.parquet").exists()


def test_skipped_images_are_read_again_on_request_and_too_many_are_an_exit_status(command, tmp_path):
    spared = [index for index in range(SIZE) if index not in in_curvature_set(command)][:2]
    good = {index: (tmp_path / "images" / f"{index}.bmp").read_bytes() for index in spared}
    for index in spared:
        (tmp_path / "images" / f"{index}.bmp").write_bytes(good[index][:40])
    with pytest.raises(SkippedError, match="2 of 12 images could not be used"):
        score(command)
    assert SkippedError.status == 3
    score(dataclasses.replace(command, most_skipped=0.5))
    for index in spared:
        (tmp_path / "images" / f"{index}.bmp").write_bytes(good[index])
    score(dataclasses.replace(command, retry_skipped=True))
    assert pq.read_table(command.out / "scores.parquet")["score"].null_count == 0


def test_an_image_that_was_mended_is_scored_by_the_matrix_that_was_fitted_without_it(command, tmp_path):
    """The first image of the random order of the curvature set: without the earlier draw, it would become a member."""
    first, *_ = in_curvature_set(command)
    file = tmp_path / "images" / f"{first}.bmp"
    good = file.read_bytes()
    file.write_bytes(good[:40])
    score(command)
    before = pq.read_table(command.out / "scores.parquet")
    file.write_bytes(good)
    audited(command)
    score(dataclasses.replace(command, retry_skipped=True))
    after = pq.read_table(command.out / "scores.parquet")
    others = [index for index in range(SIZE) if index != first]
    columns = ["knn_distance", "nearest_index"]
    assert after.take(others).drop_columns(columns) == before.take(others).drop_columns(columns)
    assert np.isfinite(after["score"][first].as_py())
    assert not after["in_curvature_set"][first].as_py()
    with pytest.raises(StoreError, match=r"scores/audit holds .*(?s:.*)images: .* .scores of other bytes of images"):
        audited(command)
    shutil.rmtree(command.out / "audit")
    audited(command)


def audited(command):
    audit(AuditRun(command.out, Audit(examples=4, steps=20, batch_size=4)))


def test_an_audit_refuses_images_and_an_encoder_that_are_not_those_of_the_scores(command, tmp_path):
    score(command)
    said = r"(?s)made from other inputs.*encoder: "
    with another_encoder(command, seed=1), pytest.raises(InfluenceError, match=said):
        audited(command)
    assert not (command.out / "calibrated.parquet").exists()
    swap(tmp_path / "images", 0, 1)
    with pytest.raises(DataError, match=r"since they were scored:\n  \d+.bmp"):
        audit(AuditRun(command.out, Audit(examples=SIZE, steps=20, batch_size=4)))
    swap(tmp_path / "images", 0, 1)
    audited(command)
    assert (command.out / "audit.json").exists()


@contextlib.contextmanager
def another_encoder(command, seed):
    """In the encoder's place another of the same architecture."""
    kept = {each: each.read_bytes() for each in command.encoder.parent.glob("encoder.*")}
    saved(command.encoder.parent, seed)
    try:
        yield
    finally:
        for file, content in kept.items():
            file.write_bytes(content)


def test_a_report_shows_no_picture_of_another_image(command, tmp_path):
    score(command)
    all_shown = Extent(images=SIZE, resamples=5)
    before = render(command.out, extent=all_shown).read_text()
    assert "no image" not in before
    swap(tmp_path / "images", 0, 1)
    page = render(command.out, extent=all_shown).read_text()
    assert page.count("it has changed since it was scored") == 2


def test_paths_in_the_record_lead_there_from_any_folder(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    near = dataclasses.replace(command, source=Folder("images"), encoder=command.encoder.relative_to(tmp_path))
    score(near)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    audited(command)
    assert main.run(["report", str(command.out), "--resamples", "5"]) == 0
    assert "data:image/png;base64" in (command.out / "report.html").read_text()
