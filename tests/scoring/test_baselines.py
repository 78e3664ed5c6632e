"""Baselines against loops, and the cases that trip nearest-neighbour searches."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from influence_ssl_jax.runs.score import count_searched
from influence_ssl_jax.scoring.neighbours import NONE, find_neighbours, reference_size, stream_neighbours
from influence_ssl_jax.scoring.scores import brightness, pixel_variance


@given(seed=st.integers(0, 10**6), neighbours=st.integers(1, 3))
def test_neighbours_are_those_of_a_plain_loop(seed, neighbours):
    z = np.random.default_rng(seed).normal(size=(12, 4)).astype(np.float32)
    u = z / np.linalg.norm(z, axis=1, keepdims=True)
    want = [np.mean(sorted(1 - float(u[i] @ u[j]) for j in range(12) if j != i)[:neighbours]) for i in range(12)]
    nearest = find_neighbours(z, neighbours, index=np.arange(100, 112))
    np.testing.assert_allclose(nearest.distance, want, rtol=1e-3, atol=1e-6)
    similarity = u @ u.T - 3 * np.eye(12)
    assert nearest.nearest.tolist() == (100 + similarity.argmax(axis=1)).tolist()
    assert nearest.example.tolist() == list(range(100, 112))


def test_duplicates_have_distance_zero_and_do_not_count_themselves():
    z = np.eye(4, dtype=np.float32)[[0, 0, 0, 1, 2]]
    nearest = find_neighbours(z)
    np.testing.assert_allclose(nearest.distance, [0, 0, 0, 1, 1], atol=1e-6)
    assert all(k != row and k in {0, 1, 2} for row, k in enumerate(nearest.nearest[:3].tolist()))


def test_what_has_no_direction_is_named_and_is_nobodys_neighbour():
    z = np.eye(5, dtype=np.float32)
    z[1], z[2] = 0, np.nan
    nearest = find_neighbours(z)
    assert np.isnan(nearest.distance[[1, 2]]).all()
    assert (nearest.nearest[[1, 2]] == NONE).all()
    np.testing.assert_allclose(nearest.distance[[0, 3, 4]], 1.0, atol=1e-6)
    assert set(nearest.nearest[[0, 3, 4]].tolist()) <= {0, 3, 4}
    alone = find_neighbours(z[:2])
    assert np.isnan(alone.distance).all()
    assert (alone.nearest == NONE).all()


def test_a_random_reference_never_counts_an_example_as_its_own_neighbour():
    z = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    nearest = find_neighbours(z, max_reference=20)
    assert (nearest.distance > 1e-3).all()
    assert (nearest.nearest != np.arange(50)).all()
    assert len(set(nearest.nearest.tolist())) <= 20


@given(seed=st.integers(0, 10**6), pieces=st.integers(1, 5))
@settings(max_examples=5)
def test_pieces_of_any_size_are_the_whole(seed, pieces):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(23, 4)).astype(np.float32)
    z[3] = 0
    cuts = np.sort(rng.integers(0, 24, pieces))
    number = np.arange(100, 123)
    pieces = list(zip(np.split(number, cuts), np.split(z, cuts), strict=True))
    streamed = list(stream_neighbours(lambda: pieces, 2, seed, max_reference=15))
    assert [len(piece.distance) for piece in streamed] == [len(piece) for piece in np.split(z, cuts)]
    whole = find_neighbours(z, 2, seed, max_reference=15, index=number)
    for name in whole._fields:
        np.testing.assert_array_equal(
            np.concatenate([getattr(piece, name) for piece in streamed]), getattr(whole, name)
        )


def test_the_number_of_pairs_is_bounded():
    z = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    (few,) = stream_neighbours(lambda: [(np.arange(60), z)], max_pairs=600)  # a reference of ten
    assert reference_size(len(z), max_pairs=600) == 10
    assert [reference_size(10**k) for k in (4, 6, 8)] == [10_000, 2_500, 25]
    assert count_searched(60, 1) == {"images": 60, "reference": 60, "neighbours": 1}
    assert (few.distance >= find_neighbours(z).distance - 1e-6).all()
    np.testing.assert_array_equal(few.nearest, find_neighbours(z, max_reference=10).nearest)


def test_pixel_variance_in_both_pixel_types():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    want = [(image / 255.0).var() for image in images]
    np.testing.assert_allclose(pixel_variance(jnp.asarray(images)), want, rtol=1e-6)
    np.testing.assert_allclose(pixel_variance(jnp.asarray(images / 255.0)), want, rtol=1e-6)
    uniform = np.broadcast_to(np.arange(256)[:, None, None, None], (256, 5, 7, 3))
    for kept in (uniform.astype(np.uint8), (uniform / 255).astype(np.float32)):
        assert not np.asarray(pixel_variance(jnp.asarray(kept))).any()


def test_brightness_and_contrast_are_mean_and_deviation_of_the_luminance():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    images[2] = 77
    grey = images / 255.0 @ np.array([0.2989, 0.587, 0.114])
    want = np.stack([grey.mean(axis=(1, 2)), grey.std(axis=(1, 2))], axis=1)
    for pixels in (images, images / 255.0):
        light = np.asarray(brightness(jnp.asarray(pixels)))
        np.testing.assert_allclose(light, want, rtol=1e-5, atol=1e-12)
        assert light[2, 1] == 0
    one = images[..., :1] / 255.0
    np.testing.assert_allclose(brightness(jnp.asarray(one))[:, 0], one.mean(axis=(1, 2, 3)), rtol=1e-6)
