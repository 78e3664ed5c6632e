"""Streamed scores against the dense formula, one example at a time; what must not change them does not."""

import dataclasses
import functools
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from influence_ssl_jax import randomness, trees
from influence_ssl_jax.augment.crop import HorizontalFlip
from influence_ssl_jax.augment.transform import AgainstClean, Views
from influence_ssl_jax.data import Arrays, ToInput
from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.ihvp import Damping, Exact, Gram, LoGra
from influence_ssl_jax.losses import MEASUREMENTS, CosineDistance, SimCLR
from influence_ssl_jax.losses.loss import Embeddings
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.runs.score import own_share
from influence_ssl_jax.scoring.scores import Scorer, Scoring
from influence_ssl_jax.scoring.stream import UNRESOLVED, place_in_slots, self_influence, slots_of, stream
from influence_ssl_jax.store import COLUMNS
from influence_ssl_jax.types import Batch
from tests import problems

TRANSFORM = ToInput(problems.SIZE, problems.SIZE, 3)
SETTINGS = Scoring(Damping(0.5), draws=2, batch_size=3, seed=5)


def images(n=7):
    return np.random.default_rng(1).integers(0, 256, (n, problems.SIZE, problems.SIZE, 3), dtype=np.uint8)


def source(pixels, **more):
    return Arrays(pixels, **more).open()


@dataclasses.dataclass(frozen=True)
class Proportional(Views):
    """Noise in proportion to a pixel: a black image stays black."""

    def __call__(self, key, image):
        noise = jax.random.normal(key, image.shape, image.dtype)
        return jnp.stack([image, image + image * noise])


@functools.cache
def the_problem():
    return problems.problem(CosineDistance(), module=problems.Small(), channels=3)


@functools.cache
def fitted():
    return Scorer.fit(the_problem(), LoGra(rank=2), SETTINGS)


def test_scores_are_the_dense_formula():
    problem, pixels = the_problem(), images()
    table = self_influence(problem, Exact(), source(pixels), TRANSFORM, SETTINGS)
    scorer = Scorer.fit(problem, Exact(), SETTINGS)
    matrix = (scorer.state.eigenvectors * scorer.state.eigenvalues[None]) @ scorer.state.eigenvectors.T
    damped = np.asarray(matrix + scorer.damping * jnp.eye(len(matrix)))
    assert table["index"].to_pylist() == list(range(len(pixels)))
    gradient = jax.jit(jax.value_and_grad(problem.objective))
    for i in range(len(pixels)):
        scores, values, norms = [], [], []
        for draw in range(2):
            own = randomness.branch(jax.random.fold_in(SETTINGS.key, i), Stream.PERTURBATIONS)
            key = jax.random.fold_in(own, draw)
            one = Batch(jnp.asarray(pixels[i : i + 1]), key[None], jnp.array([i]), jnp.array([-1]))
            value, g = gradient(problem.params, problem.frozen, one)
            g = np.asarray(trees.ravel(g))
            scores.append(g @ np.linalg.solve(damped, g))
            values.append(value)
            norms.append(g @ g)
        np.testing.assert_allclose(table["score"][i].as_py(), np.mean(scores), rtol=1e-7)
        np.testing.assert_allclose(table["score_se"][i].as_py(), np.std(scores, ddof=1) / 2**0.5, rtol=1e-6)
        np.testing.assert_allclose(table["alignment_loss"][i].as_py(), np.mean(values), rtol=1e-9)
        np.testing.assert_allclose(table["gradient_norm"][i].as_py(), np.mean(norms) ** 0.5, rtol=1e-9)


def test_batch_size_and_order_do_not_change_a_score():
    scorer, pixels = fitted(), images()
    whole = {row["index"]: row for part in stream(scorer, source(pixels), TRANSFORM) for row in part.table.to_pylist()}
    other = dataclasses.replace(scorer, settings=dataclasses.replace(SETTINGS, batch_size=4))
    order = np.array([6, 0, 3, 2, 5])
    rows = [row for part in stream(other, source(pixels), TRANSFORM, order) for row in part.table.to_pylist()]
    assert [row["index"] for row in rows] == [5, 6, 0, 2, 3]  # batch by batch, each in its own row
    for row in rows:
        np.testing.assert_allclose(row["score"], whole[row["index"]]["score"], rtol=1e-9)


