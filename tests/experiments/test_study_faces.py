"""The experiment on faces, tiny; counts and chance against closed forms; and the rules of the verdicts."""

import csv
import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from PIL import Image
from scipy import stats

from experiments.study import faces, measures, page, results
from experiments.study.faces import Faces, at_random, tenths
from experiments.study.page import HOLDS, NOT, UNDECIDED, WEAKLY
from experiments.study.table import Table
from influence_ssl_jax.runs.settings import CurvatureSet
from influence_ssl_jax.scoring.scores import Scoring

RACES = ("Black", "East Asian", "Middle Eastern", "Southeast Asian", "White")
FEW = (8, 16)


def make_faces(folder, split, count):
    """Noise with labels, as FairFace is laid out; the first face of all has the label of no other."""
    rng = np.random.default_rng(len(split))
    (folder / split).mkdir()
    with (folder / f"fairface_label_{split}.csv").open("w", newline="") as table:
        rows = csv.writer(table)
        rows.writerow(["file", "age", "gender", "race", "service_test"])
        for number in range(1, count + 1):
            name = f"{split}/{number}.png"
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / name)
            rows.writerow([name, "20-29" if number % 3 else "3-9", "Male", RACES[number % len(RACES)], "FALSE"])


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    make_faces(folder, "train", 40)
    make_faces(folder, "val", 10)
    tiny = Faces(
        encoder=Path("tests.small_encoder:load"),
        fairface=folder,
        sizes=FEW,
        scoring=Scoring(draws=2, batch_size=16),
        curvature=CurvatureSet(examples=8, batch_size=8),
        runs=folder / "runs",
        results=folder / "results",
        figures=folder / "figures",
    )
    return tiny, faces.answer(tiny)


def test_faces_go_from_images_to_the_page(answered):
    tiny, place = answered
    record = json.loads(place.read_text(encoding="utf-8"))
    assert "/" not in place.read_text(encoding="utf-8")
    assert record["images"] == 40
    assert (tiny.figures / "faces.jpg").stat().st_size > 1000
    column = page.FaceEncoder("tiny", 1, {"faces": record})
    for question in page.QUESTIONS:
        finding = column.finding(question)
        assert (finding is None) == (question.answered_by != "faces")
        assert finding is None or finding.text.startswith("Of 40 faces")


def test_every_row_has_the_attributes_and_pixels_of_its_face(answered):
    tiny, _ = answered
    table, opened = Table.load(tiny.kept), tiny.source("train").open()
    assert sorted(table["id"]) == sorted(opened.ids())
    for name, race, bright in zip(table["id"], table["race"], table["brightness"], strict=True):
        number = int(name.removesuffix(".png"))
        assert race == RACES[number % len(RACES)]
        pixels = np.asarray(Image.open(tiny.fairface / "train" / name))
        np.testing.assert_allclose(bright, pixels.mean() / 255, rtol=1e-6)


def test_what_is_scored_so_far_is_told_as_such(answered):
    tiny, place = answered
    before = place.read_text(encoding="utf-8")
    assert page.scored_faces(json.loads(before)) == "40 faces"
    scored = json.loads(before) | {"images": 30}
    assert page.scored_faces(scored) == "30 faces of 40, scored so far"
    again = json.loads(faces.answer(dataclasses.replace(tiny, so_far=True)).read_text(encoding="utf-8"))
    assert {**again, "minutes": 0} == {**json.loads(before), "minutes": 0}


def test_groups_are_counted_among_the_first(answered):
    tiny, place = answered
    table, record = Table.load(tiny.kept), json.loads(place.read_text(encoding="utf-8"))
    for ranking, values in {"highest scores": -table["score"], "darkest": table["brightness"]}.items():
        for size in FEW:
            rows = np.argsort(values)[:size]
            for race in RACES:
                value, low, high = record["groups"]["race"][race][f"{ranking} {size}"]["share"]
                assert value == pytest.approx(np.mean(table["race"][rows] == race), rel=1e-3)
                assert low <= value <= high


