"""The table at the end of the demo."""

import pytest
from rich.console import Console

from influence_ssl_jax.cli.demo import summarise
from influence_ssl_jax.report.analysis import recoveries
from influence_ssl_jax.report.scored_run import ScoredRun
from tests.scored import write_bare, write_run


@pytest.fixture
def told():
    return Console(width=80)


def test_every_kind_and_end_has_its_numbers_within_eighty_columns(tmp_path, told):
    folder = write_run(tmp_path)
    with told.capture() as said:
        summarise(folder, told)
    lines = said.get().splitlines()
    assert max(map(len, lines)) <= 80
    for item in recoveries(ScoredRun.load(folder)):
        end = f"{'low' if item.low else 'high'}{'*' if item.expected else ''}"
        rows = [
            line for line in lines if line.strip().startswith(f"{item.planted} {item.kind.replace('_', ' ')}, {end} ")
        ]
        assert len(rows) == 2
        assert rows[0].split()[-6:] == [f"{detector.auroc:.3f}" for detector in item.detectors] + ["0.500"]
        assert rows[1].split()[-1] == f"{item.chance:.3f}"


def test_a_run_without_planted_truth_says_what_it_can(tmp_path, told):
    with told.capture() as said:
        summarise(write_bare(tmp_path), told)
    assert said.get().startswith("4 images scored, 0 scores not finite, 0 images skipped.")
