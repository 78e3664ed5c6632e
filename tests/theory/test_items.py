"""Every item of the list, and that the list is fit to be shown."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax.theory import linear, oracle, page
from influence_ssl_jax.theory.families import FAMILIES, ITEMS
from influence_ssl_jax.theory.instances import Draw, pool
from influence_ssl_jax.theory.item import AtLeast, AtMost, Check, CounterExample, Item


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
        written = page.prose(text)
        assert written.count("<svg") == len(re.findall(r"\$[^$]+\$", text))
        assert "$" not in re.sub(r'aria-label="[^"]*"', "", written)


def test_the_document_is_what_the_list_says():
    written = (Path(__file__).parents[2] / "docs" / "theory.md").read_text()
    assert written == page.markdown(), "write it again: influence-ssl theory --markdown docs/theory.md"
    for item in ITEMS:
        assert f"| [{item.title}](#{item.name}) | {item.origin} | {item.status} |" in written
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


@pytest.mark.parametrize(("stated", "passed"), [(4.0, True), (8.0, False), (4.5, False), (6.0, False), (np.nan, False)])
def test_a_counter_example_passes_on_its_own_side_alone(stated, passed):
    """Against a bound of 8 an actual 6 refutes nothing."""
    example = CounterExample("", lambda: jnp.asarray(stated), lambda: jnp.asarray(6.0), 2.0)
    (outcome,) = Item("one", "", "", "", "false as stated", (), counter_example=example).run(jax.random.key(0), 3)
    assert outcome.passed is passed


def test_fractions_and_medians_take_draws_enough_whatever_is_asked_for():
    """A share of 5 % is seen by 20 draws in two of three runs; by 200 it is seen in all but one of 30,000."""

    def rare(draw: Draw):
        return (draw.log_uniform(1e-2, 1.0) > 1e-2**0.05).astype(float)

    seen = Check("share", rare, AtLeast(0.002, "mean"))
    every = Check("worst", rare, AtMost(1.0))
    once = Check("fixed", rare, AtMost(1.0), most=1)
    for seed in range(5):
        outcomes = Item("one", "", "", "", "true", (seen, every, once)).run(jax.random.key(seed), 20)
        assert [outcome.draws for outcome in outcomes] == [200, 20, 1]
        assert outcomes[0].passed


def test_counter_examples_evaluate_the_statement_that_they_refute(monkeypatch):
    """Were the score to grow with the distance from the mean, and the swap to be random, both would notice."""

    def actual(name):
        example = next(item.counter_example for item in ITEMS if item.name == name)
        return float(jax.jit(lambda: example.actual())())

    assert actual("gaussian-ranking") == 0
    assert abs(actual("assumption-1")) < 1e-12
    with monkeypatch.context() as patch:
        patch.setattr(oracle, "alignment", lambda weight, x, _: jnp.sum((weight @ (x - 3.25)) ** 2))
        assert actual("gaussian-ranking") == 1
    expectation = oracle.normal_expectation
    monkeypatch.setattr(
        oracle, "normal_expectation", lambda function, size: expectation(function, size) + jnp.eye(size)
    )
    assert actual("assumption-1") > 0.1


def test_what_is_derived_here_is_not_counted_as_the_papers():
    derived = {item.name for item in ITEMS if item.origin == "derived here"}
    assert {"leave-one-out", "gaussian-ranking", "gaussian-estimators", "duplicates", "leverage"} <= derived
    assert not {"claim-4", "theorem-1", "proposition-3", "cosine-limits"} & derived
    said = page.markdown()
    for origin, count in (("of the paper", len(ITEMS) - len(derived)), ("derived here", len(derived))):
        assert f"Statements {origin}, {count}: " in said


def test_an_instance_never_reads_a_number_twice():
    draw = Draw(jax.tree.map(lambda rows: rows[0], pool(jax.random.key(0), 1)))
    numbers = np.concatenate([draw.normal(3, 4).ravel(), draw.normal(5)])
    assert len(set(numbers.tolist())) == 17
    assert draw.log_uniform(1e-3, 1e3) != draw.log_uniform(1e-3, 1e3)
    with pytest.raises(ValueError, match="smaller shapes"):
        draw.normal(1000)
