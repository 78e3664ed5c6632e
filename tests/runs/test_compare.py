"""A comparison through the command: a table, figures and a record; gone on with, and never of other settings."""

import functools
import json

import pytest
from rich.console import Console

from influence_ssl_jax import provenance
from influence_ssl_jax.cli import commands
from influence_ssl_jax.data import Digits, ToInput
from influence_ssl_jax.encoder import Encoder
from influence_ssl_jax.errors import DataError, StoreError
from influence_ssl_jax.evaluation import comparison
from influence_ssl_jax.evaluation.certificate import Audit
from influence_ssl_jax.evaluation.comparison import Grid, backends_to_compare
from influence_ssl_jax.losses import CosineDistance
from influence_ssl_jax.run_log import json_lines
from influence_ssl_jax.runs import compare
from influence_ssl_jax.runs.prepare import Prepared
from influence_ssl_jax.runs.settings import CompareRun
from influence_ssl_jax.scoring.scores import Scoring
from influence_ssl_jax.store import read_sealed, write_sealed
from tests import problems

SOURCE = Digits(size=6, digits=40, exact_duplicates=0.1, near_duplicates=0.0, blanks=0.0, noise=0.1)
NAMES = ("Identity", "Diagonal", "Exact")
NONE = Grid((), (), (), (), samples=2, probes=2)


@functools.cache
def the_problem():
    return problems.problem(CosineDistance(), module=problems.Linear(), channels=3)


def fast(grid):
    return [backend for backend in backends_to_compare(grid) if type(backend).__name__ in (*NAMES, "CG")]


@pytest.fixture
def command(tmp_path, monkeypatch, few_resamples):
    """The command over a small net in place of a pretrained one, and of the backends those that compile fast.

    All are compared in `tests/experiments/test_compare_ihvp.py`.
    """
    network = Encoder(
        the_problem().objective.network, the_problem().params, the_problem().frozen, ToInput(6, 6), "small"
    )
    prepared = Prepared(network, ToInput(6, 6, 3), the_problem().objective, SOURCE.open())
    monkeypatch.setattr(compare, "prepare", lambda *_: prepared)
    monkeypatch.setattr(compare, "draw_problem", lambda *_: (the_problem(), {}))
    monkeypatch.setattr(compare, "backends_to_compare", fast)

    def made(grid=NONE, dampings=(0.1, 1.0)):
        scoring, audit = Scoring(draws=1, batch_size=10), Audit(examples=20)
        return CompareRun(
            tmp_path, tmp_path / "out", SOURCE, grid=grid, dampings=dampings, scoring=scoring, audit=audit
        )

    return made


def run(settings):
    said = Console(width=300)
    with said.capture() as text:
        commands.compare(settings, said)
    return text.get()


def test_the_record_the_table_and_the_figures(command, monkeypatch):
    text = run(command())
    folder = command().out
    record = json.loads((folder / "comparison.json").read_text())
    baselines, rows = record["rows"][:6], record["rows"][6:]
    assert record["versions"] == provenance.versions()
    assert record["device"]["platform"] == "cpu"
    assert record["configuration"]["scoring"]["seed"] == 0
    assert [row["name"] for row in baselines[::2]] == ["alignment loss", "gradient norm", "pixel variance"]
    assert [row["name"] for row in rows] == [n for n in NAMES for _ in "12"]
    assert [row["damping"] for row in record["rows"]] == [0.1, 1.0] * 6
    for row in rows:
        assert len(row["scores"]) == 20
        assert row["deviation"]["examples"] == 20
        assert row["deviation"]["spearman"]["value"] > 0.5
        assert row["fit_seconds"] > 0
    assert (folder / "pareto.png").stat().st_size > 5000
    assert (folder / "damping.png").stat().st_size > 5000
    assert "λ = 0.1 × mean eigenvalue" in text
    assert "Diagonal" in text

    # a backend more, and one whose part was lost: only these are run
    (next((folder / "parts").glob("Diagonal*"))).unlink()
    fitted, original = [], comparison._FittedBackend.of.__func__
    monkeypatch.setattr(
        comparison._FittedBackend,
        "of",
        classmethod(lambda cls, b, *given: (fitted.append(b), original(cls, b, *given))[1]),
    )
    text = run(command(Grid((), (), (3,), (), samples=2, probes=2)))
    assert [type(backend).__name__ for backend in fitted] == ["Diagonal", "CG"]
    again = json.loads((folder / "comparison.json").read_text())["rows"][6:]
    assert again[:2] == rows[:2]
    assert again[2]["scores"] == rows[2]["scores"]
    assert len(again) == 8
    assert "unconverged: relative residual" in text

    lines = json_lines(folder / "log.jsonl")
    assert [line["todo"] for line in lines if line["event"] == "start"] == [3, 2]
    assert [line["backend"] for line in lines if line["event"] == "part"][3:] == ["Diagonal", "CG 3"]
    assert lines[-1]["resumed"] == 2

    with pytest.raises(StoreError, match=r"configuration.dampings"):
        run(command(dampings=(0.1,)))

    here = provenance.decisive()
    other = {**here, "device": {**here["device"], "platform": "tpu"}}
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "decisive", lambda: other)
        with pytest.raises(StoreError, match=r"device.platform: cpu → tpu"):
            run(command())

    # a bit in the exact scores or in a part is noticed: they are computed again, to what they were
    before = json.loads((folder / "comparison.json").read_text())["rows"]
    parts = folder / "parts"
    for file in (folder / "truth.json", parts / "baselines.json", next(parts.glob("Diagonal*"))):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    run(command(Grid((), (), (3,), (), samples=2, probes=2)))
    after = json.loads((folder / "comparison.json").read_text())["rows"]
    assert [row["scores"] for row in after[6:]] == [row["scores"] for row in before[6:]]

    # and so are those of another comparison, however whole
    write_sealed(folder / "truth.json", {**read_sealed(folder / "truth.json"), "fingerprint": "of another", "rows": []})
    (folder / "identity.json").write_text("")
    with pytest.raises(StoreError, match="not those of this command"):
        run(command(dampings=(0.1,)))
    run(command(Grid((), (), (3,), (), samples=2, probes=2)))
    last = json.loads((folder / "comparison.json").read_text())["rows"]
    assert [row["scores"] for row in last[6:]] == [row["scores"] for row in before[6:]]

    # images that are others since it was begun
    held = read_sealed(folder / "images.json")
    write_sealed(folder / "images.json", {**held, "digests": {**held["digests"], next(iter(held["digests"])): "00"}})
    with pytest.raises(DataError, match="1 images that the curvature or exact scores were computed from have changed"):
        run(command())
