"""Pretrain an encoder into a folder."""

import dataclasses

import jax

from influence_ssl_jax import provenance
from influence_ssl_jax.configuration import describe
from influence_ssl_jax.data import Cached, Example, OpenSource, Source, cache, depth_notes, require_classes
from influence_ssl_jax.data.channel_statistics import STATISTICS, name_known
from influence_ssl_jax.losses import Supervised
from influence_ssl_jax.parallel import first_only, is_first, start
from influence_ssl_jax.progress import Note, Progress, Written, silent
from influence_ssl_jax.runs.settings import PretrainRun
from influence_ssl_jax.runs.unseen import describe_test, find_repeated, leave_out, note_repeated, open_test
from influence_ssl_jax.train import Kept, Pretrain, save
from influence_ssl_jax.train.loop import pretrain as train
from influence_ssl_jax.train.optimisers import describe_rate
from influence_ssl_jax.train.settings import DEFAULT_STATISTICS

CACHED = 2**30
"""Bytes of pixels up to which a single process keeps the whole data set in memory."""


def pretrain(settings: PretrainRun, progress: Progress = silent) -> None:
    """Train an encoder, or resume its training, then write it.

    Args:
        settings: The settings of the run.
        progress: Called at every stage and epoch.

    Raises:
        DataError: The source or the test images cannot be read, a supervised loss or a test lacks classes, or test images
            are training images.
        DivergenceError: The loss is not finite.
        TrainingError: The folder holds another run.
    """
    start(settings.distributed)
    progress = progress if is_first() else silent
    whole = settings.source.open()
    source, test = whole, open_test(settings.source, whole, settings.test)
    if settings.leave_out:
        source, test = leave_out(whole, settings.leave_out, settings.training.seed)
    if isinstance(settings.training.loss, Supervised):
        require_classes(source, settings.training.architecture.output)
    for note in (*whole.notes(), *depth_notes(source, settings.input)):
        progress(Note(note, "caution"))
    training = with_statistics(settings.training, settings.source)
    images = keep_in_memory(source, settings)
    queries = None if test is None or not settings.probe.every else keep_in_memory(test, settings)
    _announce(settings, training, images, queries, progress)
    description = {
        "input": describe(settings.input),
        "source": describe(settings.source.absolute()),
        "data": source.fingerprint(),
        "test": _describe_test(settings),
    }
    names = source.class_names()
    description["classes"] = None if names is None else list(names)
    where = {"versions": provenance.versions(), "device": provenance.device()}
    kept = Kept(settings.out / "encoders", frozenset(settings.keep), {**description, **where})
    trained = train(training, images, settings.input, settings.out, queries, settings.probe, kept, progress)
    files = first_only(lambda: save(settings.out / "encoder", trained, **description, **where))
    if files is not None:
        progress(Written("Encoder", files.arrays))


def keep_in_memory(source: OpenSource, settings: PretrainRun) -> OpenSource:
    """Return decoded images in memory, if they fit.

    Several processes read their parts of the set from the source itself.
    """
    size = len(source) * settings.input.height * settings.input.width * settings.input.channels
    alone = jax.process_count() == 1
    return cache(source, settings.input) if size < CACHED and alone else source


def with_statistics(training: Pretrain, source: Source) -> Pretrain:
    """Return settings with the channel statistics that a source is known by.

    Settings that give statistics stay as they are.

    Examples:
        >>> from influence_ssl_jax import Tfds
        >>> from influence_ssl_jax.runs.pretrain import with_statistics
        >>> from influence_ssl_jax.train import RECIPES
        >>> with_statistics(RECIPES["solo_learn_byol"], Tfds("cifar100")).architecture.mean
        (0.5071, 0.4865, 0.4409)
    """
    if training.architecture.mean is not None:
        return training
    mean, std = STATISTICS[name_known(source) or DEFAULT_STATISTICS]
    return dataclasses.replace(training, architecture=dataclasses.replace(training.architecture, mean=mean, std=std))


def _announce(
    settings: PretrainRun, training: Pretrain, images: OpenSource, test: OpenSource | None, progress: Progress
) -> None:
    """Say which learning rate, channel statistics and test images are used."""
    progress(Note(describe_rate(training.optimiser, training.batch_size)))
    mean, std = (" ".join(f"{value:g}" for value in each) for each in training.architecture.statistics())
    progress(Note(f"Channel statistics {_origin(settings)}: mean {mean}, standard deviation {std}."))
    probe = settings.probe
    if test is None:
        if probe.every:
            hint = "--test.split, --test.path, --test.only, or --leave-out"
            progress(Note(f"No accuracies: they need test images with classes ({hint}).", "detail"))
        return
    asked, voting = min(probe.queries, len(test)), min(probe.bank, len(images))
    progress(Note(f"Accuracies are those of {asked:,} of {len(test):,} test images, by {voting:,} training images."))
    without = [int((each.labels() < 0).sum()) for each in (images, test)]
    if any(without):
        progress(
            Note(f"{without[0]:,} training and {without[1]:,} test images have no class; accuracies leave them out.")
        )
    if settings.leave_out:
        progress(Note(f"{len(test):,} images are left out of training, and {len(images):,} are trained on."))
    if isinstance(images, Cached) and isinstance(test, Cached):
        usable = [[each for each in side.examples if isinstance(each, Example)] for side in (images, test)]
        tested = [(each.id, each.content) for each in usable[1]]
        for note in note_repeated(find_repeated({each.content for each in usable[0]}, tested), len(tested)):
            progress(note)


def _origin(settings: PretrainRun) -> str:
    """Say where channel statistics come from."""
    if settings.training.architecture.mean is not None:
        return "as given"
    name = name_known(settings.source)
    if name is None:
        return f"of {DEFAULT_STATISTICS}, as none are given (--training.architecture.mean, --training.architecture.std)"
    return f"of {name}"


def _describe_test(settings: PretrainRun) -> object:
    """Describe the test images as JSON; None if there are none."""
    if settings.leave_out:
        return {"leave_out": settings.leave_out}
    described = describe_test(settings.source, settings.test)
    return None if described is None else describe(described.absolute())
