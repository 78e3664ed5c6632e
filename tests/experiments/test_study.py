"""Each experiment of the study, tiny, on one scored run of digits; and the page, which says what the results say."""

import dataclasses
import functools
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tyro

from experiments.study import (
    accuracy,
    between,
    beyond_loss,
    borders,
    choices,
    deviation,
    distribution,
    duplicates,
    exactly,
    measures,
    page,
    perturbations,
    results,
    separation,
    strengths,
    whole,
)
from experiments.study.table import EXPERIMENTS, Study, Table, run, scored_parts, settings_of, unit_embeddings
from experiments.study.variants import Curvature, Prepared, Variants, coordinates_of
from influence_ssl_jax.curvature.contributions import measure
from influence_ssl_jax.ihvp.backend import Damping
from influence_ssl_jax.types import Batch


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    tiny = Study.tiny(folder, Path("tests.small_encoder:load"))
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


def test_from_a_clone_the_table_is_enough_and_a_missing_run_is_named(study, tmp_path):
    clone = dataclasses.replace(study, runs=tmp_path)
    assert borders.find(clone, resamples=5)[0] == borders.find(study, resamples=5)[0]
    assert (clone.run / "ids.txt").read_text() == (study.run / "ids.txt").read_text()
    assert separation.find(clone)[0] == separation.find(study)[0]
    with pytest.raises(FileNotFoundError, match="holds no scores; embeddings are in them"):
        scored_parts(clone.run)


def test_the_embeddings_of_the_sample_are_those_of_the_run(study):
    table = Table.load(study.kept).sample()
    scored = scored_parts(study.run)
    kept = unit_embeddings(scored.filter(pa.array(np.isin(scored["id"].to_numpy(), table["id"]))))
    np.testing.assert_allclose(separation.embed_sample(study, table["id"]), kept, atol=1e-6)


def test_duplicates_without_a_change_are_found_by_pixels(study):
    record, figure = duplicates.find(study, resamples=5)
    by_measure = record["judged"]["equal pixels"]
    assert by_measure["nearest pixels"]["auroc"].value == by_measure["perceptual hash"]["auroc"].value == 1
    assert by_measure["nearest pixels"]["recall"] == 1
    assert by_measure["score"]["auroc"].low <= by_measure["score"]["auroc"].value <= by_measure["score"]["auroc"].high
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


def test_rivals_are_compared_and_the_disagreement_is_shown(study):
    record, figure = beyond_loss.find(study, resamples=5)
    table = Table.load(study.kept).sample()
    apart = beyond_loss.disagreement(table)
    assert abs(apart.sum()) < 1e-9
    count = len(apart) // 4
    assert record["mean rank difference"]["score above loss"] == pytest.approx(np.sort(apart)[-count:].mean())
    assert len(figure.axes) == 40
    assert 0 < record["explained by all rivals"].value <= 1


def test_exact_scores_are_those_of_the_same_images_and_are_asked_the_same(study):
    record, _ = exactly.find(study, resamples=5)
    exact, table = pq.read_table(study.kept / "exact.parquet"), Table.load(study.kept)
    assert exact["id"].to_pylist() == table["id"].tolist()
    loaded = exactly.load(study.kept)
    np.testing.assert_array_equal(loaded["score"], exact["score"].to_numpy())
    np.testing.assert_array_equal(loaded["alignment_loss"], table["alignment_loss"])
    assert record["rows"] == study.curvature.examples
    low, value, high = (exact[name].to_numpy() for name in ("score_lo", "score", "score_hi"))
    assert (low <= value).all()
    assert (value <= high).all()
    assert record["width of the bounds over the score"]["largest"] < 1e-2
    assert record["with the approximated score"]["spearman"].value > 0.5
    assert record["spearman"].keys() == beyond_loss.find(study, resamples=5)[0]["spearman"].keys()
    assert "same shot" in record["duplicates"]
    finding = page.exactly(json.loads(json.dumps(results.rounded(record))))
    assert finding.verdict == page.OPEN
    assert "`Gram` over 8 images, 40 of the sample" in finding.text