def test_accuracies_of_labels_that_all_share_are_perfect(answered):
    _, place = answered
    record = json.loads(place.read_text(encoding="utf-8"))["accuracy"]
    for classifier in faces.CLASSIFIERS:
        assert [record["gender"][classifier][name][0] for name in ("encoder", "untrained")] == [1, 1]
    assert record["gender"]["most frequent"][0] == 1
    assert record["race"]["most frequent"][0] == 0.2
    assert record["age"]["most frequent"][0] == 0.7


def test_an_untrained_network_has_other_parameters(answered):
    encoder = faces.load_encoder(answered[0].encoder)
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 8, 8, 3)), jnp.float32)
    fresh = faces.untrained(encoder)
    ours, other = (each.network(each.params, each.frozen, images) for each in (encoder, fresh))
    assert ours.shape == other.shape
    assert not np.allclose(ours, other)


def test_chance_is_the_hypergeometric_law():
    rng = np.random.default_rng(1)
    member, chosen = rng.random(500) < 0.3, np.arange(60)
    estimate = at_random(member, chosen, np.zeros(500, int))
    law = stats.hypergeom(500, member.sum(), 60)
    assert estimate.value == pytest.approx(member.mean())
    np.testing.assert_allclose([estimate.low, estimate.high], law.ppf([0.025, 0.975]) / 60, atol=1 / 60)


def test_chance_keeps_the_strata():
    stratum = np.repeat([0, 1], 50)
    member = stratum == 0
    assert at_random(member, np.arange(20), stratum) == (1, 1, 1)
    assert at_random(member, np.arange(80, 100), stratum) == (0, 0, 0)
    assert at_random(member, np.array([0, 1, 99]), stratum).value == pytest.approx(2 / 3)


def test_tenths_are_of_equal_size():
    values = np.random.default_rng(0).normal(size=200)
    numbers = tenths(values)
    assert np.bincount(numbers).tolist() == [20] * 10
    assert values[numbers == 0].max() < values[numbers == 1].min()


def test_a_mirrored_image_has_no_asymmetry():
    half = np.random.default_rng(0).integers(0, 256, (3, 8, 4, 3), np.uint8)
    symmetric = np.concatenate([half, half[:, :, ::-1]], axis=2)
    slope = np.broadcast_to(np.arange(0, 80, 10, dtype=np.uint8)[None, None, :, None], (1, 8, 8, 3))
    np.testing.assert_allclose(measures.asymmetry(symmetric), 0, atol=1e-12)
    np.testing.assert_allclose(measures.asymmetry(slope), 2)
    assert measures.asymmetry(np.full((1, 8, 8, 3), 7, np.uint8)).tolist() == [0]


def test_what_cannot_be_counted_is_refused(answered):
    tiny, _ = answered
    with pytest.raises(ValueError, match="name the folder of FairFace"):
        dataclasses.replace(tiny, fairface=None).source("train")
    with pytest.raises(ValueError, match=r"50 scored faces are needed.*got 40"):
        faces.compared(Table.load(tiny.kept), (8, 50))
    with pytest.raises(ValueError, match="No face is scored yet"):
        faces.run(dataclasses.replace(tiny, so_far=True, runs=tiny.runs / "none"))


BEYOND = {"encoder": [0.5, 0.4, 0.6], "untrained": [0.3, 0.25, 0.35]}
MEETING = {"encoder": [0.4, 0.33, 0.47], "untrained": [0.3, 0.25, 0.35]}
KNOWS = {"race": {"20 neighbours": MEETING, "linear probe": BEYOND}}
NEAR = {"race": {"20 neighbours": MEETING, "linear probe": MEETING}}


def groups(black, eastern, asian, matched=0.2, wide=None):
    """A record with these intervals of shares among the highest; all groups have a fifth of all faces."""

    def race(small, large):
        shares = {"highest scores 100": small, "highest scores 400": large}
        at_same = [0.15, 0.1, matched]
        return {"all": 0.2, **{k: {"share": v, "at the same brightness": at_same} for k, v in shares.items()}}

    wide = wide or (black, eastern, asian)
    races = dict(zip(("Black", "Middle Eastern", "East Asian"), map(race, (black, eastern, asian), wide), strict=True))
    races["Southeast Asian"] = races["East Asian"]
    return {"images": 1000, "of": 1000, "sizes": [100, 400], "accuracy": KNOWS, "groups": {"race": races}}


