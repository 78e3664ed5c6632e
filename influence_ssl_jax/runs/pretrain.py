"""Pretrain an encoder into a folder."""

import jax

from influence_ssl_jax import provenance
from influence_ssl_jax.configuration import describe
from influence_ssl_jax.data import cache, depth_notes, require_classes
from influence_ssl_jax.losses import Supervised
from influence_ssl_jax.parallel import first_only, is_first, start
from influence_ssl_jax.progress import Note, Progress, Written, silent
from influence_ssl_jax.runs.settings import PretrainRun
from influence_ssl_jax.train import save
from influence_ssl_jax.train.loop import pretrain as train

CACHED = 2**30
"""Bytes of pixels up to which a single process keeps the whole data set in memory."""


def pretrain(settings: PretrainRun, progress: Progress = silent) -> None:
    """Train an encoder, or resume its training, then write it.

    Args:
        settings: The settings of the run.
        progress: Called at every stage and epoch.

    Raises:
        DataError: The source cannot be read, or a supervised loss lacks classes.
        DivergenceError: The loss is not finite.
        TrainingError: The folder holds another run.
    """
    start(settings.distributed)
    progress = progress if is_first() else silent
    source = settings.source.open()
    if isinstance(settings.training.loss, Supervised):
        require_classes(source, settings.training.architecture.output)
    for note in (*source.notes(), *depth_notes(source, settings.input)):
        progress(Note(note, "caution"))
    size = len(source) * settings.input.height * settings.input.width * settings.input.channels
    alone = jax.process_count() == 1  # several processes read their parts of the set
    images = cache(source, settings.input) if size < CACHED and alone else source
    trained = train(settings.training, images, settings.input, settings.out, probe=settings.probe, progress=progress)
    description = {
        "input": describe(settings.input),
        "source": describe(settings.source.absolute()),
        "data": source.fingerprint(),
    }
    names = source.class_names()
    description["classes"] = None if names is None else list(names)
    where = {"versions": provenance.versions(), "device": provenance.device()}
    files = first_only(lambda: save(settings.out / "encoder", trained, **description, **where))
    if files is not None:
        progress(Written("Encoder", files.arrays))
