"""The experiments of many small encoders: training in one step, continuation, and numbers with known answers."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import tyro
from matplotlib.figure import Figure
from scipy import stats

from experiments.study import (
    backgrounds,
    copies,
    memorised,
    outputs,
    page,
    removal,
    retraining,
    small,
    stability,
    trajectory,
)
from experiments.study.page import HOLDS, NOT, UNDECIDED, WEAKLY
from experiments.study.small import Pictures, Small, complete, read, shrink
from influence_ssl_jax import trees
from influence_ssl_jax.ihvp.backend import Damping
from influence_ssl_jax.ihvp.exact import Exact
from influence_ssl_jax.losses import SimCLR
from influence_ssl_jax.scoring.scores import Scorer, Scoring
from influence_ssl_jax.train import Probe, pretrain
from tests.train.small import small as small_settings


def test_shrinking_averages_squares():
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[0, :2, :2] = np.array([[10, 20], [30, 41]])[..., None]
    np.testing.assert_array_equal(shrink(image, 2)[0, :, :, 0], [[25, 0], [0, 0]])
    with pytest.raises(ValueError, match="cannot be shrunk to 3"):
        shrink(image, 3)


def test_training_by_a_shared_step_is_that_of_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(small.METHODS, "SimCLR", small_settings(SimCLR(0.5)))
    scale = Small(images="digits", pixels=8, train=40, test=24, epochs=2, batch_size=16, runs=tmp_path)
    pictures = read(scale, "train")
    trained = small.train(scale, "SimCLR", pictures, 7)
    settings = dataclasses.replace(scale.settings("SimCLR"), seed=7)
    probe = Probe(bank=8, queries=8, linear=0)
    want = pretrain(settings, pictures.open(), pictures.to_input(), tmp_path / "run", probe=probe)
    jax.tree.map(np.testing.assert_array_equal, (trained.params, trained.frozen), (want.params, want.frozen))
    assert trained.settings == want.settings
    losses = {views: small.alignment(trained, pictures, views, 3) for views in ("training", "noise")}
    assert all(each.shape == (40,) and (each >= 0).all() and (each <= 2).all() for each in losses.values())
    some = small.alignment(trained, pictures.of(np.arange(8)), "noise", 3)
    np.testing.assert_allclose(some, losses["noise"][:8], rtol=1e-4, atol=1e-7)
    assert 0 <= small.accuracies(trained, pictures, read(scale, "test"))["linear"] <= 1


def test_what_has_a_file_is_not_done_again(tmp_path):
    scale, done = Small(runs=tmp_path, at_once=1), []

    def job(number):
        return lambda: done.append(number) or {"value": np.arange(number)}

    first = complete(scale, {"one": job(1), "two": job(2)})
    again = complete(scale, {"one": job(1), "two": job(2), "three": job(3)})
    assert done == [1, 2, 3]
    assert again["two"]["value"].tolist() == first["two"]["value"].tolist() == [0, 1]
    assert complete(dataclasses.replace(scale, at_once=2), {"one": job(1)})  # how it is done is no part of what
    with pytest.raises(SystemExit, match="3 of 4 are done"):
        complete(
            dataclasses.replace(scale, minutes=0.0), {"one": job(1), "two": job(2), "three": job(3), "four": job(4)}
        )
    other = dataclasses.replace(scale, epochs=21)
    complete(other, {"one": job(1)})
    assert done == [1, 2, 3, 1]


def test_halves_are_halves():
    inside = retraining.membership(11, 40)
    assert (inside.sum(axis=1) == 5).all()
    assert 0 < inside.mean(axis=0).min() < inside.mean(axis=0).max() < 1


def planted(cuts, images, noise, seed=0):
    """Losses with a known effect of every image, an offset of every encoder, and noise."""
    rng = np.random.default_rng(seed)
    inside, effect = retraining.membership(images, cuts), rng.normal(size=images)
    trained_on = np.stack([inside, ~inside], axis=1)
    losses = rng.normal(size=images) + np.where(trained_on, 0.0, effect) + 3 * rng.normal(size=(cuts, 2, 1))
    return losses + noise * rng.normal(size=losses.shape), inside, effect


def test_effects_are_those_that_were_planted():
    losses, inside, effect = planted(6, 400, 0.0)
    effects = retraining.effects(losses, inside)
    # An encoder's mean loss holds the effects of the images that it left out, whose mean is near zero.
    assert np.abs(effects - effect).max() < 5 * 400**-0.5
    np.testing.assert_allclose(retraining.effect_reliability(effects), 1, atol=5e-3)


def test_the_reliability_of_effects_is_that_of_their_noise():
    losses, inside, _ = planted(16, 4000, 2.0)
    effects = retraining.effects(losses, inside)
    # Variance 1 between images, and 2 · 2² / 16 of noise.
    np.testing.assert_allclose(retraining.effect_reliability(effects, 10), 1 / 1.5, atol=0.03)


def results_of_encoders(effect_of):
    """Results of 6 cuts and one encoder of all images, whose scores are a function of the planted effect."""
    losses, inside, effect = planted(6, 200, 0.3)
    rng = np.random.default_rng(1)
    accuracy = {"accuracy, knn": np.asarray(0.3), "accuracy, linear": np.asarray(0.4)}
    by_encoder = {
        f"half_{cut:03d}_{half}": {"training": losses[cut, half], "noise": rng.normal(size=200)}
        for cut in range(6)
        for half in range(2)
    }
    columns = {name: rng.normal(size=200) for name in (*retraining.SCORES, *retraining.RIVALS, retraining.OWN_LOSS)}
    columns |= effect_of(effect, columns)
    for name in retraining.SCORES:
        rivals = {rival: columns[rival] for rival in retraining.RIVALS}
        by_encoder[f"whole_0_{retraining.slug(name)}"] = {"score": columns[name], **rivals}
    by_encoder["whole_0_probed"] = {retraining.OWN_LOSS: columns[retraining.OWN_LOSS], **accuracy}
    return by_encoder, inside


def record_of(effect_of):
    record = retraining.compared(*results_of_encoders(effect_of), seeds=(0,), resamples=50)
    scale = {"width": 4, "pixels": 16, "train": 200, "epochs": 2}
    return json.loads(json.dumps(page.results.rounded({**record, "scale": scale})))


def test_a_score_that_is_the_effect_predicts_it():
    record = record_of(lambda effect, _: {retraining.EXACT: effect})
    estimates = record["found"]["views of training"]
    assert estimates["spearman"][retraining.EXACT][0] > 0.95
    assert estimates["spearman of the mean rank over seeds"] == estimates["spearman"]  # of one seed
    assert page.retraining(record).verdict == HOLDS
    assert len(retraining.draw(record).axes) == 2
    assert abs(record["found"]["noise"]["spearman"][retraining.EXACT][0]) < 0.3
    assert record["found"]["noise"]["reliability"] < 0.6


def test_a_score_no_better_than_a_rival_predicts_weakly_and_noise_does_not():
    def rival(effect, _):
        return {retraining.EXACT: effect + 0.1, "gradient norm": effect}

    assert page.retraining(record_of(rival)).verdict == WEAKLY
    record = record_of(lambda effect, _: {retraining.EXACT: -effect})
    assert page.retraining(record).verdict == NOT
    record["found"]["views of training"]["reliability"] = 0.1
    assert page.retraining(record).verdict == UNDECIDED


PERCEPTRONS = memorised.Memorised(
    images="digits", train=24, test=30, draws=2, hidden=4, features=3, projected=5, steps=40, rate=0.01, cuts=2,
    seeds=(0, 1), dimensions=(0.1, 0.9), rows=16,
)  # fmt: skip


def test_perceptrons_that_are_trained_together_are_those_trained_alone():
    images = jax.numpy.asarray(read(PERCEPTRONS, "train").images, "float32") / 255
    # The first loss: Adam moves a parameter whose gradient is rounding by whole steps, either way.
    short, members = dataclasses.replace(PERCEPTRONS, steps=1), np.arange(24).reshape(2, 12)
    together, alone = (
        memorised.train(short, images, members, 3)[1],
        [memorised.train(short, images, chosen[None], 3)[1][0] for chosen in members],
    )
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert abs(alone[0] - alone[1]) > 1e-2
    assert (memorised.train(PERCEPTRONS, images, members, 3)[1] < 0.9 * together).all()


def test_scores_of_perceptrons_are_those_of_the_whole_matrix_for_every_damping():
    pictures = read(PERCEPTRONS, "train")
    (params,) = memorised.trained(PERCEPTRONS, pictures, np.arange(24)[None], 0)
    params = trees.astype(params, jax.numpy.float64)
    scores = memorised.scored(PERCEPTRONS, params, pictures)
    for name, problem in memorised.curvatures(PERCEPTRONS, params, pictures).items():
        for label in memorised.dampings(PERCEPTRONS):
            scoring = Scoring(Damping(absolute=float(scores[f"λ of {name}, {label}"])), draws=2, batch_size=small.BATCH)
            scorer = Scorer.fit(problem, Exact(), scoring, PERCEPTRONS.measurement())
            batches = memorised.loaded(pictures)
            want = np.concatenate([np.asarray(scorer(each.batch).score)[each.valid] for each in batches])
            np.testing.assert_allclose(scores[f"{name}, {label}"], want, rtol=5e-2)


def test_what_perceptrons_memorise_goes_to_the_page(tmp_path):
    scale = dataclasses.replace(PERCEPTRONS, runs=tmp_path, at_once=1)
    record, figure = memorised.find(scale, resamples=20)
    record = json.loads(json.dumps(page.results.rounded({**record, "scale": scale.described(), "command": "c"})))
    assert (record["images"], record["encoders"], len(figure.axes)) == (24, 4, 2)
    told = page.memorised(record)
    assert "4 encoders of halves" in told.text
    noise = record["found"]["noise"]
    noise["reliability"], noise["spearman"][retraining.EXACT] = 0.5, [0.3, 0.2, 0.4]
    noise["spearman of the exact score less that of"] = {rival: [0.1, 0.05, 0.2] for rival in retraining.RIVALS}
    assert page.memorised(record).verdict == HOLDS
    noise["spearman of the exact score less that of"]["gradient norm"] = [0.0, -0.1, 0.1]
    assert page.memorised(record).verdict == WEAKLY
    noise["spearman"][retraining.EXACT] = [0.1, -0.01, 0.2]
    assert page.memorised(record).verdict == NOT
    noise["reliability"] = 0.1
    assert page.memorised(record).verdict == UNDECIDED


def encoders_of(own, draws, seeds=3, images=4000):
    """Two scorings by several encoders: what they share has variance 1."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=images)
    return [
        shared + own**0.5 * rng.normal(size=images) + draws**0.5 * rng.normal(size=(2, images)) for _ in range(seeds)
    ]


