"""Each experiment of the study, tiny, on one scored run of digits; and the page, which says what the results say."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.study import (
    beyond_loss,
    borders,
    choices,
    deviation,
    distribution,
    duplicates,
    measures,
    perturbations,
    results,
    separation,
    strengths,
)
from experiments.study.table import Study, Table, run, settings_of
from experiments.study.variants import Curvature, Prepared, Variants, coordinates_of
from influence_ssl_jax.curvature.contributions import measured
from influence_ssl_jax.data import ToInput
from influence_ssl_jax.encoder import Encoder
from influence_ssl_jax.ihvp.backend import Damping
from influence_ssl_jax.types import Batch
from tests.problems import Small, variables


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    params, frozen = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), variables(Small(), size=8, channels=3))
    encoder = Encoder.from_linen(Small(), {"params": params, **frozen}, input=ToInput(8, 8), name="small")
    tiny = Study.tiny(folder, encoder)
    run(tiny)
    return tiny


def test_the_table_holds_every_chosen_image_once(study):
    table, ids = Table.load(study.kept), (study.run / "ids.txt").read_text().split()
    assert sorted(table["id"]) == ids
    assert table["sample"].sum() == study.sample
    assert {name for pair in study.pairs() for name in pair[:2]} == set(table["id"][table["pairs"]])
    assert (table["label"][table["class"]] == study.whole_class).all()
    assert str(study.runs.parent) not in (study.kept / "table.json").read_text()
    copies = duplicates.judged(table, study.pairs())["equal pixels"]
    assert copies.any()
    assert (table["pixels_distance"][copies] == 0).all()
    assert (table["hash_distance"][copies] == 0).all()


def test_duplicates_without_a_change_are_found_by_pixels(study):
    record, figure = duplicates.find(study, resamples=5)
    found = record["judged"]["equal pixels"]
    assert found["nearest pixels"]["auroc"].value == found["perceptual hash"]["auroc"].value == 1
    assert found["nearest pixels"]["recall"] == 1
    assert found["score"]["auroc"].low <= found["score"]["auroc"].value <= found["score"]["auroc"].high
    assert len(figure.axes) == 3 * 18


def test_borders_are_counted(study):
    record, _ = borders.find(study, resamples=5)
    table = Table.load(study.kept).sample()
    blank = np.char.startswith(table["id"].astype(str), "blank")
    assert blank.any()
    assert (table["border_spread"][blank] < measures.UNIFORM).all()
    assert record["base"]["uniform"].value == np.mean(table["border_spread"] < measures.UNIFORM)
    best = table["score"].argmax() == np.flatnonzero(table["border_spread"] < measures.UNIFORM)
    assert record["ends"]["score, highest 0.8 %"]["uniform"].value == best.any()


def test_separation_is_that_of_planted_clusters():
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], 50)
    units = np.eye(8)[labels] + 0.1 * rng.normal(size=(100, 8))
    assert separation.purity(units / np.linalg.norm(units, axis=1, keepdims=True), labels).min() == 1
    shuffled = separation.purity(units, rng.permutation(labels))
    assert abs(shuffled.mean() - 0.5) < 0.1


def test_the_separation_of_the_ends_is_measured_and_drawn(study):
    record, figure = separation.find(study)
    assert set(record["20 of 40"]) == {"highest", "lowest", "random"}
    assert len(figure.axes) == 3


def test_a_published_pair_fits_scores_of_that_distribution():
    log = 8.13 * np.log(2) + 1.27 * np.log(2) * np.random.default_rng(0).normal(size=100_000)
    found = distribution.describe(np.exp(log))
    np.testing.assert_allclose(np.exp(found["standard deviation of ln"] / 1.27), 2, rtol=1e-2)
    np.testing.assert_allclose(found["mean of ln"] / np.log(2), 8.13, rtol=1e-2)


def test_variance_is_taken_apart_as_it_was_made():
    rng = np.random.default_rng(0)
    own, draws = 10 + 2 * rng.normal(size=(20_000, 1)), 3
    scores = own + rng.normal(size=(20_000, draws))
    found = deviation.parts(scores.mean(axis=1), scores.var(axis=1, ddof=1) / draws, draws)
    np.testing.assert_allclose(found["share of the variance between images"], 4 / 5, rtol=2e-2)
    np.testing.assert_allclose(found["reliability of 2 draws"], 4 / 4.5, rtol=2e-2)


@pytest.mark.parametrize("question", [distribution, deviation, beyond_loss])
def test_what_is_read_from_the_table_is_the_same_again(study, question):
    name = question.__name__.rpartition(".")[2]
    first, again = (json.loads(results.answer(study, name, question.find).read_text()) for _ in range(2))
    assert first.pop("minutes") >= 0
    assert first == {key: value for key, value in again.items() if key != "minutes"}


@pytest.fixture(scope="module")
def held(study):
    return Variants(study)


def test_scores_of_coordinates_are_those_of_the_backend(study, held):
    settings, batch = settings_of(study), prepared(held)
    objective = dataclasses.replace(held.problem.objective, views=Prepared())
    gradients = measured(objective, held.problem.params, held.problem.frozen, batch).gradients
    backend = settings.backend
    for relative in (0.1, 3.0):
        damping = backend.resolve(held.state, Damping(relative))
        want = backend.draw_gram(held.state, gradients, damping).values[:, 0, 0]
        coordinates, _ = coordinates_of(held.problem, held.state, batch)
        ours = Curvature.of_state(held.state).scores(jax.tree.map(np.asarray, coordinates), relative)
        np.testing.assert_allclose(ours, want, rtol=1e-4)


def prepared(held):
    """Two views of four images, as the variants hand them to the network."""
    pixels = np.random.default_rng(0).uniform(size=(4, 8, 8, 6)).astype(np.float32)
    return Batch(pixels, jax.random.split(jax.random.key(0), 4), np.arange(4), None)


def test_perturbations_strengths_and_choices_are_compared(study, held):
    found = perturbations.compared(held)["found"]
    assert set(found) == set(perturbations.PUBLISHED)
    assert len(strengths.compared(held)["found"]) == 5
    again = choices.compared(held)["found"]
    assert again["GGN, λ 0.1"]["spearman"].value == 1
    assert -1 <= again["empirical Fisher, λ 0.001"]["spearman"].value < 1
    stored = held.draws("crop")
    np.testing.assert_array_equal(stored.loss, held.draws("crop").loss)
