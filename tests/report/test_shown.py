"""What the page shows: which pictures, in which order, and the data that each figure draws."""

import base64
import io
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from markupsafe import Markup
from matplotlib.colors import to_rgba
from PIL import Image

from influence_ssl_jax.report import plots
from influence_ssl_jax.report.analysis import compare
from influence_ssl_jax.report.plots import HIGH, INK, LOW, MUTED
from influence_ssl_jax.report.render import render
from influence_ssl_jax.report.scored_run import Extent, ScoredFile, ScoredRun
from tests.scored import SOURCE

TILE = re.compile(r'<li class="tile" title="[^"]* · index (\d+)">((?:(?!<li class="tile").)*)', re.DOTALL)
PICTURE = re.compile(r'<img src="data:image/png;base64,([^"]*)"')


@pytest.fixture(scope="module")
def run(scored_folder):
    return ScoredRun.load(scored_folder)


@pytest.fixture(scope="module")
def scored(scored_folder):
    """Columns of the finished table where there is a score, read without the report's own code."""
    table = pq.read_table(scored_folder / "scores.parquet")
    score = table["score"].to_numpy()
    return {name: table[name].to_numpy()[np.isfinite(score)] for name in table.column_names}


@pytest.fixture
def drawn(monkeypatch):
    """The axes of every figure, by name, in place of its picture."""
    axes = {}

    def keep(figure, name, _):
        axes[name] = figure.axes[0]
        return Markup("")

    monkeypatch.setattr(plots, "to_svg", keep)
    return axes


def points(line):
    """The coordinates of a line or of a cloud, [points, 2]."""
    return np.column_stack([np.asarray(values, float) for values in line.get_data()])


def test_the_galleries_hold_the_highest_and_the_lowest_scores_in_order_each_under_its_own_picture(
    scored_folder, tmp_path
):
    page = render(scored_folder, tmp_path / "page.html", extent=Extent(images=6, resamples=2)).read_text()
    table = pq.read_table(scored_folder / "scores.parquet").to_pydict()
    ranked = sorted((-s, i) for s, i in zip(table["score"], table["index"], strict=True) if s is not None and s == s)
    order = [index for _, index in ranked]
    _, high, low = re.split(r'<p class="end (?:high|low)">', page)
    source, names = SOURCE.open(), dict(zip(table["index"], table["id"], strict=True))
    for part, want in ((high, order[:6]), (low, order[::-1][:6])):
        tiles = TILE.findall(part)
        assert [int(index) for index, _ in tiles] == want
        for index, tile in tiles:
            example, picture = source.read(int(index)), PICTURE.search(tile)
            if example.id != names[int(index)]:  # scored under another name
                assert picture is None
                continue
            assert picture is not None
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture[1]))))
            np.testing.assert_array_equal(pixels, example.image)


def test_bars_of_a_score_reach_two_standard_errors_either_way(run, scored, drawn):
    """The run has errors of a fifth of the score."""
    plots.uncertainty(run)
    axes = drawn["uncertainty"]
    (line,) = axes.lines
    place, values = points(line).T
    assert (place[0], place[-1]) == (0, 100)
    assert (np.diff(place) > 0).all()
    assert (np.diff(values) <= 0).all()
    assert values[0] == scored["score"].max()
    assert values[-1] == scored["score"].min()
    assert set(values) <= set(scored["score"])
    bars = np.array(axes.collections[0].get_segments())
    np.testing.assert_allclose(bars[:, :, 0], np.column_stack([place, place]))
    np.testing.assert_allclose(bars[:, 1, 1], 1.4 * values, rtol=1e-12)
    np.testing.assert_allclose(bars[:, 0, 1], np.maximum(0.6 * values, values.min() / 3), rtol=1e-12)
    assert "rank" in axes.get_xlabel()
    assert "2 standard errors" in axes.get_ylabel()


def test_a_baseline_lies_along_the_page_and_the_score_up_it(run, scored, drawn):
    for comparison in compare(run, resamples=2):
        plots.scatter(run, comparison)
        axes = drawn[f"against-{comparison.column}"]
        (cloud,) = axes.lines
        want = np.column_stack([scored[comparison.column], scored["score"]])
        np.testing.assert_array_equal(points(cloud), want[np.isfinite(want).all(axis=1)])
        assert (axes.get_xlabel(), axes.get_ylabel()) == (comparison.name, "influence score")


def test_many_examples_are_counted_where_they_lie(run, scored, drawn, monkeypatch):
    monkeypatch.setattr(plots, "MANY", 10)
    loss = next(each for each in compare(run, resamples=2) if each.column == "pixel_variance")
    plots.scatter(run, loss)
    axes = drawn["against-pixel_variance"]
    assert not axes.lines
    (low, high), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for values, begin, end in ((scored["pixel_variance"], low, high), (scored["score"], bottom, top)):
        assert begin <= values.min() < values.max() <= end
        assert end - begin < 2 * (values.max() - values.min()) or axes.get_yscale() == "log"
    assert top < high