def test_correlation_between_seeds_and_its_ceiling_are_those_that_were_planted():
    agreement = stability.agreement(encoders_of(own=0.5, draws=1.0), resamples=5)
    np.testing.assert_allclose(agreement["pearson"].value, 1 / 2.5, atol=0.03)  # 1 of 1 + 0.5 + 1
    np.testing.assert_allclose(agreement["ceiling"].value, 1.5 / 2.5, atol=0.03)
    np.testing.assert_allclose(
        agreement["spearman over ceiling"].value, agreement["spearman"].value / agreement["ceiling"].value
    )


@pytest.mark.parametrize(("own", "draws", "verdict"), [(0.1, 0.1, HOLDS), (0.2, 1.5, WEAKLY), (3.0, 0.1, NOT)])
def test_stability_is_judged_by_its_rule(own, draws, verdict):
    results = {
        seed: {
            **dict.fromkeys(small.COLUMNS.values(), scorings),
            "accuracy, knn": np.asarray(0.3),
            "accuracy, linear": np.asarray(0.4),
        }
        for seed, scorings in enumerate(encoders_of(own, draws))
    }
    record = stability.compared({"SimCLR": results, "BYOL": results}, resamples=5)
    scale = {"width": 4, "pixels": 16, "train": 200, "epochs": 2, "seeds": [0, 1, 2]}
    record = json.loads(json.dumps(page.results.rounded({**record, "scale": scale})))
    assert page.stability(record).verdict == verdict
    assert record["images"] == 4000
    assert len(stability.draw(record).axes) == 2


