"""A file of weights becomes a folder that can be scored, by commands; what cannot be is refused in words."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from influence_ssl_jax.checkpoint import CheckpointError
from influence_ssl_jax.checkpoints import Choices, read
from influence_ssl_jax.cli import main
from influence_ssl_jax.encoder import Encoder
from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.losses import SimCLR
from influence_ssl_jax.runs.prepare import load_encoder

FILES = Path(__file__).parents[1] / "checkpoints" / "files"
COMMITTED = Path(__file__).parents[2] / "experiments" / "encoders" / "simclr_torch_w16_cifar10"
REAL = Path(__file__).parents[3] / "shared" / "data" / "weights" / "simclr_resnet18w16_cifar10.ckpt"
"""The file that the committed encoder was made of, which lies beside the project on some machines."""


def run(*arguments):
    out, err = Console(width=300, force_terminal=False), Console(width=300, force_terminal=False)
    with out.capture() as said, err.capture() as complained:
        status = main.run([str(argument) for argument in arguments], out, err)
    return status, said.get(), complained.get()


def test_an_import_says_what_it_found_and_is_scored(tmp_path):
    (tmp_path / "history.json").write_text(json.dumps({"epochs": 3}))
    options = ["--dataset", "cifar10", "--loss", "simclr", "--temperature", "0.5", "--size", "8"]
    notes = ["--notes", tmp_path / "history.json"]
    status, said, complained = run(
        "import", FILES / "solo_learn_simclr.ckpt", "--out", tmp_path / "net", *options, *notes
    )
    assert (status, complained) == (0, "")
    assert said.splitlines()[:-1] == [
        "layout: solo-learn's Lightning checkpoint (--as solo_learn)",
        "network: ResNet-18, width 2, 3×3 stem, padding 2",
        "projector: (Linear–ReLU) × 1, Linear: hidden 7, output 5",
        "pretraining loss: SimCLR(temperature=0.5), views simclr",
        "input: bicubic to 8×8; mean 0.4914, 0.4822, 0.4465; deviation 0.247, 0.2435, 0.2616",
        "parameters: 11,250",
        "not read: classifier.… (2 arrays): beside the encoder",
        "not read: epoch: 3",
        "not read: pytorch-lightning_version: '2.1.2'",
    ]
    held = json.loads((tmp_path / "net" / "encoder.json").read_text())
    assert (held["history"], held["source"]) == ({"epochs": 3}, "solo_learn_simclr.ckpt")
    encoder = load_encoder(tmp_path / "net")
    assert encoder.heads.loss == SimCLR(0.5)
    status, _, complained = run("import", FILES / "dino.pth", "--out", tmp_path / "net", "--heads", "2")
    assert status == 2
    assert "already holds an encoder" in complained

    source = ["source:digits", "--source.size", "8", "--source.digits", "12"]
    small = ["--curvature.examples", "8", "--curvature.batch-size", "4", "--draws", "1"]
    places = ["--encoder", tmp_path / "net", "--out", tmp_path / "scores"]
    status, said, complained = run(
        "score", *places, "--trainable", "layer4_1", "!bn2", *small, "backend:identity", *source
    )
    assert (status, complained) == (0, "")
    kept = 2 * 9 * 16 * 16 + 2 * 16
    assert f"Parameters: {kept:,} of 11,250 count (layer4_1, !bn2)." in said
    record = json.loads((tmp_path / "scores" / "run.json").read_text())
    assert record["encoder"] == {"name": "solo_learn_simclr", "parameters": 11_250, "trained_parameters": kept}
    assert record["identity"]["network"]["trainable"] == ["layer4_1", "!bn2"]


def test_every_place_an_encoder_can_be(tmp_path, monkeypatch):
    run("import", FILES / "dinov3.pth", "--out", tmp_path / "net.v1", "--size", "16")
    saved, direct = load_encoder(tmp_path / "net.v1" / "encoder.npz"), load_encoder(FILES / "dinov3.pth")
    jax.tree.map(np.testing.assert_array_equal, saved.params, direct.params)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "of_mine.py").write_text(
        "from influence_ssl_jax.encoder import Encoder\n\ndef make(size=3, *more):\n    return Encoder.load('net.v1')\n"
        "def asks(size, depth=2, *, width):\n    return make()\n"
    )
    for place in ("of_mine:make", "net.v1", "net.v1/encoder", "net.v1/encoder.json"):
        assert load_encoder(Path(place)).digest() == saved.digest()
    for place, said in {
        "absent.ckpt": "There is no file absent.ckpt",
        "absent": "There is no absent. An encoder is a folder of",
    }.items():
        with pytest.raises(CheckpointError, match=said):
            load_encoder(Path(place))
    with pytest.raises(CheckpointError, match=r"mae.pth --out FOLDER`; then give --encoder FOLDER"):
        load_encoder(FILES / "mae.pth")
    with pytest.raises(
        InfluenceError, match=r"of_mine:asks asks for arguments \(size, width\); name a function without"
    ):
        load_encoder(Path("of_mine:asks"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([FILES / "solo_learn_simclr.ckpt"], "Pass --dataset cifar10, cifar100 or imagenet"),
        ([FILES / "timm.safetensors"], "Name it with --as, one of"),
        ([FILES / "expected.npz"], "compressed members"),
        ([FILES / "absent.pth"], "There is no file"),
        ([FILES / "dino.pth", "--heads", "3"], "3 heads cannot share 16 channels"),
        ([FILES / "dino.pth", "--heads", "2", "--size", "30"], "30×30 pixels cannot be cut into patches of 4"),
        (
            [FILES / "dino.pth", "--heads", "2", "--notes", "absent.json"],
            "--notes absent.json is not a readable JSON file",
        ),
    ],
)
def test_what_cannot_be_imported_is_refused_in_words_and_leaves_nothing(tmp_path, arguments, said):
    status, _, complained = run("import", *arguments, "--out", tmp_path / "net")
    assert status == 2
    assert said in complained
    assert not (tmp_path / "net").exists()


def test_an_import_into_a_file_is_refused(tmp_path):
    (tmp_path / "net").touch()
    status, _, complained = run("import", FILES / "torchvision.pth", "--out", tmp_path / "net")
    assert (status, (tmp_path / "net").read_bytes()) == (2, b"")
    assert "net is a file; --out names the folder" in complained


def test_the_committed_encoder_is_whole():
    committed = Encoder.load(COMMITTED)
    assert committed.notes["history"]["history"][-1]["knn"] == pytest.approx(0.6465, abs=1e-6)
    assert committed.network.module.backbone.stem == "solo_learn"
    assert committed.pretraining()[0].loss == SimCLR(0.2)
    assert (COMMITTED / "encoder.npz").stat().st_size < 2e6


def test_the_committed_encoder_is_that_of_its_file():
    if not REAL.exists():
        pytest.skip("the file that the committed encoder was made of is not on this machine")
    committed = Encoder.load(COMMITTED)
    whole = read(REAL, choices=Choices(dataset="cifar10", loss="simclr")).encoder
    ours, theirs = (encoder.variables()["params"] for encoder in (committed, whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-11, atol=2**-25), ours, theirs)
    jax.tree.map(np.testing.assert_array_equal, committed.frozen, whole.frozen)
