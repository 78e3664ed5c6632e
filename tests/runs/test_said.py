"""What a command says and records beside its numbers: notes, seeds, versions, and that a folder is taken."""

import functools
import importlib.metadata
import json
import platform

import pytest
from rich.console import Console

from influence_ssl_jax import provenance
from influence_ssl_jax.cli.console import Renderer
from influence_ssl_jax.data import Digits, ToInput
from influence_ssl_jax.data.arrays import InMemory
from influence_ssl_jax.encoder import Encoder
from influence_ssl_jax.errors import StoreError
from influence_ssl_jax.ihvp import Gram, Identity
from influence_ssl_jax.losses import CosineDistance, SimCLR
from influence_ssl_jax.provenance import RECORDED
from influence_ssl_jax.runs import compare, prepare, pretrain, score
from influence_ssl_jax.runs.prepare import Prepared
from influence_ssl_jax.runs.settings import CompareRun, PretrainRun, ScoreRun
from influence_ssl_jax.scoring.scores import Scoring
from influence_ssl_jax.store import read_sealed
from influence_ssl_jax.store.files import lock
from influence_ssl_jax.train import tiny
from tests import problems

SOURCE = Digits(size=3, digits=12, exact_duplicates=0.0, near_duplicates=0.0, blanks=0.0, noise=0.0)
NOTE = "two images have one name [a, b]"


@functools.cache
def the_problem():
    return problems.problem(CosineDistance(), module=problems.Linear(), image=3, channels=3)


@functools.cache
def trained():
    network = the_problem().objective.network
    return Encoder(network, the_problem().params, the_problem().frozen, ToInput(3, 3), "linear")


@pytest.fixture(autouse=True)
def _a_small_network_and_a_note(monkeypatch):
    """A linear net in place of a pretrained one, over a source that has something to say."""
    monkeypatch.setattr(InMemory, "notes", lambda _: (NOTE,))
    monkeypatch.setattr(prepare, "load_encoder", lambda _: trained())
    monkeypatch.setattr(prepare, "form_measurement", lambda *_: the_problem().objective)
    monkeypatch.setattr(score, "draw_problem", lambda *_: (the_problem(), {}))


def said(run, settings):
    out = Console(width=200)
    with out.capture() as text:
        run(settings, Renderer(out))
    return text.get()


def test_a_run_of_scores_says_the_notes_and_records_command_seeds_and_versions(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "command", lambda: ["influence-ssl", "score"])
    scoring = Scoring(draws=1, batch_size=12, seed=7)
    text = said(score.score, ScoreRun(tmp_path, tmp_path / "out", SOURCE, backend=Identity(probes=1), scoring=scoring))
    assert f"note: {NOTE}" in text
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["seeds"] == {"seed": 7}
    assert record["command"] == ["influence-ssl", "score"]
    assert record["configuration"]["scoring"]["seed"] == 7
    assert record["versions"] == installed()
    assert record["device"]["platform"] == "cpu"
    assert record["counts"]["scored"] == 12
    assert 0 < record["share_waiting_for_images"] < 1
    assert "Waited for images " in text


def test_a_run_says_how_long_it_waited_for_images_and_among_how_many_neighbours_were_searched(tmp_path, monkeypatch):
    monkeypatch.setattr(score, "reference_size", lambda usable, _: usable - 5)
    monkeypatch.setattr(score, "share_of_waiting", lambda *_: 0.25)
    monkeypatch.setattr(
        score, "_fits", lambda scorer, _: scorer.batch_size <= 6
    )  # a given size is halved as a chosen one
    scoring = Scoring(draws=1, batch_size=12)
    text = said(score.score, ScoreRun(tmp_path, tmp_path / "out", SOURCE, backend=Identity(probes=1), scoring=scoring))
    record = read_sealed(tmp_path / "out" / "run.json")
    assert record["nearest_neighbours"] == {"images": 12, "reference": 7, "neighbours": 1}
    assert "note: knn_distance is the distance to the nearest of 7 random images, not of all 12" in text
    assert record["share_waiting_for_images"] == 0.25
    assert record["batch_size"] == 6
    assert "Waited for images 25 % of the time." in text


@pytest.mark.parametrize(("samples", "warned"), [(2, True), (None, False)])
def test_a_run_says_that_an_exact_backend_draws_its_curvature(tmp_path, samples, warned):
    settings = ScoreRun(tmp_path, tmp_path / "out", SOURCE, backend=Gram(samples=samples), scoring=Scoring(draws=1))
    text = said(score.score, settings)
    assert ("C is not the Gauss–Newton matrix but an estimate of it, by 2 draws for each image" in text) == warned


def test_the_share_of_waiting_is_that_of_the_process_that_waited_most(monkeypatch):
    assert score.share_of_waiting(3.0, 12.0) == 0.25
    monkeypatch.setattr(score, "gather", lambda own: [own, "0.75"])
    assert score.share_of_waiting(3.0, 12.0) == 0.75


def test_pretraining_says_the_notes(tmp_path, monkeypatch):
    class Begun(Exception):
        pass

    def begin(*_, **__):
        raise Begun

    monkeypatch.setattr(pretrain, "train", begin)
    out = Console(width=200)
    with out.capture() as text, pytest.raises(Begun):
        pretrain.pretrain(PretrainRun(tmp_path / "out", SOURCE, tiny(SimCLR()), ToInput(3, 3)), Renderer(out))
    assert f"note: {NOTE}" in text.get()


def installed():
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in RECORDED}}


def test_pretraining_keeps_classes_versions_and_device_with_the_encoder_of_every_epoch(tmp_path, monkeypatch):
    kept, between = {}, []
    monkeypatch.setattr(InMemory, "class_names", lambda _: ("ant", "bee"))
    monkeypatch.setattr(pretrain, "train", lambda *given, **__: between.append(given[6]))
    monkeypatch.setattr(pretrain, "save", lambda *_, **described: kept.update(described))
    pretrain.pretrain(PretrainRun(tmp_path / "out", SOURCE, tiny(SimCLR()), ToInput(3, 3)))
    for notes in (kept, between[0].notes):
        assert notes["classes"] == ["ant", "bee"]
        assert notes["versions"] == installed()
        assert notes["device"]["platform"] == "cpu"


def test_a_comparison_refuses_a_folder_that_is_written_by_another(tmp_path, monkeypatch):
    prepared = Prepared(trained(), ToInput(3, 3), the_problem().objective, SOURCE.open())
    monkeypatch.setattr(compare, "prepare", lambda *_: prepared)
    monkeypatch.setattr(compare, "draw_problem", lambda *_: (the_problem(), {}))
    monkeypatch.setattr(compare, "claim", lambda *_: pytest.fail("a folder in use was taken"))
    (tmp_path / "out").mkdir()
    with lock(tmp_path / "out"), pytest.raises(StoreError, match="is being written by another run"):
        said(compare.compare, CompareRun(tmp_path, tmp_path / "out", SOURCE))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["lock"]
