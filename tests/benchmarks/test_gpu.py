"""The benchmark for GPUs at its smallest: steps are done once, cut off in time, and go on; images survive their files."""

import dataclasses
import json
import sys

import numpy as np
import pytest

from benchmarks import gpu

TINY = gpu.Config(images=8, width=4, batch=4, curvature=4, size=4, network="linear", peak_tflops=2.0)


def writes(config, step, **entries):
    """The command of a process that writes what a step found and says that it ran."""
    record = json.dumps({**entries, "finished": True, "settings": config.settings()})
    written, ran = str(config.out / f"{step}.json"), str(config.out / "ran")
    return [sys.executable, "-c", f"open({written!r}, 'w').write({record!r}); open({ran!r}, 'a').write('1')"]


def test_a_step_that_is_done_is_not_run_again_and_one_that_fails_is_named(tmp_path, capsys):
    config = dataclasses.replace(TINY, out=tmp_path, steps=("LoGra", "Gram"))
    commands = {"LoGra": writes(config, "LoGra", seconds=3), "Gram": [sys.executable, "-c", "raise SystemExit('no')"]}
    assert gpu.complete(config, commands.__getitem__) == ["Gram"]
    assert (tmp_path / "Gram.log").read_text() == "no\n"
    commands["Gram"] = writes(config, "Gram", seconds=4)
    assert gpu.complete(config, commands.__getitem__) == []
    assert (tmp_path / "ran").read_text() == "11"
    assert '"seconds": 4' in capsys.readouterr().out
    with pytest.raises(ValueError, match="choose another --out"):
        gpu.complete(dataclasses.replace(config, width=8), commands.__getitem__)


def test_a_call_ends_in_time_and_says_how_far_pretraining_is(tmp_path):
    config = dataclasses.replace(TINY, out=tmp_path, steps=("pretrain", "LoGra"), minutes=0.005)
    (tmp_path / "pretrain").mkdir()
    rows = [{"epoch": 0, "knn": 0.1}] + [
        {"epoch": n, "loss": 5.0 - n, "seconds": 2.0, "images_per_second": 100.0 * n, "knn": 0.2} for n in (1, 2, 3)
    ]
    (tmp_path / "pretrain" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert gpu.complete(config, lambda _: [sys.executable, "-c", "import time; time.sleep(60)"]) == []
    record = json.loads((tmp_path / "pretrain.json").read_text())
    assert (record["epochs"], record["seconds"], record["images a second, median"]) == (3, 6.0, 200.0)
    assert (record["loss"], record["knn"], record["finished"]) == (2.0, 0.2, False)
    assert not (tmp_path / "LoGra.json").exists()  # no time was left


def test_a_score_is_timed_beside_the_gradient_and_the_share_of_the_peak_is_its_arithmetic():
    measured = gpu.measure(TINY, "Gram")
    count, size, rows = 8, measured["parameters"], measured["curvature images"]
    assert (measured["images"], rows, size, measured["finite and positive"]) == (count, 4, 4 * 4 * 3 * 4, count)
    gradient, score = (measured[name]["seconds"] for name in ("gradient", "score"))
    assert measured["score in gradients"] == pytest.approx(score / gradient)
    needed = measured["tflops"]["gradient"] * gradient
    assert needed * 1e12 > 2 * 2 * 2 * size * count  # forwards and for the weights, of two views, is some of it
    assert measured["tflops"]["score"] * score == pytest.approx(needed + 2 * rows * size * count / 1e12)
    assert measured["share of peak"]["score"] == pytest.approx(measured["tflops"]["score"] / 2.0)
    assert min(measured[name]["compile seconds"] for name in ("gradient", "fit", "score")) > 0


def test_the_first_name_that_fits_gives_the_peak():
    kinds = ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "cpu")
    assert [gpu._peak(kind, "tensorfloat32") for kind in kinds] == [494.0, 378.0, None]
    assert gpu._peak("NVIDIA H200", "highest") == 67.0


def test_the_files_hold_the_images(tmp_path):
    config = dataclasses.replace(TINY, out=tmp_path, images=5)
    assert gpu.measure(config, "files")["images"] == 5
    images, again = gpu.source(config), gpu.source(dataclasses.replace(config, data_dir=tmp_path))
    for index in range(5):
        np.testing.assert_array_equal(again.read(index).image, images.read(index).image)
    np.testing.assert_array_equal(again.labels(), images.labels())
    assert list(again.ids()) == list(images.ids())


def test_an_unknown_step_is_refused():
    with pytest.raises(ValueError, match="known are files, LoGra"):
        gpu.Config(steps=("lora",))