def test_every_image_is_scored_exactly_and_what_is_kept_gives_the_answers(study):
    record = results.rounded(whole.find(study, resamples=5)[0])
    table = whole.load(study)
    assert sorted(table["id"]) == sorted(study.source().open().ids())
    assert len(table["id"]) > len(Table.load(study.kept)["id"]) or table["sample"].all()
    asked = results.rounded(whole.asked(table, study.pairs(), resamples=5))
    assert asked == {name: record[name] for name in asked}
    assert record["judged"]["equal pixels"]["nearest pixels"]["auroc"][0] == 1
    assert 0 <= record["width of the bounds over the score"]["largest"] < 1e-2
    borders_row = next(each for each in page.QUESTIONS if each.result == "borders")
    sample = results.rounded(borders.find(study, resamples=5)[0])
    finding = page.answer_of(borders_row, {"borders": sample, "whole": record})
    assert finding.verdict == page.borders(record).verdict
    assert page.borders(record).text in finding.text
    assert page.borders(sample).text in finding.text


def test_test_images_are_told_from_training_images_by_rank(study):
    whole.find(study, resamples=5)
    table = whole.load(study)
    unseen = table["score"] > np.median(table["score"])
    record = whole.asked(table.replace({"sample": ~unseen}), study.pairs(), resamples=5)
    assert record["images"] == np.sum(~unseen)
    assert record["test images above training images"]["score"].value == 1


def test_the_accuracy_is_of_images_that_the_classifier_has_not_seen(study):
    record, _ = accuracy.find(study)
    halves = [set((study.run / f"{name}.txt").read_text().split()) for name in ("train", "test")]
    assert all(25 < record[name] <= len(half) for name, half in zip(("training", "test"), halves, strict=True))
    assert not halves[0] & halves[1]
    low, high = record["accuracy"]["linear"][1:]
    assert 0 <= low < high <= 1


def test_encoders_are_compared_on_the_same_images_alone(study):
    table = Table.load(study.kept).sample()
    other = table.replace({"score": -table["score"]})
    record = between.compared({"A": table, "B": table, "C": other}, resamples=5)
    scores = record["spearman"]["score"]
    assert {name: round(each.value) for name, each in scores.items()} == {"A, B": 1, "A, C": -1, "B, C": -1}
    assert all(each.value == 1 for each in record["spearman"]["alignment_loss"].values())
    with pytest.raises(ValueError, match="tables of A, B do not hold the same images"):
        between.compared({"A": table, "B": table.of(np.arange(5))}, resamples=5)


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
    described = distribution.describe(np.exp(log))
    np.testing.assert_allclose(np.exp(described["standard deviation of ln"] / 1.27), 2, rtol=1e-2)
    np.testing.assert_allclose(described["mean of ln"] / np.log(2), 8.13, rtol=1e-2)


def test_variance_is_taken_apart_as_it_was_made():
    rng = np.random.default_rng(0)
    own, draws = 10 + 2 * rng.normal(size=(20_000, 1)), 3
    scores = own + rng.normal(size=(20_000, draws))
    components = deviation.parts(scores.mean(axis=1), scores.var(axis=1, ddof=1) / draws, draws)
    np.testing.assert_allclose(components["share of the variance between images"], 4 / 5, rtol=2e-2)
    np.testing.assert_allclose(components["reliability of 2 draws"], 4 / 4.5, rtol=2e-2)


@pytest.mark.parametrize("question", [distribution, deviation])
def test_what_is_read_from_the_table_is_the_same_again(study, question):
    name, find = question.__name__.rpartition(".")[2], functools.partial(question.find, resamples=5)
    first = json.loads(results.answer(study, name, find).read_text())
    assert first["minutes"] >= 0
    again = results.rounded(find(study)[0])
    assert again == {key: first[key] for key in again}


@pytest.fixture(scope="module")
def held(study):
    return Variants(study)


def test_scores_of_coordinates_are_those_of_the_backend(study, held):
    settings, batch = settings_of(study), prepared(held)
    objective = dataclasses.replace(held.problem.objective, views=Prepared())
    backend, relatives = settings.backend, (0.1, 3.0)
    resolved = [backend.resolve(held.state, Damping(relative)) for relative in relatives]

    @jax.jit
    def scored(problem, state, batch, dampings):
        gradients = measure(objective, problem.params, problem.frozen, batch).gradients
        return [backend.draw_gram(state, gradients, damping).values[:, 0, 0] for damping in dampings]

    coordinates, _ = coordinates_of(held.problem, held.state, batch)
    ours = Curvature.of_state(held.state)
    for relative, want in zip(relatives, scored(held.problem, held.state, batch, resolved), strict=True):
        scores = ours.scores(jax.tree.map(np.asarray, coordinates), relative)
        np.testing.assert_allclose(scores, want, rtol=1e-4)


def prepared(held):
    """Two views of four images, as the variants hand them to the network."""
    pixels = np.random.default_rng(0).uniform(size=(4, 8, 8, 6)).astype(np.float32)
    return Batch(jnp.asarray(pixels), jax.random.split(jax.random.key(0), 4), jnp.arange(4), None)


