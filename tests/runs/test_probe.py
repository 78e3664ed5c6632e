"""The accuracies of an encoder through the command line, against those of numpy on its own embeddings."""

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import influence_ssl_jax as isj
from influence_ssl_jax.cli import main
from influence_ssl_jax.encoder import Encoder
from influence_ssl_jax.errors import DataError, InfluenceError
from influence_ssl_jax.nets.linear import Linear
from influence_ssl_jax.runs.probe import ProbeRun, probe
from influence_ssl_jax.runs.settings import Unseen
from influence_ssl_jax.train.linear_evaluation import LinearEvaluation
from influence_ssl_jax.train.probes import Labelled
from tests.small_encoder import load
from tests.train.test_linear_evaluation import by_hand


def written(folder, images, labels):
    """Images with the channel of their class raised, and their table."""
    folder.mkdir()
    rows = ["file,kind"]
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{'abc'[label]}")
    (folder / "classes.csv").write_text("\n".join(rows))


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root, draw = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    for name, count in (("train", 30), ("test", 12)):
        labels = np.arange(count) % 3
        images = draw.integers(0, 200, (count, 8, 8, 3), dtype=np.uint8)
        images[np.arange(count), ..., labels] += 50
        written(root / name, images, labels)
    return root


@functools.cache
def encoder():
    """The network of `tests.small_encoder:load`, compiled once."""
    return load()


def typed(sets, *more):
    source = ["source:folder", "--source.path", str(sets / "train"), "--source.table", str(sets / "train/classes.csv")]
    test = ["--test.path", str(sets / "test"), "--test.table", str(sets / "test/classes.csv")]
    settings = ["--linear.epochs", "3", "--linear.decay-epochs", "2", "--neighbours", "5", "--batch-size", "8"]
    return ["probe", *settings, *test, *more, *source, "--source.label-column", "kind"]


def run(*words):
    out, err = Console(width=300), Console(width=300)
    with out.capture() as said, err.capture() as complained:
        status = main.run(words, out, err)
    return status, said.get() + complained.get()


def pixels(sets, name, count):
    images = [np.asarray(Image.open(sets / name / f"{number}.png")) / 255 for number in range(count)]
    return np.asarray(encoder()(jnp.asarray(images, jnp.float32)), np.float64), np.arange(count) % 3


def vote(known, labels, asked):
    """The weighted vote of the 5 nearest, as tests/train/test_probes.py has it."""
    guesses = []
    for query in asked:
        cosines = known @ query / np.linalg.norm(known, axis=1) / np.linalg.norm(query)
        nearest = np.argsort(-cosines)[:5]
        guesses.append(np.argmax(np.bincount(labels[nearest], np.exp(cosines[nearest] / 0.07), minlength=3)))
    return np.asarray(guesses)


def softmax_by_sgd(known, labels, seed=0):
    settings = LinearEvaluation(epochs=3, decay_epochs=(2,), seed=seed)
    return by_hand(Labelled(known, labels), settings)[0]


def test_accuracies_are_those_of_the_encoders_own_embeddings(sets, tmp_path):
    file = tmp_path / "small.json"
    status, said = run(*typed(sets, "--encoder", "tests.small_encoder:load", "--out", str(file)))
    assert status == 0, said
    record = json.loads(file.read_text())
    known, labels = pixels(sets, "train", 30)
    asked, truth = pixels(sets, "test", 12)
    weights = softmax_by_sgd(known, labels)
    accuracies = record["accuracies"]
    assert accuracies["knn"] == np.mean(vote(known, labels, asked) == truth)
    assert accuracies["linear"] == np.mean(np.argmax(asked @ weights[:-1] + weights[-1], axis=1) == truth)
    assert accuracies["linear_top5"] is None  # of three classes one is always among five
    assert record["counts"] == {
        "training": 30, "test": 12, "classes": 3, "skipped_training": 0, "skipped_test": 0
    }  # fmt: skip
    assert record["configuration"]["linear"]["learning_rate"] == 0.3
    assert record["configuration"]["test"]["path"] == str(sets / "test")
    assert record["encoder"]["encoder"] == encoder().digest()
    assert record["versions"]["jax"]
    assert record["seeds"] == {"seed": 0}
    assert (
        f"linear {accuracies['linear']:.4f} · knn {accuracies['knn']:.4f}, of 12 test images by 30 training images"
        in said
    )

    before = file.read_bytes()
    status, said = run(*typed(sets, "--encoder", "tests.small_encoder:load", "--out", str(file)))
    assert (status, file.read_bytes()) == (0, before)
    assert "Nothing to do" in said
    status, said = run(*typed(sets, "--encoder", "tests.small_encoder:load", "--out", str(file), "--linear.seed", "1"))
    assert status == 2
    assert "holds the accuracies of another probe" in said
    assert "configuration.linear.seed: 0 → 1" in said


def test_the_result_stands_beside_a_saved_encoder(sets, tmp_path):
    variables = {"params": {"dense": {"kernel": np.eye(192, 4, dtype=np.float32)}}}
    Encoder.from_linen(Linear(4), variables, input=isj.ToInput(8, 8)).save(tmp_path / "encoder")
    status, said = run(*typed(sets, "--encoder", str(tmp_path / "encoder")))
    assert status == 0, said
    assert set(json.loads((tmp_path / "encoder" / "probe.json").read_text())["accuracies"]) == {
        "linear",
        "linear_top5",
        "knn",
    }


def test_what_cannot_be_measured_is_refused(sets, tmp_path):
    status, said = run(*typed(sets, "--encoder", "tests.small_encoder:load"))
    assert status == 2
    assert "names a function, which has no folder. Name the file of the result: --out" in said
    with pytest.raises(DataError, match=r"An accuracy needs test images\. Name them"):
        probe(ProbeRun(encoder()))
    train = isj.Folder(str(sets / "train"), str(sets / "train/classes.csv"), label_column="kind")
    same = Unseen(path=str(sets / "train"))
    with pytest.raises(DataError, match="30 are training images too"):
        probe(ProbeRun(encoder(), train, same))
    named = Unseen(path=str(sets / "test"), table=str(sets / "test/classes.csv"))
    with pytest.raises(InfluenceError, match="projector"):
        probe(ProbeRun(encoder(), train, named, output="projector"))


def test_unusable_images_and_repeated_ones_are_counted(sets, tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    written(tmp_path / "test", images, np.arange(6) % 3)
    (tmp_path / "test" / "4.png").write_bytes(b"no image")
    (tmp_path / "test" / "5.png").write_bytes((sets / "train" / "5.png").read_bytes())
    train = isj.Folder(str(sets / "train"), str(sets / "train/classes.csv"), label_column="kind")
    named, notes = Unseen(path=str(tmp_path / "test"), table=str(tmp_path / "test/classes.csv")), []
    settings = ProbeRun(encoder(), train, named, linear=LinearEvaluation(epochs=1), batch_size=8)
    record = probe(settings, lambda event: notes.append(getattr(event, "text", "")))
    assert (record["counts"]["test"], record["counts"]["skipped_test"]) == (5, 1)
    assert record["configuration"]["encoder"] is None
    assert any(text.startswith("1 test images could not be used, the first: 4.png") for text in notes)
    assert "1 of 5 test images have the bytes of a training image, the first: 5.png" in notes