def test_what_is_removed_is_what_its_name_says():
    scores = {"score": np.arange(10.0), "alignment loss": -np.arange(10.0)}
    assert sorted(removal.removed(scores, removal.HIGHEST, 0.2, 0)) == [8, 9]
    assert sorted(removal.removed(scores, removal.LOWEST, 0.2, 0)) == [0, 1]
    assert sorted(removal.removed(scores, removal.LOSS, 0.2, 0)) == [0, 1]
    random = [set(removal.removed(scores, removal.RANDOM, 0.4, seed).tolist()) for seed in range(5)]
    assert all(len(each) == 4 for each in random)
    assert len({frozenset(each) for each in random}) > 1


def accuracies_of(changes):
    """Results of removal with these changes of accuracy by (method, ranking, share)."""
    scale = removal.Removal()
    by_encoder = {}
    for method in scale.methods:
        for number, seed in enumerate(scale.seeds):
            base = 0.4 + 0.01 * number
            probes = {"linear": np.asarray(base), "classifier": np.asarray(base)}
            columns = {name: np.ones(3) for name in small.COLUMNS.values()}
            by_encoder[f"{method}_{seed}_whole"] = {**columns, **probes}
            for share in scale.shares:
                for ranking in removal.RANKINGS:
                    value = np.asarray(base + changes.get((method, ranking), 0.0) + 0.001 * (-1) ** number)
                    by_encoder[f"{method}_{seed}_{ranking.replace(' ', '_')}_{share:g}"] = {
                        "linear": value,
                        "classifier": value,
                    }
    record = removal.compared(scale, by_encoder)
    return json.loads(json.dumps(page.results.rounded({**record, "scale": scale.described()})))