def test_perturbations_strengths_and_choices_are_compared(study, held):
    agreements = perturbations.compared(held, resamples=5)["found"]
    assert set(agreements) == set(perturbations.PUBLISHED)
    assert len(strengths.compared(held, resamples=5)["found"]) == 5
    again = choices.compared(held, resamples=5)["found"]
    assert again["GGN, λ 0.1"]["spearman"].value == 1
    assert -1 <= again["empirical Fisher, λ 0.001"]["spearman"].value < 1
    stored = held.draws("crop")
    np.testing.assert_array_equal(stored.loss, held.draws("crop").loss)


def test_the_page_says_what_the_results_say():
    assert page.PAGE.read_text(encoding="utf-8") == page.page()


@pytest.mark.parametrize("name", [column.name for column in page.columns()])
def test_committed_results_are_those_of_the_committed_table(name):
    of = Study(encoder=EXPERIMENTS / "encoders" / name)
    table = Table.load(of.kept)
    assert (of.kept / "table.parquet").stat().st_size < 1_500_000
    assert len(table["id"]) == table.record["images"]["all"]
    for question in (distribution, deviation):
        again = results.rounded(question.find(of)[0])
        committed = results.read(of.kept, question.__name__.rpartition(".")[2])
        assert again == {key: committed[key] for key in again}
    again = results.rounded(borders.counted(table.sample()))
    assert again == {key: results.read(of.kept, "borders")[key] for key in again}
    if (of.kept / "whole.json").exists():
        table, committed = whole.load(of), results.read(of.kept, "whole")
        assert (of.kept / "whole.parquet").stat().st_size < 3_000_000
        again = results.rounded({"class": duplicates.lowest_of_class(table), **borders.counted(table.sample())})
        assert again == {key: committed[key] for key in again}


def test_the_committed_agreement_of_encoders_is_that_of_their_tables():
    tables = {method: exactly.load(page.RESULTS / name).sample() for method, name in between.ENCODERS.items()}
    again = results.rounded(between.compared(tables, resamples=200))
    committed = results.read(page.RESULTS, "between")
    assert {"command": committed["command"], **again} == committed


def test_no_committed_result_names_a_place_of_a_machine():
    for path in page.RESULTS.glob("**/*.json"):
        assert "/" not in path.read_text(encoding="utf-8")


def shares(highest, everywhere, lowest):
    """A record of borders with these intervals of white and of black."""
    kinds = {"highest": highest, "lowest": lowest}
    colours = ("white", "black", "uniform")
    ends = {f"score, {end} 400 images": dict.fromkeys(colours, value) for end, value in kinds.items()}
    base = dict.fromkeys(colours, everywhere)
    return {"images": 1000, "base": base, "ends": ends, "spearman": {"border_spread": [0.1, 0.0, 0.2]}}


@pytest.mark.parametrize(
    ("highest", "lowest", "verdict"),
    [
        ([0.3, 0.2, 0.4], [0.0, 0.0, 0.05], page.HOLDS),
        ([0.1, 0.05, 0.15], [0.1, 0.05, 0.15], page.UNDECIDED),
        ([0.1, 0.05, 0.15], [0.3, 0.2, 0.4], page.NOT),
        ([0.01, 0.0, 0.02], [0.1, 0.05, 0.15], page.NOT),
    ],
)
def test_a_verdict_follows_its_rule(highest, lowest, verdict):
    finding = page.borders(shares(highest, [0.1, 0.08, 0.12], lowest))
    assert finding.verdict == verdict
    assert "30.0 % [20.0, 40.0]" in finding.text or 0.3 not in (highest[0], lowest[0])


def detected(within, overall=(0.7, 0.65, 0.75), precise=(0.1, 0.05, 0.15), title="score"):
    """A record of duplicates that a score finds so well; the nearest embedding is precise to 0.3 to 0.5."""
    score = {"auroc": overall, "auroc within classes": within, "average_precision": precise}
    rival = {"auroc": [0.9, 0.8, 1.0], "average_precision": [0.4, 0.3, 0.5]}
    counts = {"positives": 10, "images": 100}
    return {"judged": {"same shot": {title: {**score, **counts}, "nearest embedding": {**rival, **counts}}}}


