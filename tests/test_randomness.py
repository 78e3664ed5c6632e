"""Streams that never meet, and draws that are the same numbers in every type."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import influence_ssl_jax
from influence_ssl_jax import randomness
from influence_ssl_jax.data import Arrays, ToInput, epoch, resident
from influence_ssl_jax.evaluation.certificate import Audit
from influence_ssl_jax.evaluation.sample import sample
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.scoring.scores import Scoring

DRAWS = {
    "normal": lambda key, dtype: randomness.normal(key, (50,), dtype),
    "uniform": lambda key, dtype: randomness.uniform(key, (50,), dtype, 0.1, 2.0),
    "signs": lambda key, dtype: randomness.signs(key, (50,), dtype),
    "coin": lambda key, dtype: jax.vmap(lambda k: randomness.coin(k, 0.3))(jax.random.split(key, 50)).astype(dtype),
    "integers": lambda key, dtype: randomness.integers(key, (50,), -3, 4).astype(dtype),
}


def words(keys):
    return [tuple(row) for row in np.asarray(jax.random.key_data(keys)).reshape(-1, 2).tolist()]


def split(keys):
    """What a recipe of four views makes of examples' keys."""
    return jax.vmap(lambda key: jax.random.split(key, 4))(keys.reshape(-1))


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_the_same_numbers_in_every_type(name):
    drawn = []
    for wide in (False, True):
        with jax.enable_x64(wide):
            key = randomness.root(2**40 + 5, Stream.BACKEND)
            drawn.append(np.asarray(DRAWS[name](key, jnp.float64 if wide else jnp.float32)))
    assert drawn[1].dtype == np.float64
    if name in ("normal", "uniform"):  # transformed in either type from the same bits
        np.testing.assert_allclose(*drawn, rtol=1e-6)
    else:
        np.testing.assert_array_equal(*drawn)


def test_draws_have_their_distribution():
    key = randomness.root(0, Stream.BACKEND)
    signs = np.asarray(randomness.signs(key, (4000,), jnp.float64))
    coins = np.asarray(jax.vmap(lambda k: randomness.coin(k, 0.3))(jax.random.split(key, 4000)))
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(signs.mean()) < 5 / 4000**0.5
    assert abs(coins.mean() - 0.3) < 5 * (0.21 / 4000) ** 0.5
    always = jax.vmap(lambda k: randomness.coin(k, 1.0))(jax.random.split(key, 4000))
    assert bool(always.all())


def test_no_two_streams_of_a_seed_share_a_key_or_a_number():
    """Keys of every stream and of 200 examples below it; whatever else is numbered or split starts below these."""
    assert len({stream.number for stream in Stream}) == len(Stream)
    assert all(2**31 <= stream.number < 2**32 for stream in Stream)  # above the number of any example, draw or step
    drawn = []
    for stream in Stream:
        root = randomness.root(0, stream)
        drawn += words(root) + words(jax.random.split(root, 200))
    assert len(set(drawn)) == len(drawn)
    plain = jax.random.key(0)
    assert not set(drawn) & set(words(plain) + words(jax.random.split(plain, 200)))


def test_the_draws_of_a_scored_example_are_no_view_of_the_curvature_set():
    """`split(key)[i]` is `fold_in(key, i)`: below one key, the draws of a score would be the views of a loss."""
    pixels = np.zeros((6, 4, 4, 3), np.uint8)
    curvature = resident(Arrays(pixels).open(), ToInput(4, 4), 6, 6, seed=0)
    (trained,) = epoch(Arrays(pixels).open(), ToInput(4, 4), 6, 0, 0)
    scoring = Scoring(draws=4)
    examples = jax.vmap(jax.random.fold_in, (None, 0))(scoring.key, jnp.arange(6))
    draws = split(jax.vmap(lambda key: randomness.branch(key, Stream.PERTURBATIONS))(examples))
    common = randomness.root(0, Stream.COMMON_NOISE)
    used = {
        "scored": words(examples) + words(draws),
        "common": words(jax.random.split(randomness.branch(common, Stream.PERTURBATIONS), 4)),
        "curvature": words(curvature.key) + words(split(curvature.key)),
        "training": words(trained.batch.key) + words(split(trained.batch.key)),
        "backend": words(jax.random.split(randomness.root(0, Stream.BACKEND), 6)),
    }
    every = [key for keys in used.values() for key in keys]
    assert len(set(every)) == len(every)


def test_the_audited_examples_are_no_part_of_the_curvature_set_by_construction():
    """One permutation for both would audit the curvature set's own examples, which score lower than others."""
    source = Arrays(np.zeros((400, 2, 2, 3), np.uint8)).open()
    curvature = np.asarray(resident(source, ToInput(2, 2), 100, 100, seed=0).index).ravel()
    audited = sample(Audit(examples=100), 400)
    first = next(epoch(source, ToInput(2, 2), 100, 0, 0)).batch.index
    for other in (audited, np.asarray(first)):
        assert abs(np.isin(other, curvature).mean() - 0.25) < 5 * (0.25 * 0.75 / 100) ** 0.5


def test_numbered_generators_of_a_stream_differ_from_each_other():
    """NumPy takes [seed] and [seed, 0] for the same entropy."""
    drawn = [randomness.generator(*given).integers(2**62) for given in _entropies()]
    assert len(set(drawn)) == len(drawn)
    assert np.random.default_rng([3]).integers(2**62) == np.random.default_rng([3, 0]).integers(2**62)


def _entropies():
    one = [(seed, stream) for seed in (0, 1, 2**33) for stream in (Stream.AUDITED, Stream.CALIBRATION)]
    return one + [(seed, Stream.TRAINING_ORDER, number) for seed in (0, 1) for number in (0, 1, 2)]


@pytest.mark.parametrize("make", [randomness.root, randomness.generator], ids=["root", "generator"])
def test_a_negative_seed_is_refused(make):
    with pytest.raises(ValueError, match="zero or positive, got -1"):
        make(-1, Stream.BACKEND)


def test_everything_random_goes_through_the_one_module():
    """No other module draws, seeds or folds a seed by itself; theory, and sources that make up images, are apart."""
    forbidden = {"normal", "uniform", "bernoulli", "randint", "rademacher", "key", "PRNGKey", "bits", "default_rng"}
    folder = Path(influence_ssl_jax.__file__).parent
    apart = {"randomness.py", "data/digits.py", "data/synthetic.py", "report/plots.py"}
    calls = []
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        if name in apart or name.startswith("theory/"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Attribute)
                and node.attr in forbidden
                and ast.unparse(node.value).endswith(".random")
            ):
                calls.append(f"{name} {ast.unparse(node)}")
    shapes_alone = ["checkpoints/layout.py", "checkpoints/resnet.py", "encoder.py"]
    assert calls == [f"{name} jax.random.key" for name in shapes_alone], calls