def test_differences_are_within_a_seed_with_students_interval():
    values = np.array([0.1, 0.3, 0.2])
    mean, low, high = removal.over_seeds(values)
    want = stats.ttest_1samp(values, 0).confidence_interval()
    np.testing.assert_allclose([mean, low, high], [0.2, want.low, want.high])
    record = accuracies_of({("SimCLR", removal.HIGHEST): -0.05})
    share = record["found"]["SimCLR"]["shares"]["0.4"]
    step = np.array([0.001, -0.001, 0.001])
    np.testing.assert_allclose(
        share["less nothing removed"][removal.HIGHEST], removal.over_seeds(step - 0.05), rtol=1e-3
    )
    np.testing.assert_allclose(share["less random"][removal.HIGHEST][0], -0.05, rtol=1e-3)
    assert len(removal.draw(record).axes) == 2


DEGRADES = {("supervised", removal.HIGHEST): -0.05, ("supervised", removal.LOWEST): -0.05}


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({("SimCLR", removal.HIGHEST): 0.02, ("SimCLR", removal.LOWEST): -0.02, **DEGRADES}, HOLDS),
        ({("SimCLR", removal.LOWEST): -0.02}, WEAKLY),
        ({("SimCLR", removal.HIGHEST): -0.02, ("SimCLR", removal.LOWEST): -0.05}, NOT),
        ({}, UNDECIDED),
    ],
)
def test_removal_is_judged_by_its_rule(changes, verdict):
    finding = page.removal(accuracies_of(changes))
    assert finding.verdict == verdict
    if verdict == HOLDS:
        assert "10 % removed: highest scores +2.0 [" in finding.text


