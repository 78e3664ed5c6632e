import io
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

CLASSES = ("circle", "square")


def png(image: np.ndarray) -> io.BytesIO:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    stream.seek(0)
    return stream


def tiny_pixels(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (6, 5, 3), dtype=np.uint8)


class TinyShapes(tfds.core.GeneratorBasedBuilder):
    """Nested scalars, class names, ids; handed PNG bytes, tensorflow-datasets needs no TensorFlow to write them."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image_id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=CLASSES),
            "taken": {"year": np.int32, "indoors": np.bool_},
            "caption": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {"train": self._examples(range(11)), "test": self._examples(range(100, 103))}

    def _generate_examples(self):
        raise NotImplementedError

    def _examples(self, numbers):
        for k in numbers:
            broken = io.BytesIO(png(tiny_pixels(k)).getvalue()[:60])
            yield (
                f"key{k:03d}",
                {
                    "image_id": f"shape_{k:03d}",
                    "image": broken if k == 4 else png(tiny_pixels(k)),
                    "label": k % 2,
                    "taken": {"year": 2000 + k, "indoors": k % 3 == 0},
                    "caption": "a shape",
                },
            )


class TinyNumbers(tfds.core.GeneratorBasedBuilder):
    """A data set without images."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"x": np.int32}))

    def _split_generators(self, _):
        return {"train": iter([(0, {"x": 1})])}

    def _generate_examples(self):
        raise NotImplementedError


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> pathlib.Path:
    """A folder of data sets as tensorflow-datasets prepares them: 11 + 3 tiny images, the one numbered 4 truncated."""
    folder = tmp_path_factory.mktemp("tfds")
    for builder in (TinyShapes, TinyNumbers):
        builder(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture
def photos(tmp_path) -> pathlib.Path:
    """FairFace's layout: train/1.jpg … train/12.jpg and two in val, with a table beside the folders."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 2)):
        (tmp_path / split).mkdir()
        rows = ["file,age,gender,service_test"]
        for k in range(1, count + 1):
            image = rng.integers(0, 256, (8, 8 + k % 3, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / split / f"{k}.jpg", quality=90)
            rows.append(f"{split}/{k}.jpg,{10 * (k % 4)}-{10 * (k % 4) + 9},{'Male' if k % 2 else 'Female'},TRUE")
        (tmp_path / f"fairface_label_{split}.csv").write_text("\n".join(rows) + "\n")
    return tmp_path
