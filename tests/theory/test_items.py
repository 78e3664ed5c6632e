"""Every item of the list, and that the list is fit to be shown."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax.theory import document, linear, typeset
from influence_ssl_jax.theory.draw import Draw, pool
from influence_ssl_jax.theory.item import AtLeast, AtMost, Check, CounterExample, Item
from influence_ssl_jax.theory.items import FAMILIES, ITEMS


@pytest.mark.slow
@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.name)
def test_every_check_bears_the_verdict_out(item):
    failed = [(o.name, o.statistic) for o in item.run(jax.random.key(1), 25) if not o.passed]
    assert not failed


def test_names_are_unique_and_every_statement_is_checked():
    names = [item.name for item in ITEMS]
    assert len(set(names)) == len(names)
    assert all(item.checks for item in ITEMS)
    assert all(family.plots for family in FAMILIES)


def test_a_false_statement_has_a_counter_example_and_a_correction():
    for item in ITEMS:
        if item.status == "false as stated":
            assert item.counter_example is not None, item.name
            assert item.correction, item.name
        if item.status == "true under conditions":
            assert item.conditions, item.name
        if item.status == "true":
            assert item.counter_example is None, item.name


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.name)
def test_every_formula_is_typeset(item):
    example = "" if item.counter_example is None else item.counter_example.instance
    for text in (item.statement, item.conditions, item.correction, example):
        written = typeset.prose(text)
        assert written.count("<svg") == len(re.findall(r"\$[^$]+\$", text))
        assert "$" not in re.sub(r'aria-label="[^"]*"', "", written)


def test_the_document_is_what_the_list_says():
    written = (Path(__file__).parents[2] / "docs" / "theory.md").read_text()
    assert written == document.markdown(), "write it again: influence-ssl theory --markdown docs/theory.md"
    for item in ITEMS:
        assert f"| [{item.title}](#{item.name}) | {item.status} |" in written
        assert f"> {item.statement}" in written


def test_limits_refuse_nan_and_take_the_worst():
    measured = np.asarray([1.0, 2.0, 4.0])
    assert AtMost(4.0).statistic_of(measured) == 4
    assert AtLeast(1.0, "worst").statistic_of(measured) == 1
    assert AtMost(2.0, "median").statistic_of(measured) == 2
    assert AtLeast(2.0, "mean").statistic_of(measured) == pytest.approx(7 / 3)
    for limit in (AtMost(4.0), AtLeast(1.0, "worst")):
        assert not limit.accepts(limit.statistic_of(np.asarray([1.0, np.nan])))


def test_a_wrong_closed_form_fails():
    def error(draw: Draw):
        weight, delta = draw.normal(2, 3), draw.normal(3)
        return jnp.abs(linear.influence(weight, delta, 0.5, 0.1) - 2 * linear.loss(weight, delta, 0.5))

    def gap():
        return jnp.asarray(1.0)

    item = Item(
        "wrong", "", "", "", "true", (Check("e", error, AtMost(1e-9)),), "", "", CounterExample("", gap, gap, 0.1)
    )
    assert [outcome.passed for outcome in item.run(jax.random.key(0), 5)] == [False, False]


def test_an_instance_never_reads_a_number_twice():
    draw = Draw(jax.tree.map(lambda rows: rows[0], pool(jax.random.key(0), 1)))
    numbers = np.concatenate([draw.normal(3, 4).ravel(), draw.normal(5)])
    assert len(set(numbers.tolist())) == 17
    assert draw.log_uniform(1e-3, 1e3) != draw.log_uniform(1e-3, 1e3)
    with pytest.raises(ValueError, match="smaller shapes"):
        draw.normal(1000)
