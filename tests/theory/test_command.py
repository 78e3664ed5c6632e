"""The command on a few cheap items: table, JSON, page, errors."""

import dataclasses
import io
import json
import re

import pytest
from rich.console import Console

from influence_ssl_jax.cli import main
from influence_ssl_jax.cli.theory import Theory, theory
from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.theory import families, page
from influence_ssl_jax.theory.families import ITEMS
from influence_ssl_jax.theory.item import AtMost


def printed(command):
    out = Console(file=io.StringIO(), width=120)
    theory(command, out)
    return out.file.getvalue()


@pytest.mark.slow
def test_table_json_and_page_tell_the_same(tmp_path):
    files = tmp_path / "theory.json", tmp_path / "theory.html", tmp_path / "theory.md"
    text = printed(
        Theory(item=("reliability", "lemma-3"), draws=5, seed=3, json=files[0], html=files[1], markdown=files[2])
    )
    assert files[2].read_text() == page.markdown()
    assert "lemma-3  true" in text
    assert "2 items, 2 checks, 5 draws each, seed 3" in text
    record = json.loads(files[0].read_text())
    assert [item["item"] for item in record["items"]] == ["lemma-3", "reliability"]
    assert all(item["passed"] and item["checks"][0]["draws"] == 5 for item in record["items"])
    written = files[1].read_text()
    assert "all passed" in written
    assert written.count("<article") == 2
    assert written.count("<figure>") == 2
    assert not re.findall(
        r"<script|<link|src=|https?://(?!www\.w3\.org|purl\.org|creativecommons\.org|matplotlib\.org)", written
    )


def test_an_item_sees_the_same_instances_alone_and_in_company():
    wanted = families.select_items(["claim-1"])
    alone = next(iter(families.run_checks(wanted, 3, 0)))
    again = list(families.run_checks(families.select_items(["lemma-3", "claim-1"]), 3, 0))[1]
    assert alone.outcomes == again.outcomes
    assert alone.passed


def test_a_failed_check_is_an_exit_status_after_everything_is_written(tmp_path, monkeypatch):
    item = next(item for item in ITEMS if item.name == "lemma-3")
    strict = dataclasses.replace(item, checks=(dataclasses.replace(item.checks[0], limit=AtMost(-1.0)),))
    monkeypatch.setattr(families, "ITEMS", (strict,))
    out, err = (Console(file=io.StringIO(), width=120) for _ in range(2))
    status = main.run(["theory", "--draws", "3", "--json", str(tmp_path / "theory.json")], out, err)
    assert status != 0
    assert "1 of 1 checks failed: lemma-3" in err.file.getvalue()
    assert "FAIL" in out.file.getvalue()
    assert json.loads((tmp_path / "theory.json").read_text())["items"][0]["passed"] is False


def test_errors_say_what_there_is():
    with pytest.raises(InfluenceError, match=r"no item nonsense in the theory; there are .*theorem-1"):
        printed(Theory(item=("nonsense",)))
    with pytest.raises(InfluenceError, match="at least one draw"):
        Theory(draws=0)