def of_backgrounds(rankings, images):
    """The record of encoders that rank images so, as it is read from its file."""
    rng = np.random.default_rng(0)
    encoders = {
        method: [
            {
                "score": np.stack([values] * 2),
                "alignment loss": rng.normal(size=(2, len(values))),
                "accuracy, knn": np.asarray(0.3),
                "accuracy, linear": np.asarray(0.4),
            }
        ]
        * 2
        for method, values in rankings.items()
    }
    record = json.loads(json.dumps(page.results.rounded(backgrounds.compared(encoders, images, resamples=50))))
    return {
        **record,
        "scale": {"width": 4, "pixels": 16, "train": 300, "epochs": 2, "seeds": [0, 1], "images": "cifar100"},
    }


def test_white_and_black_borders_are_counted_at_both_ends():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (300, 6, 6, 3)).astype(np.uint8)
    images[:15], images[15:30], images[30:60] = 0, 255, 128  # grey ones are uniform, and neither
    plain, drawn = np.arange(300.0) < 30, rng.normal(size=300)
    trends = {"none": drawn, "up": 1 * plain + 0.01 * drawn, "down": -1 * plain + 0.01 * drawn}
    record = of_backgrounds({"SimCLR": trends["up"], "BYOL": trends["down"], "supervised": drawn}, images)
    assert record["white or black"] == 30
    simclr, byol = (record["found"][method]["score"] for method in ("SimCLR", "BYOL"))
    assert (simclr["highest"][0], simclr["lowest"][0], simclr["all"][0]) == (1, 0, 0.1)
    assert (byol["highest"][0], byol["lowest"][0]) == (0, 1)
    assert simclr["highest over all"][0] == 10
    for simclr, byol, supervised, verdict in [
        ("up", "up", "down", HOLDS),
        ("up", "down", "down", WEAKLY),
        ("down", "down", "down", NOT),
        ("down", "down", "up", NOT),
        ("up", "up", "up", NOT),
        ("down", "up", "none", UNDECIDED),
    ]:
        rankings = {"SimCLR": trends[simclr], "BYOL": trends[byol], "supervised": trends[supervised]}
        assert page.backgrounds(of_backgrounds(rankings, images)).verdict == verdict


def test_images_that_are_there_twice_come_first_and_are_marked(tmp_path):
    scale = copies.Copies(images="digits", pixels=8, train=60, runs=tmp_path)
    pictures, twice = copies.with_copies(scale)
    assert len(pictures.images) == len(twice) == 60
    every = [each.tobytes() for each in pictures.images]
    assert [every.count(each) > 1 for each in every] == twice.tolist()
    assert 2 * round(0.05 * 60) <= twice.sum() < 20
    assert (np.diff(twice.astype(int)) <= 0).all()
    assert len(copies.unseen(pictures, pictures).images) == 0
    other = pictures.of(np.arange(60)[~twice])
    assert len(copies.unseen(pictures, other).images) == twice.sum()


@pytest.mark.parametrize(
    ("simclr", "byol", "nearest", "verdict"),
    [(-1, -1, 0, HOLDS), (-1, -1, -2, WEAKLY), (-1, 0, 0, WEAKLY), (0, 1, 0, NOT), (1, 1, -2, NOT)],
)
def test_low_scores_find_copies_by_the_rule(simclr, byol, nearest, verdict):
    rng = np.random.default_rng(0)
    twice = np.arange(400) < 40

    def encoders(shift):
        columns = {name: rng.normal(size=(2, 400)) for name in small.COLUMNS.values()}
        columns["score"] += shift * twice
        columns["distance to the nearest embedding"] += 3 * nearest * twice
        return [{**columns, "accuracy, knn": np.asarray(0.3), "accuracy, linear": np.asarray(0.4)}]

    record = copies.compared({"SimCLR": encoders(simclr), "BYOL": encoders(byol)}, twice, resamples=50)
    record = json.loads(json.dumps(page.results.rounded(record)))
    record["scale"] = {"width": 4, "pixels": 16, "train": 300, "epochs": 2}
    found = page.copies(record)
    assert found.verdict == verdict, found.text
    assert "40 copies among 400 images" in found.text


