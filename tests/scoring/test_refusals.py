"""What gives no score is refused, or named, by the whole way from an image to a table."""

import functools

import numpy as np
import pytest

from influence_ssl_jax import trees
from influence_ssl_jax.data import Arrays, ToInput
from influence_ssl_jax.errors import DataError, IndefiniteError, InfluenceError
from influence_ssl_jax.ihvp import CG, Damping, Exact, LoGra
from influence_ssl_jax.losses import CosineDistance
from influence_ssl_jax.scoring import Scorer, Scoring, self_influence
from tests import problems
from tests.curvature.dense import dense

TRANSFORM = ToInput(problems.SIZE, problems.SIZE, 3)


def linear(curvature="ggn"):
    return problems.problem(CosineDistance(), curvature, module=problems.Linear(), channels=3)


def images(count):
    return np.random.default_rng(1).integers(0, 256, (count, problems.SIZE, problems.SIZE, 3), dtype=np.uint8)


@functools.cache
def least_eigenvalue():
    """Of the Hessian, dense."""
    return float(np.linalg.eigvalsh(dense(linear("hessian")))[0])


@pytest.mark.parametrize("backend", [Exact(), CG(lanczos_steps=24, probes=4)], ids=["Exact", "CG"])
def test_an_indefinite_hessian_is_refused_with_its_eigenvalue_and_scored_beyond_it(backend):
    problem = linear("hessian")
    least = least_eigenvalue()
    assert least < 0
    with pytest.raises(IndefiniteError, match="absolute damping above") as raised:
        Scorer.fit(problem, backend, Scoring(Damping(absolute=-0.9 * least), draws=1))
    assert raised.value.smallest == pytest.approx(least, rel=1e-2)
    table = self_influence(
        problem, backend, Arrays(images(2)).open(), TRANSFORM, Scoring(Damping(absolute=-1.5 * least), draws=1)
    )
    assert np.isfinite(table["score"].to_numpy()).all()


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_images_than_a_batch_are_scored_like_those_of_a_larger_set(count):
    problem, settings = linear(), Scoring(draws=2, batch_size=4)
    whole = self_influence(problem, LoGra(rank=2), Arrays(images(6)).open(), TRANSFORM, settings)
    part = self_influence(problem, LoGra(rank=2), Arrays(images(6)[:count]).open(), TRANSFORM, settings)
    assert part.num_rows == count
    np.testing.assert_allclose(part["score"].to_numpy(), whole["score"].to_numpy()[:count], rtol=1e-12)
    # One image has no neighbour to be near to.
    assert np.isnan(part["knn_distance"].to_numpy()).all() == (count == 1)


def test_no_image_at_all_is_an_error():
    with pytest.raises(DataError, match="no example"):
        self_influence(linear(), LoGra(rank=2), Arrays(images(0)).open(), TRANSFORM, Scoring(draws=1))


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan"), float("inf")])
def test_damping_is_a_positive_number(damping):
    with pytest.raises(InfluenceError, match="positive and finite"):
        Damping(relative=damping)
    with pytest.raises(InfluenceError, match="positive and finite"):
        Damping(absolute=damping)


def test_a_network_that_is_not_finite_is_refused_when_it_is_fitted():
    problem = linear()
    broken = type(problem)(
        trees.scale(float("nan"), problem.params), problem.frozen, problem.batches, problem.objective, problem.curvature
    )
    with pytest.raises(InfluenceError, match="not finite"):
        Scorer.fit(broken, LoGra(rank=2), Scoring(draws=1))