def test_the_tails_of_the_histogram_have_their_own_colours(run, scored, drawn):
    plots.distribution(run, 10)
    bars = {name: [] for name in (MUTED, HIGH, LOW)}
    for bar in drawn["distribution"].patches:
        colour = next(name for name in bars if to_rgba(name)[:3] == bar.get_facecolor()[:3])
        bars[colour] += [(bar.get_x(), bar.get_height())]
    counts = {name: sum(height for _, height in bars_of_name) for name, bars_of_name in bars.items()}
    assert counts == {MUTED: len(scored["score"]), HIGH: 10, LOW: 10}
    ordered = np.sort(scored["score"])
    assert min(x for x, height in bars[HIGH] if height) > max(x for x, height in bars[LOW] if height)
    assert max(x for x, height in bars[LOW] if height) <= ordered[9]


def test_each_kind_has_its_own_scores_and_its_median(run, scored, drawn):
    plots.by_kind(run)
    axes = drawn["by-kind"]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert sorted(names) == ["blank", "exact duplicate", "near duplicate", "noise", "not planted"]
    clouds = [line for line in axes.lines if line.get_marker() == "o"]
    bars = [line for line in axes.lines if line.get_marker() != "o"]
    for place, name in enumerate(names):
        kind = {"not planted": "none"}.get(name, name.replace(" ", "_"))
        want = np.sort(scored["score"][scored["planted"] == kind])
        cloud = points(clouds[place])
        np.testing.assert_array_equal(np.sort(cloud[:, 0]), want)
        assert (np.abs(cloud[:, 1] - place) < 0.5).all()
        assert bars[place].get_color() == INK
        np.testing.assert_allclose(points(bars[place])[:, 0], np.median(want))


def test_kinds_are_counted_at_both_ends(scored_folder, scored, tmp_path):
    page = render(scored_folder, tmp_path / "page.html", extent=Extent(images=6, tail=0.1, resamples=2)).read_text()
    part = re.search(r"At both ends of the list</h3>.*?</table>", page, re.DOTALL)
    assert part is not None
    cells = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in part[0].split("<tr>")[2:]]
    assert [row[0] for row in cells] == ["blank", "exact duplicate", "near duplicate", "noise"]
    kinds = scored["planted"][np.argsort(-scored["score"], kind="stable")]
    tail = round(0.1 * len(kinds))
    for name, total, *rest in cells:
        of_kind = kinds == name.replace(" ", "_")
        want = [of_kind.sum()]
        for size in (6, tail):
            want += [of_kind[:size].sum(), of_kind[-size:].sum(), round(size * of_kind.mean(), 1)]
        assert [float(value) for value in (total, *rest)] == want


@pytest.fixture(scope="module")
def bounded(scored_folder):
    """The run as one of which fewer rows than it has are in memory."""
    return ScoredRun.load_bounded(scored_folder, images=7, most=40)


def test_of_a_large_run_a_random_sample_is_in_memory_with_both_ends_of_all(run, bounded):
    assert bounded.sampled
    assert not ScoredRun.load_bounded(run.folder, images=7).sampled
    assert bounded.table.num_rows == 40
    for name in ("id", "score", "age"):
        want = run.table[name].take(bounded.table["index"])
        np.testing.assert_array_equal(bounded.table[name].to_numpy(), want.to_numpy())
    assert (np.diff(bounded.table["index"].to_numpy()) > 0).all()
    assert len({int(row) // 30 for row in bounded.table["index"].to_numpy()}) > 3  # from all over the run
    for end, want in zip(bounded.ends(7), run.ends(7), strict=True):
        assert end["id"].to_pylist() == want["id"].to_pylist()
    assert str(bounded.remarks()) == str(run.remarks())
    assert run.remarks().total == 3


def test_the_page_of_a_large_run_says_what_is_of_a_sample(scored_folder, tmp_path, monkeypatch):
    load = ScoredRun.load_bounded
    monkeypatch.setattr(ScoredRun, "load_bounded", lambda folder, images: load(folder, images, most=60))
    page = render(scored_folder, tmp_path / "page.html", extent=Extent(images=6, resamples=2)).read_text()
    assert "random sample of 60 images" in page
    assert page.count("in highest") == 1  # the tail of the sample alone, and not the images that are shown
    whole = render(scored_folder, tmp_path / "whole.html", extent=Extent(images=6, resamples=2))
    assert TILE.findall(page) == TILE.findall(whole.read_text())


def test_rows_of_a_file_are_taken_in_the_order_asked_for(run):
    file = ScoredFile.open(run.folder)
    rows = np.array([9, 2, 2, 100])
    assert file.read_rows(rows, ["id", "score"]).to_pylist() == run.table.select(["id", "score"]).take(rows).to_pylist()