def test_four_ways_are_compared_in_pairs():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=500)
    ways = {
        name: {"score": shared + 0.1 * rng.normal(size=(2, 500)), "alignment loss": rng.normal(size=(2, 500))}
        for name in outputs.CHOICES
    }
    ways["projector by pretraining"]["score"] = rng.normal(size=500) + 0.1 * rng.normal(size=(2, 500))
    record = json.loads(json.dumps(page.results.rounded(outputs.compared({"SimCLR": ways}, resamples=5))))
    record["scale"] = {"width": 4, "pixels": 16, "train": 300, "epochs": 2}
    pairs = record["found"]["SimCLR"]["pairs"]
    assert len(pairs) == 6
    assert pairs["encoder by measurement, projector by measurement"][0] > 0.95
    assert abs(pairs["encoder by measurement, projector by pretraining"][0]) < 0.2
    assert "encoder by measurement, encoder by pretraining" in page.outputs(record).text


TINY = trajectory.Trajectory(images="digits", train=1000, epochs=4, snapshots=(0, 2, 4), planted=20, scored=500)


def test_planted_images_stand_in_front():
    rng = np.random.default_rng(1)
    given = Pictures(rng.integers(0, 256, (60, 8, 8, 3)).astype(np.uint8), np.arange(60) % 10)
    pictures = trajectory.plant(given, 5, 0)
    assert pictures.images.shape == given.images.shape
    np.testing.assert_array_equal(pictures.images[15:], given.images[:45])
    np.testing.assert_array_equal(pictures.images[10:15], given.images[:5])
    assert (pictures.images[5:10].std(axis=(1, 2)) == 0).all()
    assert pictures.images[:5].std() > 60
    assert pictures.labels.tolist() == [-1] * 10 + given.labels[:5].tolist() + given.labels[:45].tolist()
    members = {kind: np.flatnonzero(trajectory.positives(kind, 5, 40)).tolist() for kind in trajectory.KINDS}
    assert members == {
        "noise": list(range(5)), "one colour": list(range(5, 10)), "copies": list(range(10, 20)),
    }  # fmt: skip


def snapshots_of(scores):
    """Columns of snapshots by their scores, with random rivals."""
    rng = np.random.default_rng(2)
    for score in scores:
        columns = {name: rng.uniform(1, 2, (2, len(score))) for name in small.RIVALS}
        yield {**columns, "score": np.stack([score, score]), "accuracy, knn": 0.3, "accuracy, linear": 0.4}


def test_a_trajectory_has_the_meaning_and_the_end_that_were_planted():
    rng, count = np.random.default_rng(3), 560
    pictures = Pictures(rng.integers(0, 256, (1000, 8, 8, 3)).astype(np.uint8), np.arange(1000) % 10)
    last = rng.uniform(1, 2, count)
    last[:20] += 2  # noise
    last[20:40] -= 1  # one colour
    last[40:80] -= 1  # copies
    last[60:] += pictures.labels[60:count] / 10
    first = rng.uniform(1, 2, count)
    near = last + rng.normal(size=count) / 100
    told = trajectory.follow(TINY, list(snapshots_of([first, near, last])), pictures, resamples=20)
    untrained, middle, end = told["snapshots"]
    assert told["settled"] == 2
    assert end["auroc"]["noise"]["score"].value == 1
    assert end["auroc"]["one colour"]["score"].value == 0
    assert end["auroc"]["copies"]["score"].value > 0.95
    assert abs(untrained["auroc"]["noise"]["score"].value - 0.5) < 0.2
    assert end["found"]["explained by the class"].value > 0.2 > 0.1 > untrained["found"]["explained by the class"].value
    assert middle["found"]["the last"].value > 0.99 > 0.3 > abs(untrained["found"]["the last"].value)
    assert middle["found"]["the one before"].value == pytest.approx(untrained["found"]["the last"].value, abs=0.05)
    assert "the one before" not in untrained["found"]
    assert end["at most"]["the last"] == pytest.approx(1)
    assert [each["epochs"] for each in told["snapshots"]] == [0, 2, 4]
    told = trajectory.follow(TINY, list(snapshots_of([last, first, last])), pictures, resamples=2)
    assert told["settled"] == 4


