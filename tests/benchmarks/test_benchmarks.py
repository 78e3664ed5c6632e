"""The benchmarks run at their smallest, and the page of results is what their figures render to."""

import importlib.util
import json
import types

import jax
import numpy as np
import pytest

from benchmarks import agreement, convolutions, cost, fidelity, gram, measure, networks, primitives, render, results
from benchmarks.aims import Aim, aims
from benchmarks.measure import interleaved, rows, spread
from benchmarks.shared import Setting, shared


def test_every_turn_is_taken_and_the_first_one_is_not_counted():
    calls = []
    a, b, own = (lambda name=name: calls.append(name) for name in ("a", "b", "own"))
    turns_taken = interleaved({"a": (a,), "b": (own, b)}, repeats=2)
    assert calls == ["a", "own", "b"] * 3
    assert {name: [len(taken) for taken in turns] for name, turns in turns_taken.items()} == {"a": [1, 1], "b": [2, 2]}
    assert spread([2.0, 3.0, 1.0]) == (2.0, 1.0, 3.0)


@pytest.fixture
def takes(monkeypatch):
    """Operations that take as long as they are told, by a clock that nothing else moves."""
    now = [0.0]
    monkeypatch.setattr(measure, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))

    def takes(*seconds):
        left = iter(seconds)

        def operation():
            now[0] += next(left)

        return operation

    return takes


def test_what_takes_long_is_repeated_less_but_once_at_least(takes):
    turns = {"long": (takes(7, 4, 5),), "longer": (takes(7, 8),), "short": (takes(7, 1, 1, 1, 1),)}
    turns_taken = interleaved(turns, repeats=4, patience=8)
    assert turns_taken == {"long": [(4,), (5,)], "longer": [(8,)], "short": [(1,)] * 4}


def test_a_first_run_that_takes_long_counts_unless_it_compiled(takes, monkeypatch):
    longest, compiled = takes(9), takes(9, 8)
    monkeypatch.setattr(measure.Compiled, "__call__", lambda _: compiled())
    turns = {"longest": (longest,), "compiled": (measure.Compiled(jax.jit(lambda x: x), ((0,),)),)}
    assert interleaved(turns, repeats=4, patience=8) == {"longest": [(9,)], "compiled": [(8,)]}


def test_networks_of_an_earlier_run_are_kept():
    def record_of(**errors):
        return {"networks": [{"network": name, "error": error} for name, error in errors.items()]}

    before = record_of(layer_norm=1, mlp=2, gone=3)
    assert networks.merged(before, record_of(mlp=4, batch_norm=5)) == record_of(mlp=4, batch_norm=5, layer_norm=1)
    assert networks.merged(None, record_of(mlp=4)) == record_of(mlp=4)


def test_arithmetic_is_that_of_the_program_that_runs():
    def twice(x):
        return x @ x.T + x @ x.T, x @ jax.numpy.ones((7, 9))  # the second is not asked for

    once, x = jax.jit(lambda x: x @ x.T), np.ones((5, 7), np.float32)
    counted = measure.Compiled(jax.jit(lambda x: twice(x)[0]), ((x,),)).flops()
    assert measure.Compiled(once, ((x,),)).flops() == 2 * 5 * 7 * 5
    assert counted == 2 * 5 * 7 * 5 + 5 * 5  # and one sum


def test_a_ratio_is_to_the_gradient_right_before(takes):
    gradient = takes(9, 9, 2, 4, 5, 10)  # two that compile; then alone and before a fit, twice
    own, fit = rows({"torch": {"gradient": gradient, "fit": takes(9, 12, 40)}}, repeats=2, scale=10)
    assert own["seconds"] == (35, 20, 50)
    assert fit["seconds"] == (260, 120, 400)
    assert (own["gradients"], fit["gradients"]) == ((1, 1, 1), (3.5, 3, 4))


