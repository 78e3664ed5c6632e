"""The committed tables hold what their records say, and nothing more than is needed."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.score_cifar10 import HERE, Config, condense, correlations, plot
from influence_ssl_jax.data import Digits
from influence_ssl_jax.report.scored_run import ScoredRun
from influence_ssl_jax.store import COLUMNS, MEASUREMENTS

TABLES = sorted(path.stem for path in (HERE / "results").glob("scores_*_w16_cifar10.parquet"))


def test_there_are_tables():
    assert "scores_simclr_w16_cifar10" in TABLES


@pytest.mark.parametrize("name", TABLES)
def test_a_committed_table_is_that_of_its_record(name):
    file = HERE / "results" / f"{name}.parquet"
    table, record = pq.read_table(file), json.loads(file.with_suffix(".json").read_text())
    assert table.column_names == ["index", "id", *MEASUREMENTS, "reason", "label"]  # of version 0.1
    assert file.stat().st_size < 450_000
    assert table["index"].to_pylist() == list(range(record["counts"]["size"]))
    assert np.isfinite(table["score"].to_numpy()).sum() == record["counts"]["scored"]
    assert (table["score"].to_numpy() > 0).all()
    assert record["spearman with the score"] == correlations(table)
    assert record["command"].startswith("python experiments/score_cifar10.py --method ")
    assert "/" not in record["command"].removeprefix("python experiments/")


def test_a_table_is_condensed_and_drawn(tmp_path):
    opened, rng = Digits(8, digits=16).open(), np.random.default_rng(0)
    rows = len(opened)
    numbers = {name: rng.uniform(1, 2, rows) for name in COLUMNS if name not in ("index", "id", "reason")}
    table = pa.table({"index": np.arange(rows), "id": [str(k) for k in range(rows)], **numbers, "reason": [""] * rows})
    table = table.append_column("label", opened.attributes()["label"])
    run = ScoredRun(tmp_path, table, {"counts": {"size": rows}, "wall_seconds": 3, "identity": "/somewhere"})
    condense(run, tmp_path / "small", "--method simclr")
    kept, record = pq.read_table(tmp_path / "small.parquet"), json.loads((tmp_path / "small.json").read_text())
    assert kept["score"].type == pa.float32()
    np.testing.assert_allclose(kept["score"].to_numpy(), numbers["score"], rtol=1e-7)
    assert record.keys() == {"command", "counts", "spearman with the score", "median relative standard error"}
    sheets = plot(run, Config.tiny(tmp_path, tmp_path).source(), label=1, shown=3)
    assert list(sheets) == ["highest", "lowest", "lowest of class 1"]
    best = opened.read(int(np.argmax(numbers["score"]))).image
    np.testing.assert_array_equal(sheets["highest"].axes[0].images[0].get_array(), best)
