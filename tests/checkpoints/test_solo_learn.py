"""solo-learn's checkpoints: every output equals a plain float64 reference's, and what does not fit is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax import trees
from influence_ssl_jax.checkpoint import CheckpointError
from influence_ssl_jax.checkpoints import FORMATS, Choices
from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.losses import BYOL, BarlowTwins, SimCLR, SimSiam, VICReg
from influence_ssl_jax.types import Batch
from tests.checkpoints.memory import file_of, lightning
from tests.nets import reference

RELU, NORM = -1, None
PLAIN = {"size": 8, "mean": (0.0,), "std": (1.0,)}
IMAGES = np.random.default_rng(5).normal(size=(3, 8, 8, 3))
HEADS = {
    "simclr": {"projector": (16, 7, RELU, 5)},
    "byol": {"projector": (16, 7, NORM, RELU, 5), "predictor": (5, 6, NORM, RELU, 5)},
    "barlow_twins": {"projector": (16, 7, NORM, RELU, 7, NORM, RELU, 5)},
    "simsiam": {"projector": (16, 7, NORM, RELU, 7, NORM, RELU, 5, NORM), "predictor": (5, 6, NORM, RELU, 5)},
    "vicreg": {"projector": (16, 7, NORM, RELU, 7, NORM, RELU, 5)},
}
STATES = {method: reference.random_state(2, heads, seed=1) for method, heads in HEADS.items()}
# SimSiam in torch: no bias before a BatchNorm but a frozen one before the last, which has no scale and no shift.
WITHOUT = ("projector.0.bias", "projector.3.bias", "projector.7.weight", "projector.7.bias", "predictor.0.bias")
STATES["simsiam"] = {name: array for name, array in STATES["simsiam"].items() if name not in WITHOUT}


def read(state, **choices):
    return FORMATS["solo_learn"].read(lightning(state), Choices(**{**PLAIN, **choices}))


def embedded(encoder, output):
    chosen = encoder.at(output)
    exact, frozen = (trees.astype(tree, jnp.float64) for tree in (chosen.params, chosen.frozen))
    return jax.jit(chosen.network)(exact, frozen, jnp.asarray(IMAGES))


@pytest.mark.parametrize("method", HEADS)
def test_every_output_equals_the_reference(method):
    state = STATES[method]
    encoder = read(state).encoder
    wanted = {"encoder": reference.resnet18(state, IMAGES, padding=2)}
    wanted["projector"] = reference.head(state, "projector", wanted["encoder"])
    if "predictor" in HEADS[method]:
        wanted["predictor"] = reference.head(state, "predictor", wanted["projector"])
    for output, want in wanted.items():
        # The bias before SimSiam's last BatchNorm is taken from its mean, which is kept in float32.
        rtol, atol = (0, 3e-7) if method == "simsiam" and output != "encoder" else (1e-10, 1e-12)
        np.testing.assert_allclose(embedded(encoder, output), want, rtol, atol)
    assert encoder.heads.params.keys() == wanted.keys() - {"encoder"}
    if "predictor" not in wanted:
        with pytest.raises(InfluenceError, match="has no predictor; use encoder or projector"):
            encoder.at("predictor")


def test_the_stem_has_padding_two_and_another_one_is_another_network():
    state = STATES["simclr"]
    other = FORMATS["resnet_cifar"].read(file_of({"state_dict": state}), Choices(**PLAIN)).encoder
    np.testing.assert_allclose(
        embedded(other, "encoder"), reference.resnet18(state, IMAGES, padding=1), rtol=1e-10, atol=1e-12
    )
    ours = embedded(read(state).encoder, "encoder")
    assert np.linalg.norm(ours - embedded(other, "encoder")) > 0.01 * np.linalg.norm(ours)


def test_older_names_and_what_is_left_are_named():
    state = {name.replace("backbone.", "encoder."): array for name, array in STATES["simclr"].items()}
    imported = read({**state, "classifier.weight": np.zeros((10, 16)), "momentum_encoder.conv1.weight": np.zeros(3)})
    np.testing.assert_array_equal(
        embedded(imported.encoder, "encoder"), embedded(read(STATES["simclr"]).encoder, "encoder")
    )
    assert imported.unread == {
        "classifier.weight": "beside the encoder",
        "momentum_encoder.conv1.weight": "beside the encoder",
        "pytorch-lightning_version": "'2.1.2'",
    }
    assert imported.recognised["network"] == "ResNet-18, width 2, 3×3 stem, padding 2"


def test_what_lies_beside_the_file_counts_where_nothing_is_chosen(tmp_path):
    made = {"method": "simclr", "method_kwargs": {"temperature": 0.4}, "data": {"dataset": "cifar100"}}
    (tmp_path / "args.json").write_text(json.dumps(made))
    file = lightning(STATES["simclr"], tmp_path / "last.ckpt")
    encoder = FORMATS["solo_learn"].read(file, Choices(size=8)).encoder
    assert encoder.heads.loss == SimCLR(0.4)
    cold = FORMATS["solo_learn"].read(file, Choices(size=8, loss="simclr", temperature=0.1)).encoder
    assert cold.heads.loss == SimCLR(0.1)
    assert encoder.network.mean == (0.5071, 0.4865, 0.4409)
    chosen = FORMATS["solo_learn"].read(file, Choices(size=8, dataset="cifar10", loss="barlow_twins")).encoder
    assert chosen.heads.loss == BarlowTwins()
    assert chosen.network.mean == (0.4914, 0.4822, 0.4465)
    (tmp_path / "args.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"args.json, beside the weights, is not readable JSON"):
        FORMATS["solo_learn"].read(file, Choices())


@pytest.mark.parametrize(
    ("method", "kwargs", "loss"),
    [
        ("barlow_twins", {"lamb": 0.01, "scale_loss": 0.2}, BarlowTwins(0.01, 0.2)),
        ("vicreg", {"sim_loss_weight": 5, "var_loss_weight": 6.0, "cov_loss_weight": 7}, VICReg(5.0, 6.0, 7.0)),
        ("simsiam", {"proj_output_dim": 5}, SimSiam()),
    ],
)
def test_weights_of_the_loss_are_those_beside_the_file(tmp_path, method, kwargs, loss):
    made = {"method": method, "method_kwargs": kwargs, "data": {"dataset": "cifar10"}}
    (tmp_path / "args.json").write_text(json.dumps(made))
    encoder = FORMATS["solo_learn"].read(lightning(STATES[method], tmp_path / "last.ckpt"), Choices(size=8)).encoder
    assert (encoder.heads.loss, encoder.heads.views) == (loss, method)


def test_simsiam_compares_with_its_own_projections():
    objective, params = read(STATES["simsiam"], loss="simsiam").encoder.pretraining()
    assert params.keys() == {"backbone", "projector", "predictor"}
    encoder = read(STATES["simsiam"], loss="simsiam").encoder
    exact, frozen = (trees.astype(tree, jnp.float64) for tree in (params, encoder.frozen))
    keys = jax.random.split(jax.random.key(3), len(IMAGES))
    batch = Batch(jnp.asarray(IMAGES) ** 2 / 100, keys, jnp.arange(len(IMAGES)))
    predictions, projections = (
        jax.vmap(lambda view, network=network: network(exact, frozen, view))(objective.images(batch, jnp.float64))
        for network in (objective.network, objective.target)
    )
    cosines = [
        np.sum(p * z, axis=1) / np.linalg.norm(p, axis=1) / np.linalg.norm(z, axis=1)
        for p, z in zip(np.asarray(predictions), np.asarray(projections)[::-1], strict=True)
    ]
    np.testing.assert_allclose(objective(exact, frozen, batch), -np.mean(cosines), rtol=1e-9)
    with pytest.raises(CheckpointError, match="SimSiam needs a predictor; they were not read"):
        read(STATES["simclr"], loss="simsiam")


def test_the_pretraining_loss_reads_the_heads_and_the_target_network():
    state, slow = STATES["byol"], reference.random_state(2, {"projector": HEADS["byol"]["projector"]}, seed=2)
    state = {**state, **{f"momentum_{name}": array for name, array in slow.items()}}
    objective, params = read(state, loss="byol").encoder.pretraining()
    assert objective.loss == BYOL()
    assert params.keys() == {"backbone", "projector", "predictor"}
    objective, params = read(STATES["simclr"], loss="simclr", temperature=0.5).encoder.pretraining()
    assert (objective.loss, objective.network.method, params.keys()) == (
        SimCLR(0.5),
        "project",
        {"backbone", "projector"},
    )
    with pytest.raises(InfluenceError, match=r"has no known pretraining loss.*--loss"):
        read(STATES["simclr"]).encoder.pretraining()
    with pytest.raises(CheckpointError, match="no momentum_backbone"):
        read(STATES["byol"], loss="byol")
    with pytest.raises(CheckpointError, match="needs a target network and a predictor; they were not read"):
        read(STATES["simclr"], loss="byol")
    with pytest.raises(CheckpointError, match="--temperature belongs to --loss simclr, got --loss byol"):
        read(STATES["byol"], loss="byol", temperature=1.0)


def test_a_head_of_another_form_is_left_and_the_reason_said():
    state = {**STATES["byol"], "projector.9.weight": np.zeros((3, 5)), "projector.9.bias": np.zeros(3)}
    imported = read(state)
    assert imported.encoder.heads is None
    assert (
        imported.unread["projector.… (10 arrays)"] == "its layers are not Linear–(BatchNorm)–ReLU of one hidden width"
    )
    assert imported.unread["predictor.… (8 arrays)"] == "the head below it was not read"


def test_what_does_not_fit_is_refused_with_names():
    state = dict(STATES["simclr"])
    with pytest.raises(CheckpointError, match="Pass --dataset cifar10, cifar100 or imagenet"):
        FORMATS["solo_learn"].read(lightning(state), Choices())
    with pytest.raises(CheckpointError, match="--mean and --std belong together"):
        FORMATS["solo_learn"].read(lightning(state), Choices(mean=(0.0,)))
    del state["backbone.bn1.running_var"]
    state["backbone.layer2.0.conv1.weight"] = np.zeros((4, 3, 3, 3))
    state["backbone.layer9.strange"] = np.zeros(2)
    with pytest.raises(CheckpointError) as refused:
        read(state)
    said = str(refused.value)
    assert "is not that of ResNet-18, width 2, 3×3 stem, padding 2; 3 arrays differ" in said
    assert "bn1.running_var: not in the file" in said
    assert "layer2.0.conv1.weight: [4, 3, 3, 3] in the file gives (3, 3, 3, 4), expected (3, 3, 2, 4)" in said
    assert "layer9.strange: [2] in the file, and no place for it in the network" in said