@given(count=st.integers(1, 40), size=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
def test_an_example_has_the_same_row_whatever_else_is_asked_for(count, size, seed):
    rng = np.random.default_rng(seed)
    asked = rng.permutation(count)[: rng.integers(1, count + 1)]
    rows = place_in_slots(asked, size).reshape(-1, size)
    assert sorted(rows[rows >= 0].tolist()) == sorted(asked.tolist())
    for batch in rows:
        held = batch[batch >= 0]
        assert len(set((held // size).tolist())) == 1
        assert np.array_equal(np.flatnonzero(batch >= 0), held % size)
    first = [int(batch[batch >= 0][0]) // size for batch in rows]
    assert first == list(dict.fromkeys((asked // size).tolist()))  # in the order in which they were named


@given(count=st.integers(1, 40), size=st.integers(1, 9), together=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_rows_that_are_made_one_batch_after_the_other_are_those_of_all_at_once(count, size, together, seed):
    chosen = np.random.default_rng(seed).integers(0, 2, count).astype(bool)
    pieces = list(slots_of(chosen, size, together))
    assert [len(piece) for piece in pieces[:-1]] == [size * together] * (len(pieces) - 1)
    whole = np.concatenate([np.zeros(0, np.int64), *pieces])
    assert whole.tolist() == place_in_slots(np.flatnonzero(chosen), size).tolist()


def test_what_is_left_to_score_takes_a_few_bytes_an_image():
    count, size = 4_000_000, 1000
    chosen = np.ones(count, bool)
    tracemalloc.start()
    share = own_share(chosen, dataclasses.replace(fitted(), settings=dataclasses.replace(SETTINGS, batch_size=size)))
    rows = sum(int((piece >= 0).sum()) for piece in slots_of(share, size, 1))
    peak = tracemalloc.get_traced_memory()[1] / count
    tracemalloc.stop()
    assert rows == count
    assert peak < 1.5  # the share itself takes one


@given(count=st.integers(1, 60), size=st.integers(1, 9), processes=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_processes_share_what_is_left_in_whole_batches(count, size, processes, seed):
    todo = np.random.default_rng(seed).integers(0, 2, count).astype(bool)
    scorer = dataclasses.replace(fitted(), settings=dataclasses.replace(SETTINGS, batch_size=size))
    shares = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: processes)
        for process in range(processes):
            patch.setattr(jax, "process_index", lambda process=process: process)
            shares.append(own_share(todo, scorer))
    assert np.array_equal(np.sum(shares, axis=0), todo)
    held = [set((np.flatnonzero(share) // size).tolist()) for share in shares]
    assert sum(map(len, held)) == len(set().union(*held))


def test_what_is_scored_after_an_interruption_has_the_bits_of_an_uninterrupted_run():
    scorer, pixels = fitted(), images()
    whole = pa.concat_tables([part.table for part in stream(scorer, source(pixels), TRANSFORM)])
    some = pa.concat_tables([part.table for part in stream(scorer, source(pixels), TRANSFORM, np.array([1, 2, 5]))])
    assert some.equals(whole.take([1, 2, 5]))


def test_bad_examples_are_named_and_leave_the_others_alone():
    problem, pixels = the_problem(), images().astype(np.float32) / 255
    clean = self_influence(problem, LoGra(rank=2), source(pixels), TRANSFORM, SETTINGS)
    pixels[4, 0, 0, 0] = np.nan
    table = self_influence(problem, LoGra(rank=2), source(pixels), TRANSFORM, SETTINGS)
    assert "non-finite" in table["reason"][4].as_py()
    assert [name for name in table.column_names if table[name][4].as_py() is None] == [
        *COLUMNS[2:11],
        "content",
        "in_curvature_set",
    ]
    assert table.column_names == [*COLUMNS, "in_curvature_set"]
    for i in (0, 1, 2, 3, 5, 6):
        np.testing.assert_allclose(table["score"][i].as_py(), clean["score"][i].as_py(), rtol=1e-12)
        assert table["reason"][i].as_py() is None


def test_a_zero_embedding_and_a_network_that_overflows_are_named():
    problem = problems.problem(CosineDistance(), module=problems.Linear(), channels=3)
    problem = dataclasses.replace(problem, objective=dataclasses.replace(problem.objective, views=Proportional()))
    black = dataclasses.replace(problem.objective.network, mean=(0.0,))
    problem = dataclasses.replace(problem, objective=dataclasses.replace(problem.objective, network=black))
    pixels = images(3)
    pixels[1] = 0
    table = self_influence(problem, LoGra(rank=2), source(pixels), TRANSFORM, SETTINGS)
    assert "zero embedding" in table["reason"][1].as_py()
    assert np.isnan(table["score"][1].as_py())
    huge = dataclasses.replace(problem, params=trees.scale(1e308, problem.params))
    scorer = Scorer.fit(problem, LoGra(rank=2), SETTINGS)
    broken = dataclasses.replace(scorer, problem=huge)
    (part,) = list(stream(broken, source(pixels), TRANSFORM))
    assert "not finite" in part.table["reason"][0].as_py()


def test_images_of_the_curvature_set_are_marked():
    """Their own gradient is a part of the matrix: they score lower than the same images would outside."""
    pixels = images(6)
    inside = problems.batches(1, 3, channels=3)
    inside = dataclasses.replace(inside, index=jnp.asarray([[4, 1, 5]]))
    problem = dataclasses.replace(
        problems.problem(CosineDistance(), module=problems.Linear(), channels=3), batches=inside
    )
    table = self_influence(problem, LoGra(rank=2), source(pixels), TRANSFORM, SETTINGS)
    assert table["in_curvature_set"].to_pylist() == [False, True, False, False, True, True]


def test_images_of_the_curvature_set_are_scored_by_the_others_on_request():
    """Those score higher then, and the others as ever; by how much, `test_gram` compares with the dense matrix."""
    pixels, inside = images(6), problems.batches(1, 3, channels=3)
    inside = dataclasses.replace(inside, index=jnp.asarray([[4, 1, 5]]))
    problem = problems.problem(CosineDistance(), "fisher", module=problems.Linear(), channels=3)
    problem = dataclasses.replace(problem, batches=inside)
    settings = Scoring(Damping(absolute=1e-3), draws=2, batch_size=3)
    alone = dataclasses.replace(settings, leave_own_out=True)
    ordinary, by_others = (
        self_influence(problem, Gram(), source(pixels), TRANSFORM, each)["score"].to_numpy()
        for each in (settings, alone)
    )
    np.testing.assert_allclose(by_others[[0, 2, 3]], ordinary[[0, 2, 3]], rtol=1e-9)
    assert (by_others[[1, 4, 5]] > 1.005 * ordinary[[1, 4, 5]]).all()


@pytest.mark.parametrize(
    ("backend", "loss", "said"),
    [
        (LoGra(rank=2), CosineDistance(), "LoGra cannot leave an image's own contribution out"),
        (Gram(), SimCLR(0.5), "SimCLR couples the examples of a batch"),
    ],
    ids=["backend", "loss"],
)
def test_what_cannot_leave_an_image_out_of_the_curvature_is_refused_by_name(backend, loss, said):
    problem = problems.problem(loss, "fisher", module=problems.Linear(), channels=3)
    with pytest.raises(InfluenceError, match=said):
        Scorer.fit(problem, backend, Scoring(leave_own_out=True))


def test_a_curvature_set_that_repeats_an_image_cannot_leave_it_out():
    problem = problems.problem(CosineDistance(), "fisher", module=problems.Linear(), channels=3)
    twice = dataclasses.replace(problem.batches, index=problem.batches.index % 5)
    with pytest.raises(InfluenceError, match="holds some images twice"):
        Scorer.fit(dataclasses.replace(problem, batches=twice), Gram(), Scoring(leave_own_out=True))


def test_views_that_agree_have_a_reason_and_other_images_none():
    """A uniform image is its own mirror image: its score is zero, and what is printed would be rounding."""
    problem = problems.problem(CosineDistance(), module=problems.Linear(), channels=3)
    views = AgainstClean(HorizontalFlip())
    problem = dataclasses.replace(problem, objective=dataclasses.replace(problem.objective, views=views))
    pixels = images(4)
    pixels[2] = 200
    table = self_influence(problem, LoGra(rank=2), source(pixels), TRANSFORM, SETTINGS)
    assert [reason == UNRESOLVED for reason in table["reason"].to_pylist()] == [False, False, True, False]
    assert table["score"][2].as_py() < 1e-20
    assert table["pixel_variance"][2].as_py() == 0


@pytest.mark.parametrize("loss", MEASUREMENTS, ids=lambda loss: loss.__name__)
def test_equal_views_are_within_the_rounding_that_a_measurement_allows(loss):
    """Embeddings computed twice, in two orders of summation, in float32; and views that differ by far more."""
    rng = np.random.default_rng(0)
    weights, inputs = rng.normal(size=(64, 8)).astype(np.float32), rng.normal(size=(50, 64)).astype(np.float32)
    order = rng.permutation(64)
    first, second = jnp.asarray(inputs @ weights), jnp.asarray(inputs[:, order] @ weights[order])
    values, allowed = (
        loss().values(loss().outputs(Embeddings(jnp.stack([first, second])))),
        loss().rounding(first),
    )
    assert (np.asarray(values) <= np.asarray(allowed)).all()
    moved = first * (1 + 1e-3 * jnp.asarray(rng.normal(size=first.shape), jnp.float32))
    assert (
        np.asarray(loss().values(loss().outputs(Embeddings(jnp.stack([first, moved]))))) > np.asarray(allowed)
    ).all()


def test_a_u_statistic_takes_two_draws():
    with pytest.raises(ValueError, match="at least 2 draws"):
        Scoring(draws=1, estimand="u_statistic")