def test_snapshots_are_the_training_at_its_epochs(tmp_path, monkeypatch):
    monkeypatch.setitem(small.METHODS, "SimCLR", small_settings(SimCLR(0.5)))
    scale = trajectory.Trajectory(
        images="digits", pixels=8, train=24, epochs=2, snapshots=(0, 1, 2), batch_size=12, runs=tmp_path
    )
    pictures, kept = read(scale, "train"), {}
    monkeypatch.setattr(
        trajectory, "save", lambda place, each: kept.update({place.name: jax.tree.map(np.array, each.params)})
    )
    losses = trajectory.trained(scale, "SimCLR", pictures)["losses"]
    assert len(losses) == 3
    assert np.isnan(losses[0])
    assert list(kept) == ["simclr_0_0", "simclr_0_1", "simclr_0_2"]
    whole = small.train(scale, "SimCLR", pictures, 0).params
    jax.tree.map(np.testing.assert_array_equal, kept["simclr_0_2"], whole)
    moved = [float(np.linalg.norm(trees.ravel(each) - trees.ravel(whole))) for each in kept.values()]
    assert moved[0] > moved[1] > moved[2] == 0
    with pytest.raises(ValueError, match="end with the last of 50 epochs"):
        trajectory.Trajectory(snapshots=(0, 10))


COMMANDS = {
    "stability": stability.Stability,
    "outputs": outputs.Outputs,
    "retraining": retraining.Retraining,
    "memorised": memorised.Memorised,
    "removal": removal.Removal,
    "backgrounds": backgrounds.Backgrounds,
    "copies": copies.Copies,
    "trajectory": trajectory.Trajectory,
}


def test_committed_results_have_the_scale_of_their_command():
    answers = page.SmallEncoders.load(page.RESULTS).answers
    asked = {question.result for question in page.QUESTIONS if question.result and question.answered_by == "small"}
    assert answers.keys() <= asked
    assert COMMANDS.keys() == {name.removesuffix("_cifar100") for name in asked}
    for name, record in answers.items():
        program, flag, module, *options = record["command"].split()
        experiment = name.removesuffix("_cifar100")
        assert (program, flag, module) == ("python", "-m", f"experiments.study.{experiment}")
        of = tyro.cli(COMMANDS[experiment], args=options)
        assert (of.images == "cifar100") == name.endswith("_cifar100")
        assert json.loads(json.dumps(page.results.rounded(of.described()))) == record["scale"]


def test_a_question_is_answered_by_one_kind_of_encoders():
    kinds = {
        "small": page.SmallEncoders({}),
        "encoders": page.Column("none", "None", 1, {}, {}),
        "faces": page.FaceEncoder("none", 0, {}),
    }
    for question in page.QUESTIONS:
        answered = {name: kind.finding(question) for name, kind in kinds.items()}
        assert [name for name, has_answer in answered.items() if has_answer] == [question.answered_by]
        assert answered[question.answered_by].verdict == page.NOT_RUN


def test_results_on_cifar100_have_files_and_a_command_of_their_own(tmp_path):
    scale = Small(images="cifar100", results=tmp_path, figures=tmp_path)
    place = small.answer(scale, "stability", lambda _: ({"images": 3}, Figure()))
    assert place.name == "stability_cifar100.json"
    assert json.loads(place.read_text(encoding="utf-8"))["command"].endswith("--data-dir DIR --images cifar100")
    assert (tmp_path / "stability_cifar100.png").exists()
    assert scale.settings("supervised").architecture.output == 100
    assert Small().settings("supervised").architecture.output == 10


def test_the_encoders_of_outputs_are_those_of_stability(tmp_path):
    own = outputs.Outputs(runs=tmp_path, epochs=3)
    assert own.stability() == stability.Stability(runs=tmp_path, epochs=3, methods=own.methods)
    assert own.stability().folder() == stability.Stability(runs=tmp_path, epochs=3).folder() != own.folder()