MANY, SOME, CHANCE, LITTLE = [0.4, 0.3, 0.5], [0.25, 0.18, 0.32], [0.2, 0.18, 0.22], [0.1, 0.05, 0.15]


@pytest.mark.parametrize(
    ("record", "verdict"),
    [
        (groups(MANY, MANY, LITTLE), HOLDS),
        (groups(MANY, MANY, LITTLE, matched=0.45), WEAKLY),
        (groups(MANY, SOME, LITTLE), WEAKLY),
        (groups(SOME, SOME, CHANCE, wide=(MANY, SOME, CHANCE)), WEAKLY),
        (groups(MANY, LITTLE, LITTLE), NOT),
        (groups(MANY, LITTLE, LITTLE, wide=(MANY, MANY, LITTLE)), NOT),
        (groups(MANY, SOME, MANY), NOT),
        (groups(CHANCE, CHANCE, CHANCE), NOT),
        (groups(SOME, SOME, CHANCE), UNDECIDED),
    ],
)
def test_the_verdict_on_groups_follows_its_rule(record, verdict):
    assert page.groups(record).verdict == verdict


def dark(highest, lowest, wide, dim=CHANCE):
    """A record with these intervals of the share of the darkest tenth."""
    ends = {"highest scores 100": highest, "lowest scores 100": lowest, "highest scores 400": wide}
    shares = {name: {"darkest tenth": value, "tenth of least contrast": dim} for name, value in ends.items()}
    ranks = {name: [0.1, 0.0, 0.2] for name in ("brightness", "contrast", "asymmetry")}
    return {"images": 1000, "of": 1000, "sizes": [100, 400], "accuracy": KNOWS, "light": shares, "spearman": ranks}


TENTH, RARE = [0.1, 0.06, 0.14], [0.04, 0.02, 0.06]


@pytest.mark.parametrize(
    ("record", "verdict"),
    [
        (dark(MANY, RARE, SOME, TENTH), HOLDS),
        (dark(MANY, MANY, SOME, TENTH), WEAKLY),
        (dark(MANY, RARE, TENTH, TENTH), WEAKLY),
        (dark(TENTH, TENTH, SOME, TENTH), WEAKLY),
        (dark(TENTH, TENTH, TENTH, SOME), WEAKLY),
        (dark(TENTH, TENTH, RARE, SOME), NOT),
        (dark(TENTH, SOME, SOME, TENTH), NOT),
        (dark(TENTH, TENTH, TENTH, TENTH), UNDECIDED),
    ],
)
def test_the_verdict_on_light_follows_its_rule(record, verdict):
    assert page.light(record).verdict == verdict


def test_an_encoder_that_learned_nothing_decides_nothing():
    for judge, record in ((page.groups, groups(MANY, MANY, LITTLE)), (page.light, dark(MANY, RARE, SOME))):
        assert judge(record).verdict == HOLDS
        finding = judge(record | {"accuracy": NEAR})
        assert finding.verdict == UNDECIDED
        assert finding.text.endswith(f"this decides nothing. By the numbers alone the rule would say: {HOLDS}.")


@pytest.fixture(scope="module")
def committed():
    """The table and the result of the encoder of faces."""
    return Table.load(page.RESULTS / page.FACES), results.read(page.RESULTS / page.FACES, "faces")


def test_committed_results_are_those_of_the_committed_table(committed):
    table, record = committed
    again = json.loads(json.dumps(results.rounded(faces.compared(table, faces.SIZES, resamples=2))))
    own = {
        key: again[key] for key in ("images", "of", "sizes", "accuracy", "groups", "light", "reliability of the score")
    }
    assert own == {key: record[key] for key in own}
    assert len(table["id"]) == table.record["images"]["all"]
    assert (page.RESULTS / page.FACES / "table.parquet").stat().st_size < 1_000_000
    assert (page.PAGE.parent / "figures" / "faces.jpg").stat().st_size < 150_000


def test_the_command_of_the_committed_result_is_taken(committed):
    program, flag, module, *options = committed[1]["command"].split()
    assert (program, flag, module) == ("python", "-m", "experiments.study.faces")
    assert tyro.cli(Faces, args=options).encoder.name == Faces().encoder.name == page.FACES
