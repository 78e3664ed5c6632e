"""The numbers behind the page, each against counting by hand."""

from datetime import date

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from influence_ssl_jax.report.analysis import (
    LOW,
    Categories,
    Names,
    Quantity,
    breakdown,
    compare,
    explained_by_baselines,
    kinds,
    recoveries,
    signal_share,
)
from influence_ssl_jax.report.render import limit_resamples
from influence_ssl_jax.report.scored_run import ScoredRun
from influence_ssl_jax.store import ScoreStore


@pytest.fixture(scope="module")
def run(scored_folder):
    return ScoredRun.load(scored_folder)


@pytest.fixture(scope="module")
def attributes(run):
    return {item.name: item for item in breakdown(run, tail=20, resamples=20)}


def test_rows_are_ranked_without_those_that_have_no_score(run):
    rows = run.ranking()
    assert len(rows) == len(run.table) - 3
    assert not {0, 1, 5} & set(rows.tolist())
    assert (np.diff(run.score[rows]) <= 0).all()
    assert run.tail(0.1) == round(0.1 * len(rows))


def test_each_baseline_is_compared(run):
    comparisons = {item.column: item for item in compare(run, resamples=20)}
    assert list(comparisons) == ["alignment_loss", "gradient_norm", "pixel_variance", "knn_distance"]
    expected = stats.spearmanr(run.score, run.numbers("alignment_loss"), nan_policy="omit").statistic
    assert comparisons["alignment_loss"].spearman.value == pytest.approx(expected, abs=1e-12)
    assert comparisons["alignment_loss"].partial.value == pytest.approx(expected, abs=0.1)
    assert expected**2 <= explained_by_baselines(run) < 1


def test_reliability_is_what_noise_leaves(run):
    score = run.score[np.isfinite(run.score)]
    assert signal_share(run) == pytest.approx(1 - 0.04 * np.mean(score**2) / score.var(ddof=1))


def test_recovery_reads_the_expected_end_or_both(run):
    recovered = recoveries(run)
    assert [(item.kind, item.low) for item in recovered] == [
        ("blank", False),
        ("blank", True),
        ("exact_duplicate", True),
        ("near_duplicate", True),
        ("noise", False),
        ("noise", True),
    ]
    assert all(item.expected == (item.kind in LOW) for item in recovered)
    assert kinds(run) == ["blank", "exact_duplicate", "near_duplicate", "noise"]


def test_recovery_counts_pairs_of_planted_and_ordinary(run):
    planted, original = (np.array(run.table[name].to_pylist()) for name in ("planted", "original"))
    repeated = set(original[original >= 0].tolist())
    ordinary = [k for k in run.ranking() if planted[k] == "none" and k not in repeated]
    blank = [k for k in run.ranking() if planted[k] == "blank"]
    wins = run.score[blank][:, None] > run.score[ordinary][None, :]
    high, low = recoveries(run)[:2]
    assert high.detectors[0].auroc == pytest.approx(wins.mean())
    assert low.detectors[0].auroc == pytest.approx(1 - wins.mean())
    assert high.chance == len(blank) / (len(blank) + len(ordinary))
    assert high.detectors[0].name == "influence score"
    assert len(high.detectors) == 5
    assert low.detectors[3].auroc == 1.0  # a blank image has no pixel variance


def test_groups_are_counted_in_both_tails(run, attributes):
    named = ("(none)" if label is None else str(label) for label in run.table["label"].to_pylist())
    labels = np.array(list(named))[run.ranking()]
    attribute = attributes["label"]
    assert isinstance(attribute, Categories)
    assert [level.name for level in attribute.levels] == [*map(str, range(10)), "(none)"]
    for level in attribute.levels:
        is_level = labels == level.name
        assert level.count == is_level.sum()
        assert level.population == is_level.mean()
        assert level.top.value == is_level[:20].mean()
        assert level.bottom.value == is_level[-20:].mean()
        assert max(level.population, level.top.high, level.bottom.high) <= attribute.largest


def test_shares_of_a_group_sum_to_one_with_missing_values_counted(attributes):
    attribute = attributes["$group$ & co"]
    assert {level.name for level in attribute.levels} == {'<script>alert("x")</script>', "b", "(none)"}
    for share in ("population", "top", "bottom"):
        values = [getattr(level, share) for level in attribute.levels]
        assert sum(v if share == "population" else v.value for v in values) == pytest.approx(1.0)


def test_a_quantity_has_a_correlation_and_medians(run, attributes):
    attribute = attributes["age"]
    assert isinstance(attribute, Quantity)
    assert attribute.spearman.value == pytest.approx(1.0)
    assert attribute.bottom < attribute.population < attribute.top
    assert attribute.top == np.median(run.numbers("age")[run.ranking()[:20]])


def test_attributes_of_any_type_are_counted(tmp_path):
    attributes = {"seen": [True, False, True, None], "tags": [["a"], ["a"], [], None], "when": [date(2024, 1, 1)] * 4}
    with ScoreStore.open(tmp_path, {}, 4) as store:
        store.append(pa.table({"index": np.arange(4), "id": list("abcd"), "score": [4.0, 3.0, 2.0, 1.0]}))
        store.finish(pa.table(attributes))
    by_name = {item.name: item for item in breakdown(ScoredRun.load(tmp_path), tail=1, resamples=5)}
    counts = {name: {level.name: level.count for level in item.levels} for name, item in by_name.items()}
    assert counts == {
        "seen": {"True": 2, "False": 1, "(none)": 1},
        "tags": {"['a']": 2, "[]": 1, "(none)": 1},
        "when": {"2024-01-01": 4},
    }


def test_the_bootstrap_grows_no_dearer_with_the_data():
    assert limit_resamples(200, 100) == 200
    assert limit_resamples(200, 50_000) == 80
    assert limit_resamples(200, 10**7) == 30
    assert limit_resamples(5, 10**7) == 5


def test_names_are_not_counted(run, attributes):
    assert attributes["file"] == Names("file", len(run.table))
    assert "planted" not in attributes