def test_an_operation_that_cannot_run_is_a_row_with_the_reason():
    def broken():
        raise ValueError("did not converge\nin 30 steps")

    with pytest.raises(ValueError, match="converge"):
        interleaved({"broken": (broken,)}, repeats=1)
    good, bad = rows({"torch": {"gradient": lambda: None, "fit": broken}}, repeats=1)
    assert good["gradients"] == (1.0, 1.0, 1.0)
    assert bad == {"framework": "torch", "operation": "fit", "failed": "did not converge"}


@pytest.mark.slow
def test_an_untrained_network_has_the_statistics_of_the_first_batch():
    given = shared(Setting(width=2, examples=8, batch=8, size=8))
    network, images = given.objective.network, jax.numpy.asarray(given.views[0])
    collections = {"params": given.params, **given.frozen}

    @jax.jit
    def in_training(images):
        return network.module.apply(collections, network.standardise(images), train=True, mutable=["batch_stats"])[0]

    evaluated = jax.jit(network)(given.params, given.frozen, images)
    np.testing.assert_allclose(evaluated, in_training(images), rtol=1e-3, atol=1e-4)
    assert np.linalg.norm(evaluated[0] - evaluated[1]) > 1e-2 * np.linalg.norm(evaluated[0])


@pytest.mark.slow
def test_costs_are_multiples_of_the_same_frameworks_gradient():
    record = cost.run(cost.Config.tiny())
    named = {row["operation"]: row for row in record["operations"]}
    fitted = {
        "LoGra, rank 2, fit",
        f"LoGra, rank 2, {cost.PASS}",
        "LoGra, rank 2, score",
        "squared gradient norm, score",
    }
    assert set(named) == {"gradient", cost.CAPTURE} | fitted
    assert named["gradient"]["gradients"] == (1.0, 1.0, 1.0)
    assert all(min(row["seconds"]) > 0 for row in named.values())
    assert named["gradient"]["arithmetic"] == 1


@pytest.mark.slow
def test_the_forms_of_a_product_are_the_same_product():
    config = primitives.Config.tiny()
    given = primitives.shared(config.setting)
    vector = primitives.random_vector(given.params)
    by_form = {name: jax.jit(form)(given.params, vector) for name, form in primitives.forms(given).items()}
    for kind in ("Hessian", "Gauss–Newton"):
        first, *others = [product for name, product in by_form.items() if name.startswith(kind)]
        for other in others:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), first, other)
    operations = primitives.jax_operations(given, config.blocks)
    assert operations.keys() == {*by_form, "Hessian × block of 2", "Gauss–Newton × block of 2"}


@pytest.mark.slow
def test_convolutions_are_timed_in_a_process_of_their_own():
    (row,) = convolutions.run(convolutions.Config.tiny())["operations"]
    assert row["forward"] > 0
    assert row["gradient"] > 0


def test_bounds_of_rounding_are_judged_by_float64():
    record = gram.Bounds.tiny().run()
    assert (record["rows"], record["parameters"]) == (2, 192)
    for row in record["bounds"]:
        assert row["draws"] == 8
        assert row["violations"] == 0
        assert 0 < row["relative error, largest"] <= row["relative bound, largest"]


def test_gram_is_timed():
    record = gram.Cost.tiny().run()
    assert {row["operation"] for row in record["operations"]} == {
        "gradient",
        "fit",
        "norms",
        "score",
        "score with bounds and jackknife",
    }
    assert record["rows"] == 4


def test_under_a_strong_ridge_the_score_is_what_retraining_does():
    (record,) = fidelity.run(fidelity.Config.tiny())
    rows = {row["method"]: row for row in record["rows"]}
    exact = rows["Exact, Gauss–Newton"]
    assert record["largest_gradient"] < 1e-8
    assert exact["left_out"].value > 0.99
    assert exact["predicted_over_actual"] == pytest.approx(1, abs=0.05)
    assert exact["left_out"].value > rows["null: random"]["left_out"].value


