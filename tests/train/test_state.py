"""A training step: gradients, running statistics and the target network, against formulas written out here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax import trees
from influence_ssl_jax.losses import BYOL, SimCLR, SimSiam
from influence_ssl_jax.train.optimisers import Sgd
from influence_ssl_jax.train.settings import Architecture, Pretrain
from influence_ssl_jax.train.state import initial, make_step, target_momentum
from tests.losses.cases import TRAINED
from tests.train.small import a_batch, small

SHAPE = (8, 8, 3)


def copied(tree):
    """A step consumes its state; what is compared afterwards is copied before."""
    return jax.tree.map(jnp.copy, tree)


@pytest.mark.parametrize("loss", TRAINED, ids=lambda loss: type(loss).__name__)
def test_a_step_descends_and_every_parameter_moves(loss):
    settings = small(loss, optimiser=Sgd(0.05, warmup_epochs=0))
    batch, state = a_batch(settings), initial(settings, SHAPE)
    before, step, losses = copied(state), make_step(settings, 50), []
    for _ in range(8):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert int(state.step) == 8
    assert losses[-1] < losses[0]
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before.params, copied(state.params))
    assert all(jax.tree.leaves(moved)), moved
    own = loss.compares_with_target and not loss.target_is_online
    assert set(state.frozen) == ({"batch_stats", "target"} if own else {"batch_stats"})


def test_a_step_is_sgd_on_the_loss_of_views_normalised_one_by_one():
    settings = small(SimCLR(0.5), optimiser=Sgd(0.1, weight_decay=0.0, momentum=0.0))
    batch, state = a_batch(settings), initial(settings, SHAPE)
    before, objective = copied(state), settings.objective()
    views = objective.images(batch, jnp.float32)
    network = objective.network

    def training_loss(params):
        embedded = [
            network.module.apply(
                {"params": params, **before.frozen}, network.standardise(view), True, method="project", mutable=True
            )[0]
            for view in views
        ]
        units = [z / jnp.linalg.norm(z, axis=1, keepdims=True) for z in embedded]
        z = jnp.concatenate(units)
        logits = z @ z.T / 0.5 - 1e9 * jnp.eye(len(z))
        positive = jnp.roll(jnp.arange(len(z)), len(z) // 2)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(z)), positive])

    value, gradient = jax.jit(jax.value_and_grad(training_loss))(before.params)
    after, metrics = make_step(settings, 50)(state, batch)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], trees.norm(gradient), rtol=1e-3)
    expected = jax.tree.map(lambda w, g: w - 0.1 * g, before.params, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), after.params, expected)


def test_a_step_of_simsiam_compares_predictions_with_constant_projections_of_the_same_parameters():
    settings = small(SimSiam(), optimiser=Sgd(0.1, weight_decay=0.0, momentum=0.0))
    batch, state = a_batch(settings), initial(settings, SHAPE)
    before, objective = copied(state), settings.objective()
    views, network = objective.images(batch, jnp.float32), objective.network

    def pass_through(params, method):
        return [
            network.module.apply(
                {"params": params, **before.frozen}, network.standardise(view), True, method=method, mutable=True
            )[0]
            for view in views
        ]

    def training_loss(params, constant):
        p, z = pass_through(params, "predict"), pass_through(constant, "project")
        cosines = [
            jnp.sum(a * b, axis=1) / (jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1))
            for a, b in zip(p, z[::-1], strict=True)
        ]
        return -sum(jnp.mean(cosine) for cosine in cosines) / 2

    value, gradient = jax.jit(jax.value_and_grad(training_loss))(before.params, before.params)
    after, metrics = make_step(settings, 50)(state, batch)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    expected = jax.tree.map(lambda w, g: w - 0.1 * g, before.params, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), after.params, expected)


def test_running_statistics_move_by_the_mean_over_the_views():
    settings = small(SimCLR(0.5))
    batch, state = a_batch(settings), initial(settings, SHAPE)
    before, objective = copied(state), settings.objective()
    views = objective.network.standardise(objective.images(batch, jnp.float32).reshape(-1, *SHAPE))
    convolved = jax.lax.conv_general_dilated(
        views, before.params["backbone"]["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ).reshape(2, -1, 4)
    after, _ = make_step(settings, 50)(state, batch)
    moved = after.frozen["batch_stats"]["backbone"]["bn"]
    np.testing.assert_allclose(moved["mean"], 0.1 * convolved.mean(axis=1).mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moved["var"], 0.9 + 0.1 * convolved.var(axis=1).mean(axis=0), rtol=1e-4)


def test_the_target_network_follows_along_the_cosine():
    settings = small(BYOL(), target_momentum=0.9)
    batch, state, total = a_batch(settings), initial(settings, SHAPE), 2 * 5
    online, target = copied(state.params), copied(state.frozen["target"]["params"])
    assert "predictor" not in target
    jax.tree.map(np.testing.assert_array_equal, target, {name: online[name] for name in target})
    step = make_step(settings, 5)
    for taken in range(3):
        state, _ = step(state, batch)
        slow = 1 - (1 - 0.9) * (np.cos(np.pi * taken / total) + 1) / 2
        fast = copied(state.params)
        target = jax.tree.map(
            lambda t, o, slow=slow: slow * t + (1 - slow) * o, target, {name: fast[name] for name in target}
        )
        held = copied(state.frozen["target"]["params"])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), held, target)
    statistics = state.frozen["target"]["batch_stats"]["backbone"]["bn"]["mean"]
    assert bool(jnp.any(statistics != 0))


def test_the_target_momentum_ends_at_one():
    np.testing.assert_allclose(target_momentum(0.99, jnp.asarray(0), 10), 0.99)
    np.testing.assert_allclose(target_momentum(0.99, jnp.asarray(5), 10), 0.995)
    np.testing.assert_allclose(target_momentum(0.99, jnp.asarray(10), 10), 1.0)


def test_bfloat16_computes_near_float32_and_keeps_float32_state():
    batch = a_batch(small(SimCLR(0.5)))
    losses = {}
    for precision in ("float32", "bfloat16"):
        settings = small(SimCLR(0.5), precision=precision)
        state, metrics = make_step(settings, 50)(initial(settings, SHAPE), batch)
        losses[precision] = float(metrics["loss"])
        floats = [x.dtype for x in jax.tree.leaves((state.params, state.frozen, state.optimiser.velocity))]
        assert set(floats) == {jnp.dtype("float32")}
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.02)
    assert losses["bfloat16"] != losses["float32"]


def test_the_seed_draws_the_parameters_and_nothing_else_does():
    draws = [initial(small(SimCLR(0.5), seed=seed), SHAPE).params for seed in (0, 0, 1)]
    jax.tree.map(np.testing.assert_array_equal, draws[0], draws[1])
    assert bool(jnp.any(draws[0]["backbone"]["conv"]["kernel"] != draws[2]["backbone"]["conv"]["kernel"]))


def test_the_initial_parameters_are_those_of_the_module():
    settings = Pretrain(architecture=Architecture(width=4, hidden=8, output=4))
    shapes = jax.eval_shape(lambda: initial(settings, (32, 32, 3)).params)
    network = settings.network("project")
    direct = jax.eval_shape(lambda: network.module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    assert jax.tree.map(lambda leaf: leaf.shape, shapes) == jax.tree.map(lambda leaf: leaf.shape, direct["params"])
