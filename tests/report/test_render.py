"""The page as a browser would read it: whole, self-contained, harmless, and true to the run."""

import html.parser
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_ssl_jax.errors import StoreError
from influence_ssl_jax.report.render import condense, render
from influence_ssl_jax.report.scored_run import Extent
from influence_ssl_jax.runs.audit import resolved_scores
from influence_ssl_jax.store import ScoreStore, read_sealed, write_sealed

VOID = {"meta", "img", "line", "rect", "path", "use", "br", "link"}
QUICK = Extent(images=6, tail=0.1, resamples=20)


class Page(html.parser.HTMLParser):
    """Elements, ids, addresses and text of a page; unbalanced elements fail."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.addresses, self.words = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.addresses.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def text(scored_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "deep" / "report.html"
    assert render(scored_folder, out, extent=QUICK) == out
    return out.read_text()


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_the_page_is_one_file_that_asks_no_network(page):
    assert {"script", "link", "iframe", "object"}.isdisjoint(page.tags)
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in page.addresses)
    assert "url(http" not in page.text
    assert "@import" not in page.text


def test_ids_are_unique_and_every_reference_has_its_target(page):
    assert len(page.ids) == len(set(page.ids))
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)


def test_what_others_wrote_is_text(page):
    assert '<script>alert("x")</script>' in page.text
    assert "$group$ & co" in page.text


def test_every_section_is_there(page):
    for said in (
        "Most influential",
        "Distribution.",
        "Certainty of the ranks.",
        "Alignment loss. Rank correlation",
        "kNN distance. Rank correlation",
        "blank no end fixed beforehand",
        "exact duplicate expected at the low end",
        "“file” has",
        "zero embedding",
        "influence-ssl score --out 'my scores'",
        "damping.resolved 0.025",
        "jax 1.2.3",
    ):
        assert said in page.text, said
    assert page.tags.count("img") == 11  # one of twelve was scored under another name than the image has now


def test_the_page_forbids_itself_everything_but_its_own_pictures_and_style(text):
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    assert text.index(f'content="{policy}"') < text.index("<title>")


def test_a_changed_data_set_gives_no_pictures(scored_folder, tmp_path):
    shutil.copytree(scored_folder, tmp_path / "scores")
    file = tmp_path / "scores" / "run.json"
    record = read_sealed(file)
    record["identity"]["data"] = "what it was"
    write_sealed(file, record)
    page = Page(render(tmp_path / "scores", extent=QUICK).read_text())
    assert page.tags.count("img") == 0
    assert "the data set has changed since it was scored" in page.text


def test_the_colours_are_the_pages_own(text):
    assert "var(--high)" in text
    assert re.search(r"#0\d0f0\d", text) is None
    assert "prefers-color-scheme: dark" in text


def test_the_same_run_makes_the_same_page(scored_folder, text, tmp_path):
    assert render(scored_folder, tmp_path / "again.html", extent=QUICK).read_text() == text
    assert len(text) < 1_000_000


def test_a_damping_for_each_block_is_told_as_its_range():
    damping = {"relative": 0.1, "resolved": {f"layer{k}": 1 / (k + 1) for k in range(40)}}
    assert condense({"damping": damping, "seed": 3}) == {
        "damping": {"relative": "0.1", "resolved": "40 values, 0.025 … 1"},
        "seed": 3,
    }


def test_images_that_are_gone_cost_the_pictures_alone(scored_folder, tmp_path):
    shutil.copytree(scored_folder, tmp_path / "moved")
    record = read_sealed(tmp_path / "moved" / "run.json")
    record["configuration"]["source"]["class"] = "Lost"
    write_sealed(tmp_path / "moved" / "run.json", record)
    page = Page(render(tmp_path / "moved", extent=QUICK).read_text())
    assert "img" not in page.tags
    assert "The images cannot be shown: Cannot restore 'Lost'" in page.text


def test_images_may_be_handed_over(bare_folder):
    shapes = [(30, 200, 3), (8, 8), (5, 7, 1), (300, 90, 4)]
    page = Page(render(bare_folder, images=lambda index: np.zeros(shapes[index], np.uint8)).read_text())
    assert page.tags.count("img") == 4


def test_a_run_with_nothing_but_scores_has_a_page(bare_folder):
    page = Page(render(bare_folder).read_text())
    assert "images scored of 4" in page.text
    assert "Recovery" not in page.text
    assert "There are no standard errors" in page.text


def test_scores_that_are_all_equal_or_all_missing_have_a_page(tmp_path):
    for name, values in (("equal", [2.0] * 4), ("missing", [np.nan] * 4), ("one", [1.0])):
        columns = {"index": np.arange(len(values)), "id": ["x"] * len(values), "score": values}
        with ScoreStore.open(tmp_path / name, {}, len(values)) as store:
            store.append(pa.table({**columns, "score_se": values, "alignment_loss": values}))
            store.finish(pa.table({"label": [0] * len(values), "planted": ["blank"] * len(values)}))
        page = Page(render(tmp_path / name, extent=QUICK).read_text())
        assert ("No image has a finite score." in page.text) == (name == "missing")


@pytest.mark.parametrize(
    ("left_out", "said"), [(False, "lowers their scores"), (True, "with the curvature of the other")]
)
def test_images_of_the_curvature_set_are_told(tmp_path, left_out, said):
    with ScoreStore.open(tmp_path, {}, 4) as store:
        store.append(pa.table({"index": np.arange(4), "id": list("abcd"), "score": [1.0, 2.0, 3.0, 4.0]}))
        searched = {"images": 4, "reference": 4 - left_out, "neighbours": 1}
        facts = {"configuration": {"scoring": {"leave_own_out": left_out}}, "nearest_neighbours": searched}
        store.finish(None, lambda index: {"in_curvature_set": index % 2 == 0, "knn_distance": index / 2}, facts)
    page = render(tmp_path).read_text()
    assert ("kNN distances are distances to the nearest of 3 random images, not of all 4" in page) == left_out
    assert "2 of the scored images are in the curvature set" in page
    assert said in page
    assert "Their median score is 2.00; that of the other images is 3.00." in page
    assert page.count('title="in the curvature set"') == 2
    known = [1.0, 2.0, 3.0, 4.0] if not left_out else [np.nan, 2.0, np.nan, 4.0]  # what an audit can learn from
    np.testing.assert_array_equal(resolved_scores(pq.read_table(tmp_path / "scores.parquet"), facts), known)


@pytest.mark.parametrize("by_halves", [True, False])
def test_what_the_choice_of_the_curvature_set_leaves_open_is_told(tmp_path, by_halves):
    facts = {
        "curvature_set": {
            "halves": {"spearman": 0.912, "highest 1 %": 0.25},
            "half and whole": {"spearman": 0.954, "highest 1 %": 0.5},
            "median relative standard error": 0.031,
            "images": 4,
        }
    }
    with ScoreStore.open(tmp_path, {}, 4) as store:
        store.append(pa.table({"index": np.arange(4), "id": list("abcd"), "score": [1.0, 2.0, 3.0, 4.0]}))
        store.finish(None, lambda index: {"in_curvature_set": index < 0}, facts if by_halves else {})
    page = render(tmp_path).read_text().replace("\u202f", " ")
    said = (
        "rank 4 images with a correlation (Spearman) of 0.912, and agree on 25 % of the highest 1 %",
        "these are 0.954 and 50 %",
        "a standard error of 3.1 % of its size",
    )
    assert [each in page for each in said] == [by_halves] * 3


def test_an_unfinished_or_damaged_run_is_refused(tmp_path, bare_folder):
    with pytest.raises(StoreError, match=r"has no scores.parquet: .* or the run is not finished"):
        render(tmp_path / "nowhere")
    scores = bare_folder / "scores.parquet"
    scores.write_bytes(scores.read_bytes()[:-9])
    with pytest.raises(StoreError, match="is damaged"):
        render(bare_folder)


@pytest.mark.parametrize("name", ["run.json", "audit.json"])
def test_a_whole_file_of_another_kind_is_refused(bare_folder, name):
    write_sealed(bare_folder / name, {"fingerprint": "of a fit", "files": {}})
    (bare_folder / "identity.json").unlink(missing_ok=True)
    with pytest.raises(StoreError, match=f"{name} is not a record of this kind: it lacks entries"):
        render(bare_folder)


def test_table_and_record_of_another_run_are_refused(tmp_path, bare_folder):
    table = pa.table({"index": np.arange(4), "id": list("abcd"), "score": [4.0, 3.0, 2.0, 1.0]})
    with ScoreStore.open(tmp_path / "other", {"draws": 2}, 4) as store:
        store.append(table)
        store.finish()
    for name in ("scores.parquet", "run.json"):
        shutil.copy(tmp_path / "other" / name, bare_folder / name)
    with pytest.raises(
        StoreError, match=r"run.json is the record of another run than the one that identity.json names"
    ):
        render(bare_folder)


@pytest.mark.parametrize("wrong", [{"images": 0}, {"tail": 0.0}, {"tail": 0.6}, {"resamples": 0}])
def test_an_extent_that_shows_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        Extent(**wrong)