def test_the_numbers_that_peers_are_compared_with_agree_with_each_other():
    config = agreement.Config.tiny()
    given = agreement.shared(config.setting, np.float64)
    computed = agreement.ours(given, config)
    # One layer: the diagonal of C is the mean of squared gradients, whose trace is that of the factors' product.
    (name,) = computed.factors
    inputs, outputs = computed.factors[name]
    assert inputs.shape == (48, 48)
    assert outputs.shape == (4, 4)
    assert computed.squared_norms.shape == computed.scores["LogIX"].shape == (4,)
    left, right = computed.projections[name]
    assert computed.projected[name].shape == (4, left.shape[1] * right.shape[1])
    assert computed.rows == {name: 2}
    rows = {row["convention"]: row for row in agreement.differences(computed.scores)}
    assert rows["BatchNorm's parameters left out"]["ratio"] == 1  # there are none here
    assert next(row for row in rows.values() if "K-FAC" in row["convention"])["ratio"] == pytest.approx(2)


@pytest.mark.skipif(
    importlib.util.find_spec("kronfluence") is None, reason="the peers are not installed: pip install '.[bench]'"
)
def test_every_number_agrees_with_the_peers():
    config = agreement.Config(agreement.Setting(width=4, examples=4, batch=2, size=8), rank=2)
    wrong = [finding for finding in agreement.run(config)[0] if not finding.holds]
    assert not wrong


@pytest.mark.parametrize("name", render.PAGES)
def test_a_page_is_what_the_committed_figures_render_to(name):
    assert render.page(render.results(), name) == (render.DOCS / f"{name}.md").read_text()


def test_the_page_opens_with_three_sentences_and_the_aims_are_on_their_own():
    page, records = render.page(render.results()), render.results()
    assert len(render.summary(records)) == 3
    assert page.split("\n\n")[1].strip() == " ".join(render.summary(records))
    assert "| aim |" not in page
    table = render.page(records, "benchmarks-aims")
    assert table.count("\n| ") == len(aims(records)) + 1


def test_a_page_without_figures_says_what_to_run():
    page = render.page({})
    assert page.count("Not measured yet") == 7


def test_what_is_written_is_read_back(tmp_path):
    results.write("cost_w4", cost.Config.tiny(), {"operations": []}, tmp_path)
    record = results.read("cost_w4", tmp_path)
    assert record is not None
    assert record["config"]["setting"]["width"] == 4
    assert {"date", "processor", "cores", "versions"} <= set(record["made"])
    assert results.read("nothing", tmp_path) is None
    json.dumps(record)


def test_figures_of_an_accelerator_do_not_replace_those_of_a_cpu(tmp_path, monkeypatch):
    kind = {"platform": "gpu", "kind": "H100", "matmul_precision": "highest"}
    monkeypatch.setattr(results, "device", lambda: kind)
    written = results.write("cost_w4", cost.Config.tiny(), {"operations": []}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [written.name] == ["cost_w4_gpu.json"]
    record = json.loads(written.read_text())
    assert all("H100" in aim.text for aim in aims({"cost_w4_gpu": record}))
    assert "H100, float32 products at precision `highest`" in render.page({"cost_w4_gpu": record})


def test_an_aim_is_met_missed_or_not_measured():
    assert [Aim("", 1.0, value).verdict for value in (1.0, 1.01, None)] == ["met", "missed", "not measured"]
    row = {"framework": "jax", "operation": "Gauss–Newton × block of 8", "gradients": [8.0, 8, 8], "seconds": [1, 1, 1]}
    result = {"config": {"setting": {"width": 16, "batch": 64}}, "operations": [row]}
    measured = {aim.text: aim.measured for aim in aims({"primitives_w16": result})}
    assert measured["Gauss–Newton × block of 8, a vector, in gradients (width 16, batch 64)"] == 1.0