def test_an_encoder_is_trained_once(tmp_path, monkeypatch):
    monkeypatch.setitem(small.METHODS, "SimCLR", small_settings(SimCLR(0.5)))
    scale = stability.Stability(images="digits", pixels=8, train=40, epochs=2, batch_size=16, runs=tmp_path)
    calls, pictures = [], Pictures(np.zeros((2, 8, 8, 3), np.uint8), np.zeros(2, np.int64))
    monkeypatch.setattr(small, "train", lambda *given: calls.append(given[1]) or "trained")
    monkeypatch.setattr(small, "save", lambda place, trained: place.with_suffix(".json").write_text(trained))
    monkeypatch.setattr(small, "load_trained", lambda place: place.name)
    assert [small.encoder_of(scale, "SimCLR", 5, pictures) for _ in range(2)] == ["simclr_5", "simclr_5"]
    assert calls == ["SimCLR"]


def stubbed(monkeypatch):
    """Let nothing be trained: what would be measured is drawn at random, in the shapes that it has."""
    rng = np.random.default_rng(0)

    def score(*given, scorings=1):
        pictures, scored = given[1], given[5] if len(given) > 5 else None
        count = len(pictures.labels) if scored is None else scored
        return {name: rng.uniform(1, 2, (scorings, count)) for name in small.COLUMNS.values()}

    def accuracies(*_):
        return {probe: rng.uniform() for probe in ("knn", "linear", "classifier")}

    def alignment(*given):
        return rng.uniform(size=len(given[1].labels))

    class Unfitted:
        settings = small.METHODS["SimCLR"]

    for module in (removal, stability, outputs, retraining, trajectory):
        monkeypatch.setattr(module, "score", score)
        monkeypatch.setattr(module, "accuracies", accuracies, raising=False)
        monkeypatch.setattr(module, "train", lambda *_: Unfitted, raising=False)
        monkeypatch.setattr(module, "encoder_of", lambda *_: Unfitted, raising=False)
    monkeypatch.setattr(retraining, "alignment", alignment)
    monkeypatch.setattr(trajectory, "trained", lambda *_: {"losses": [1.0]})
    monkeypatch.setattr(trajectory, "load", lambda _: Unfitted)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_experiment_goes_from_images_to_the_page(name, tmp_path, monkeypatch):
    stubbed(monkeypatch)
    tiny = {"cuts": 2, "steps": 5, "rows": 32, "draws": 2, "dimensions": (0.5,)}
    snapshots = {"planted": 4, "scored": 20, "snapshots": (0, 1, 2), "epochs": 2}
    own = {
        "retraining": {"cuts": 4}, "outputs": {"compared": 20}, "memorised": tiny, "trajectory": snapshots,
    }.get(name, {})  # fmt: skip
    own |= {} if name == "trajectory" else {"seeds": (0, 1)}
    if name in ("stability", "backgrounds", "outputs", "copies"):
        own["scored"] = 24
    scale = COMMANDS[name](
        images="digits", pixels=8, train=40, test=24, runs=tmp_path / "runs", results=tmp_path, figures=tmp_path, **own,
    )  # fmt: skip
    experiment = {
        each.__name__.rpartition(".")[2]: each
        for each in (stability, backgrounds, copies, outputs, retraining, memorised, removal, trajectory)
    }
    few = {} if name == "removal" else {"resamples": 3}  # removal has few seeds, and draws no images
    find = functools.partial(experiment[name].find, **few)
    place = small.answer(scale, name, find)
    record = json.loads(place.read_text(encoding="utf-8"))
    assert record["minutes"] >= 0
    assert "/" not in place.read_text(encoding="utf-8")
    question = next(each for each in page.QUESTIONS if each.result in (name, f"{name}_cifar100"))
    place.rename(tmp_path / f"{question.result}.json")
    column = page.SmallEncoders.load(tmp_path)
    finding = column.finding(question)
    assert finding.verdict != page.NOT_RUN
    assert "40 training images" in finding.text
    written = json.loads(small.answer(scale, name, find).read_text(encoding="utf-8"))
    assert {**written, "minutes": 0} == {**record, "minutes": 0}  # read from the files of the first time
