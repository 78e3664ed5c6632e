"""Do images that are there twice, equal in every pixel, have low scores? Figure 4, where no one has to judge.

Published: among the lowest scores are duplicates, by eye. CIFAR-100 holds 26 images twice, within its training images,
within its test images, or once in either.

    python -m experiments.study.copies --data-dir DIR                        (an hour of one core, resumable)

An encoder of each method is trained on images with all these copies among them, and scores the copies and other training
images exactly by `Gram`, twice with other noise. Given is how well a low score finds the copies, beside its rivals: AUROC,
average precision, and recall among as many images as there are copies, with intervals over images. Ranks are averaged over
seeds and noise.
"""

import dataclasses
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool

from experiments.study import results
from experiments.study.small import COLUMNS, Pictures, Result, main, minutes, read, shrink
from experiments.study.stability import Stability, accuracy, encoders
from influence_ssl_jax.data import Digits, Tfds, ToInput
from influence_ssl_jax.data.examples import Example, read_all


@dataclasses.dataclass(frozen=True)
class Copies(Stability):
    """At which scale encoders are trained on images and their copies.

    Attributes:
        images: Which data: CIFAR-100, CIFAR-10, which has no equal images, or the bundled digits, which need no download.
        seeds: An encoder each.
        train: Training images, the copies among them.
        scored: Images that are scored, the copies first.
    """

    images: Literal["cifar10", "cifar100", "digits"] = "cifar100"
    seeds: tuple[int, ...] = (0,)
    scored: int = 2048


def with_copies(scale: Copies) -> tuple[Pictures, Bool[np.ndarray, " count"]]:
    """Read training images, first those that occur more than once in test and train, and return which these are.

    Raises:
        ValueError: If no image occurs twice.
    """
    digits = scale.images == "digits"
    source = Digits(scale.pixels, digits=scale.train) if digits else Tfds(scale.images, "test+train", scale.data_dir)
    opened = source.open()
    read_images = [each for each in read_all(opened, range(len(opened))) if isinstance(each, Example)]
    pixels = np.stack([ToInput(*each.image.shape[:2])(each.image) for each in read_images])
    _, kind, count = np.unique(pixels.reshape(len(pixels), -1), axis=0, return_inverse=True, return_counts=True)
    twice = count[kind] > 1
    if not twice.any():
        raise ValueError(f"No image of {scale.images} is there twice.")
    training = np.array([not name.startswith("test") for name in opened.ids()])
    order = np.concatenate([np.flatnonzero(twice), np.flatnonzero(training & ~twice)])[: scale.train]
    chosen = Pictures(shrink(pixels[order], scale.pixels), np.asarray(opened.labels())[order])
    return chosen, twice[order]


def unseen(test: Pictures, pictures: Pictures) -> Pictures:
    """Return the test images that are not among the training images."""
    seen = {each.tobytes() for each in pictures.images}
    return test.of(np.array([each.tobytes() not in seen for each in test.images]))


def compared(trained: dict[str, list[Result]], copies: Bool[np.ndarray, " images"], resamples: int) -> dict[str, Any]:
    """Return how well low values find copies, for every method and column.

    Args:
        trained: What each encoder of a method says of the images: every column [scorings, images].
        copies: Which images are there twice.
        resamples: Bootstrap draws of images.
    """
    record: dict[str, Any] = {"found": {}, "accuracy": {}}
    for method, encoders_of_method in trained.items():
        record["found"][method] = {}
        for column in COLUMNS.values():
            every = np.concatenate([each[column] for each in encoders_of_method])
            ranks = every.argsort(axis=1, kind="stable").argsort(axis=1).mean(axis=0)
            record["found"][method][column] = results.detection(-ranks, copies, resamples)
        record["accuracy"][method] = accuracy(encoders_of_method)
    return record


def find(scale: Copies, resamples: int = 500) -> tuple[dict[str, Any], None]:
    """Train and score what is missing, and ask for the copies."""
    pictures, copies = with_copies(scale)
    trained = encoders(scale, pictures, unseen(read(scale, "test"), pictures))
    by_method = {method: list(of_seed.values()) for method, of_seed in trained.items()}
    took = minutes(each for of_method in by_method.values() for each in of_method)
    return {"minutes": took, **compared(by_method, copies[: scale.scored], resamples)}, None


if __name__ == "__main__":
    main("copies", Copies, find)
