"""Baselines against loops, and the cases that trip nearest-neighbour searches."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from influence_ssl_jax.runs.score import count_searched
from influence_ssl_jax.scoring.neighbours import knn_distance, reference_size, stream_knn_distance
from influence_ssl_jax.scoring.scores import pixel_variance


@given(seed=st.integers(0, 10**6), neighbours=st.integers(1, 3))
def test_knn_distance_is_a_plain_loop(seed, neighbours):
    z = np.random.default_rng(seed).normal(size=(12, 4)).astype(np.float32)
    u = z / np.linalg.norm(z, axis=1, keepdims=True)
    want = [np.mean(sorted(1 - float(u[i] @ u[j]) for j in range(12) if j != i)[:neighbours]) for i in range(12)]
    np.testing.assert_allclose(knn_distance(z, neighbours), want, rtol=1e-3, atol=1e-6)


def test_duplicates_have_distance_zero_and_do_not_count_themselves():
    z = np.eye(4, dtype=np.float32)[[0, 0, 0, 1, 2]]
    np.testing.assert_allclose(knn_distance(z), [0, 0, 0, 1, 1], atol=1e-6)


def test_what_has_no_direction_is_named_and_is_nobodys_neighbour():
    z = np.eye(5, dtype=np.float32)
    z[1], z[2] = 0, np.nan
    found = knn_distance(z)
    assert np.isnan(found[[1, 2]]).all()
    np.testing.assert_allclose(found[[0, 3, 4]], 1.0, atol=1e-6)
    assert np.isnan(knn_distance(z[:2])).all()


def test_a_random_reference_never_counts_an_example_as_its_own_neighbour():
    z = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    assert (knn_distance(z, max_reference=20) > 1e-3).all()


@given(seed=st.integers(0, 10**6), pieces=st.integers(1, 5))
@settings(max_examples=5)
def test_pieces_of_any_size_are_the_whole(seed, pieces):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(23, 4)).astype(np.float32)
    z[3] = 0
    cuts = np.sort(rng.integers(0, 24, pieces))
    streamed = list(stream_knn_distance(lambda: np.split(z, cuts), 2, seed, max_reference=15))
    assert [len(piece) for piece in streamed] == [len(piece) for piece in np.split(z, cuts)]
    np.testing.assert_array_equal(np.concatenate(streamed), knn_distance(z, 2, seed, max_reference=15))


def test_the_number_of_pairs_is_bounded():
    z = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    (few,) = stream_knn_distance(lambda: [z], max_pairs=600)  # a reference of ten
    assert reference_size(len(z), max_pairs=600) == 10
    assert [reference_size(10**k) for k in (4, 6, 8)] == [10_000, 2_500, 25]
    assert count_searched(60, 1) == {"images": 60, "reference": 60, "neighbours": 1}
    assert (few >= knn_distance(z) - 1e-6).all()
    np.testing.assert_array_equal(few, knn_distance(z, max_reference=10))


def test_pixel_variance_in_both_pixel_types():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    want = [(image / 255.0).var() for image in images]
    np.testing.assert_allclose(pixel_variance(jnp.asarray(images)), want, rtol=1e-6)
    np.testing.assert_allclose(pixel_variance(jnp.asarray(images / 255.0)), want, rtol=1e-6)
    uniform = np.broadcast_to(np.arange(256)[:, None, None, None], (256, 5, 7, 3))
    for kept in (uniform.astype(np.uint8), (uniform / 255).astype(np.float32)):
        assert not np.asarray(pixel_variance(jnp.asarray(kept))).any()
