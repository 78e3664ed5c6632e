"""Galerkin intervals of every example hold the dense score, and close where the subspace is the whole space."""

import jax
import numpy as np
import pyarrow as pa
import pytest

from influence_ssl_jax import trees
from influence_ssl_jax.data import Arrays, ToInput
from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.evaluation.certificate import galerkin
from influence_ssl_jax.ihvp import Arnoldi, Damping, Exact
from influence_ssl_jax.losses import CosineDistance
from influence_ssl_jax.scoring import memory
from influence_ssl_jax.scoring.scores import Scoring
from influence_ssl_jax.scoring.stream import self_influence
from tests import problems

TRANSFORM = ToInput(problems.SIZE, problems.SIZE, 3)


def test_intervals_hold_the_score_of_every_example(monkeypatch):
    problem = problems.problem(CosineDistance(), module=problems.Small(), channels=3)
    source = Arrays(
        np.random.default_rng(1).integers(0, 256, (7, problems.SIZE, problems.SIZE, 3), dtype=np.uint8)
    ).open()
    scoring = Scoring(Damping(absolute=0.05), draws=2)
    monkeypatch.setitem(memory.LARGEST, "cpu", 4)
    want = self_influence(problem, Exact(), source, TRANSFORM, scoring)["score"].to_numpy()
    for rank in (6, trees.size(problem.params)):
        state = jax.jit(Arnoldi(rank, block=2, probes=2).fit)(problem, jax.random.key(0))
        damping = jax.numpy.asarray(0.05)
        found = pa.concat_tables(galerkin(problem, state, source, TRANSFORM, damping, scoring, problem.objective))
        assert found["index"].to_pylist() == list(range(7))
        lower, upper = found["galerkin_lo"].to_numpy(), found["galerkin_hi"].to_numpy()
        assert (lower <= want).all()
        assert (want <= upper).all()
    np.testing.assert_allclose(lower, upper, rtol=1e-5)
    refused = galerkin(
        problem, state, source, TRANSFORM, damping, Scoring(draws=2, estimand="u_statistic"), problem.objective
    )
    with pytest.raises(InfluenceError, match="mean_of_scores"):
        next(refused)