@pytest.mark.parametrize(
    ("record", "verdict"),
    [
        (detected([0.7, 0.65, 0.75], precise=[0.5, 0.4, 0.6]), page.HOLDS),
        (detected([0.7, 0.65, 0.75]), page.WEAKLY),
        (detected([0.55, 0.52, 0.58]), page.NOT),
        (detected([0.6, 0.49, 0.7]), page.NOT),
        (detected([0.7, 0.65, 0.75], overall=[0.5, 0.4, 0.6]), page.NOT),
    ],
)
def test_duplicates_are_judged_within_classes(record, verdict):
    assert page.duplicates(record).verdict == verdict


def test_the_exact_score_is_judged_where_it_is_known():
    record = detected([0.7, 0.65, 0.75])
    exact = detected([0.5, 0.45, 0.55], title="exact score")["judged"]["same shot"]
    finding = page.duplicates({"judged": {"same shot": {**record["judged"]["same shot"], **exact}}})
    assert finding.verdict == page.NOT
    assert "AUROC of a low exact score" in finding.text


def test_differences_between_classes_add_nothing_within_them():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 3, 300)
    positive = rng.random(300) < 0.1 + 0.3 * groups
    ranking = np.round(rng.normal(size=300), 1)
    pairs = [
        (ranking[i] > ranking[j]) + 0.5 * (ranking[i] == ranking[j])
        for i in np.flatnonzero(positive)
        for j in np.flatnonzero(~positive & (groups == groups[i]))
    ]
    assert results.auroc_within(ranking, positive, groups) == pytest.approx(np.mean(pairs), abs=1e-12)
    by_class = results.detection(groups + 0.01 * ranking, positive, 20, groups)
    assert by_class["auroc"].value > 0.7
    assert by_class["auroc within classes"].value == pytest.approx(np.mean(pairs), abs=1e-12)


LESS, SAME, MORE = [-0.1, -0.15, -0.05], [0.0, -0.04, 0.04], [0.1, 0.05, 0.15]


def separated(highest, lowest):
    """A record of parts with these silhouettes and, beyond a chance of a tenth, shares of neighbours."""
    parts = {"highest": highest, "lowest": lowest, "random": (SAME, SAME)}
    return {
        "1000 of 6000": {
            name: {
                "silhouette": silhouette,
                "purity": [0.1 + 0.9 * (0.5 + value) for value in purity],
                "purity by chance": 0.1,
                "classes": {"0": 3, "1": 5},
            }
            for name, (silhouette, purity) in parts.items()
        }
    }


@pytest.mark.parametrize(
    ("highest", "lowest", "verdict"),
    [
        ((LESS, SAME), (SAME, MORE), page.HOLDS),
        ((SAME, SAME), (MORE, MORE), page.WEAKLY),
        ((SAME, SAME), (MORE, LESS), page.UNDECIDED),
        ((SAME, MORE), (MORE, MORE), page.NOT),
        ((SAME, SAME), (SAME, LESS), page.NOT),
        ((SAME, SAME), (SAME, SAME), page.UNDECIDED),
    ],
)
def test_separation_is_judged_by_both_measures(highest, lowest, verdict):
    assert page.separation(separated(highest, lowest)).verdict == verdict


def test_a_distribution_is_judged_by_the_pair_of_its_own_method():
    draws = np.random.default_rng(0).normal(size=20_000)
    for method, (mean, spread) in distribution.PUBLISHED.items():
        estimates = results.resampled(distribution.describe, np.exp(np.log(2) * (mean + spread * draws)), resamples=5)
        fits = {each: distribution.fit(estimates, *pair) for each, pair in distribution.PUBLISHED.items()}
        record = {"method": method, "found": results.rounded(estimates), "fits": fits}
        assert page.distribution(record).verdict == page.WEAKLY
        other = {"SimCLR": "BYOL", "BYOL": "SimCLR", "Barlow Twins": "SimCLR"}[method]
        assert page.distribution({**record, "method": other}).verdict == page.NOT


def test_a_question_without_results_says_what_it_needs():
    absent = page.Column("none", "None", 1, {}, {})
    for question in page.QUESTIONS:
        finding = page.answer_of(question, absent.answers)
        assert finding.verdict == page.NOT_RUN
        assert finding.text.startswith("Needs ")


def test_the_commands_of_results_are_taken():
    commands = {record["command"] for column in page.columns() for record in (column.record, *column.answers.values())}
    for command in commands:
        program, flag, module, *options = command.split()
        assert (program, flag) == ("python", "-m")
        assert importlib.util.find_spec(module) is not None
        encoder = tyro.cli(Study, args=options).encoder
        assert encoder.name in page.TITLES
        assert encoder.is_dir()
