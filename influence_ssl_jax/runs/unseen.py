"""Find test images, and check that training does not see them."""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from influence_ssl_jax import randomness
from influence_ssl_jax.data import (
    SOURCES,
    Folder,
    OpenSource,
    Parquet,
    Shards,
    Source,
    Tfds,
    parquet,
    shards,
)
from influence_ssl_jax.data.listing import find_files
from influence_ssl_jax.data.selection import ORIGINAL, Selection
from influence_ssl_jax.data.tfds import OpenTfds
from influence_ssl_jax.errors import DataError, printable
from influence_ssl_jax.progress import Note
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.runs.settings import Unseen


def describe_test(source: Source, test: Unseen) -> Source | None:
    """Return the description of the test images; None if none are named.

    It is that of the training images with another split, path, or list of ids. The list of the training images never
    applies to the test images.

    Args:
        source: The training images.
        test: In what the test images differ.

    Raises:
        DataError: The source has no such setting.

    Examples:
        >>> from influence_ssl_jax import Tfds
        >>> from influence_ssl_jax.runs.settings import Unseen
        >>> from influence_ssl_jax.runs.unseen import describe_test
        >>> describe_test(Tfds("cifar100"), Unseen(split="test")).split
        'test'
    """
    given = {name: value for name, value in vars(test).items() if value is not None}
    if not given:
        return None
    known = {field.name for field in dataclasses.fields(source)}
    for name in given.keys() - known:
        having = [
            each.__name__.lower() for each in SOURCES if name in {field.name for field in dataclasses.fields(each)}
        ]
        raise DataError(
            f"--test.{name} is for {' and '.join(f'source:{each}' for each in having)}, and the images are those of "
            f"source:{type(source).__name__.lower()}, which has no {name}. --test.only FILE takes some of its images by id."
        )
    return dataclasses.replace(source, **{"only": None, **given})


def open_test(source: Source, train: OpenSource, test: Unseen) -> OpenSource | None:
    """Open the test images; None if none are named.

    Args:
        source: The description of the training images.
        train: The training images.
        test: In what the test images differ.

    Raises:
        DataError: There are none, they have no classes or other ones, or some are training images too.
    """
    described = describe_test(source, test)
    if described is None:
        return None
    opened = described.open()
    if not len(opened):
        raise DataError("There are no test images. Check --test.split, --test.path or --test.only.")
    _refuse_trained(source, train, described, opened)
    _refuse_other_classes(train.class_names(), opened.class_names())
    for name, each in (("training", train), ("test", opened)):
        if not (each.labels() >= 0).any():
            raise DataError(
                f"An accuracy needs classes, and no {name} image has one. Name the class (--source.label, "
                "--source.label-column), or leave the test images out."
            )
    return opened


def _refuse_trained(source: Source, train: OpenSource, described: Source, test: OpenSource) -> None:
    """Check that test images are not training images.

    Raises:
        DataError: Some are.
    """
    whole, other = (dataclasses.replace(each.absolute(), only=None) for each in (source, described))
    if whole == other:
        names = set(train.ids())
        shared = [name for name in test.ids() if name in names]
        if shared:
            raise DataError(
                f"Of {len(test):,} test images, {len(shared):,} are training images too, the first: "
                f"{printable(shared[0])}. An accuracy on images that were trained on says little: name others "
                "(--test.split, --test.path, --test.only), or leave some out of training (--source.only, --leave-out)."
            )
    elif _share_files(source, described):
        raise DataError(
            "The test images are stored in files that are read for training too. Name others, such as the splits "
            "train[:45000] and train[45000:], or two folders of which none is in the other; or divide one set by lists "
            "of ids (--source.only, --test.only)."
        )


def _share_files(source: Source, described: Source) -> bool:
    """Test whether two data sets read common files or records."""
    if isinstance(source, Tfds) and isinstance(described, Tfds):
        one, other = (dataclasses.replace(each, only=None).open() for each in (source, described))
        return isinstance(one, OpenTfds) and isinstance(other, OpenTfds) and one.overlaps(other)
    if isinstance(source, Folder) and isinstance(described, Folder):
        one, other = (Path(each.path).expanduser().resolve() for each in (source, described))
        return one.is_relative_to(other) or other.is_relative_to(one)
    if isinstance(source, Parquet | Shards) and isinstance(described, Parquet | Shards):
        endings = parquet.ENDINGS if isinstance(source, Parquet) else shards.ENDINGS
        one, other = ({file.path for file in find_files(each.path, endings)} for each in (source, described))
        return not one.isdisjoint(other)
    return False


def _refuse_other_classes(train: tuple[str, ...] | None, test: tuple[str, ...] | None) -> None:
    """Check that both sets number their classes alike.

    Raises:
        DataError: They do not.
    """
    if train != test:
        shown = ["numbers" if names is None else ", ".join(map(printable, names[:8])) for names in (train, test)]
        counts = ["" if names is None else f" ({len(names)})" for names in (train, test)]
        raise DataError(
            f"The classes of the training images are {shown[0]}{counts[0]}, those of the test images {shown[1]}{counts[1]}: "
            "the same number would mean another class. Take test images with all classes of the training images, and no "
            "others."
        )


def find_repeated(trained: Collection[bytes], tested: Sequence[tuple[str, bytes]]) -> tuple[str, ...]:
    """Name the test images that have the bytes of a training image.

    Args:
        trained: The digests of the training images.
        tested: Name and digest of every test image.

    Raises:
        DataError: All of them have.
    """
    names = tuple(printable(name) for name, content in tested if content in trained)
    if tested and len(names) == len(tested):
        raise DataError(
            f"Every one of the {len(tested):,} test images has the bytes of a training image, so they are the training "
            "images under other names. Name other test images."
        )
    return names


def note_repeated(names: Sequence[str], tested: int) -> tuple[Note, ...]:
    """Return a note on test images that repeat training images, if any."""
    text = f"{len(names):,} of {tested:,} test images have the bytes of a training image"
    return (Note(f"{text}, the first: {names[0]}", "caution"),) if names else ()


def leave_out(source: OpenSource, share: float, seed: int) -> tuple[Selection, Selection]:
    """Divide images at random into training images and those left out.

    A planted duplicate is on the side of its original.

    Args:
        source: All images.
        share: The share that is left out.
        seed: The seed of the division.

    Returns:
        The images of training, and those that are left out.

    Raises:
        DataError: Nothing would be left on a side.

    Examples:
        >>> import numpy as np
        >>> from influence_ssl_jax.data import Arrays
        >>> from influence_ssl_jax.runs.unseen import leave_out
        >>> train, test = leave_out(Arrays(np.zeros((10, 2, 2))).open(), 0.2, seed=0)
        >>> len(train), len(test), set(train.ids()) & set(test.ids())
        (8, 2, set())
    """
    first = np.arange(len(source))
    attributes = source.attributes() if ORIGINAL in source.truth() else None
    if attributes is not None:
        original = attributes[ORIGINAL].to_numpy()
        first = np.where(original >= 0, original, first)
    order = randomness.generator(seed, Stream.LEFT_OUT).permutation(len(source))
    place = np.empty(len(source), np.int64)
    place[order] = np.arange(len(source))
    # Images in the order of their originals, so that a group is never far from being whole.
    arranged = np.lexsort((np.arange(len(source)), place[first]))
    wanted = round(share * len(source))
    left = np.isin(first, first[arranged[:wanted]])
    if not left.any() or left.all():
        raise DataError(
            f"--leave-out {share} of {len(source)} images leaves no image on one side; choose another share."
        )
    return Selection(source, np.flatnonzero(~left)), Selection(source, np.flatnonzero(left))
