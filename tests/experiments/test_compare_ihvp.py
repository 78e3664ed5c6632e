"""The experiment, tiny: rows and curvatures that are what they say."""

import dataclasses
import json

import pytest
from rich.console import Console

from experiments.compare_ihvp import Net


@pytest.mark.slow
def test_the_tiny_experiment_runs(tmp_path):
    config = dataclasses.replace(Net.tiny(tmp_path), kinds=("hessian",))
    config.run(Console(quiet=True))
    folder = tmp_path / "compare_net"
    record = json.loads((folder / "comparison.json").read_text())
    assert {row["name"] for row in record["rows"] if row["backend"]} == {
        "Identity",
        "Diagonal",
        "KFAC",
        "EKFAC",
        "Gram",
        "Exact",
    }
    assert all(row["reason"] == "" for row in record["rows"])
    curvatures = record["curvatures"]
    for name, row in curvatures.items():
        assert row[name] == pytest.approx(1)
        assert all(row[other] == pytest.approx(curvatures[other][name]) for other in row)
    damped_more = {name.split(",")[0] for name in curvatures if "|least eigenvalue|" in name}
    assert damped_more == {"hessian of measurement", "hessian of simclr"}
    assert (folder / "pareto.png").exists()
