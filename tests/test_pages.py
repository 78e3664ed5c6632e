"""The pages that the package writes, in a browser: nothing to complain of, on a wide window and on a telephone's."""

import dataclasses

import pytest

from influence_ssl_jax.report.render import render
from influence_ssl_jax.theory import page as theory_page
from influence_ssl_jax.theory.families import FAMILIES, ITEMS, Verdict
from influence_ssl_jax.theory.item import Outcome
from tests import chromium
from tests.scored import write_run

pytestmark = pytest.mark.skipif(chromium.PROGRAM is None, reason="no Chromium is installed")
WIDTHS = (1280, 390)
CLEAN = "<!doctype html><meta charset=utf-8><title>t</title><p>text<details><summary>s</summary><p>more</details>"
FAULTS = {
    "console": "<script>console.error('planted')</script>",
    "exception": "<script>undefined_function()</script>",
    "request": "<link rel=stylesheet href='https://example.org/style.css'>",
    "image not loaded": "<img src='absent.png'>",
    "wider than the window": "<div style='width: 2000px'>wide</div>",
}
"""What a page must not have, by how it is named."""


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    with chromium.browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return render(write_run(tmp_path_factory.mktemp("scored") / "scores"))


@pytest.fixture(scope="module")
def theory(tmp_path_factory):
    """A page of the longest statements, with one plot and outcomes that are not computed: only its looks are tested."""
    longest = sorted(ITEMS, key=lambda item: -len(item.statement + item.correction))[:8]
    path = tmp_path_factory.mktemp("theory") / "theory.html"
    short = [dataclasses.replace(each, plots=()) for each in FAMILIES]
    short[0] = FAMILIES[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theory_page, "FAMILIES", short)
        path.write_text(theory_page.page([verdict(item) for item in longest], 1, 0))
    return path


def verdict(item):
    """An item all of whose checks have passed with the value that they are compared with."""
    checks = item.all_checks()
    return Verdict(item, tuple(Outcome(each.name, each.limit.value, each.limit, 1, True) for each in checks), 0.0)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", ["report", "theory"])
def test_a_page_has_nothing_to_complain_of(opened, request, page, width):
    assert chromium.look(opened, request.getfixturevalue(page), width) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(opened, tmp_path, fault):
    path = tmp_path / "page.html"
    path.write_text(CLEAN + FAULTS[fault])
    noticed = chromium.look(opened, path, WIDTHS[0])
    assert any(each.startswith(fault) for each in noticed), noticed


def test_a_clean_page_is_clean(opened, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(CLEAN)
    assert chromium.look(opened, path, WIDTHS[1]) == []


@pytest.mark.parametrize("planted", ["<img src='data:image/png;base64,AAAA'>", "<pre style='width: 500px'>wide</pre>"])
def test_a_fault_of_the_report_is_noticed(opened, report, tmp_path, planted):
    """A picture that is damaged, and a line that only a telephone's window is too narrow for."""
    path = tmp_path / "report.html"
    path.write_text(report.read_text().replace("</header>", f"{planted}</header>", 1))
    assert len(chromium.look(opened, path, WIDTHS[1])) == 1
