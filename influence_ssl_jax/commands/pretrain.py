"""`influence-ssl pretrain`."""

import dataclasses
import functools
import operator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import tyro
from rich.console import Console

from influence_ssl_jax.data import AnySource, Digits, ToInput
from influence_ssl_jax.parallel import Distributed
from influence_ssl_jax.train.evaluation import Probe
from influence_ssl_jax.train.recipes import RECIPES
from influence_ssl_jax.train.settings import Pretrain

if TYPE_CHECKING:
    Recipe: TypeAlias = Pretrain
else:  # one sub-command for each entry of the one list; loss and optimiser are the recipe's
    _named = (
        Annotated[
            tyro.conf.AvoidSubcommands[Pretrain],
            tyro.conf.subcommand(
                name.replace("_", "-"),
                default=recipe,
                description=f"{type(recipe.loss).__name__}, views {recipe.views}, {recipe.epochs} epochs in batches of "
                f"{recipe.batch_size}.",
            ),
        ]
        for name, recipe in RECIPES.items()
    )
    Recipe = functools.reduce(operator.or_, _named)


@dataclasses.dataclass(frozen=True)
class PretrainCommand:
    """Train an encoder without labels, by SimCLR, BYOL or Barlow Twins (or with labels, the supervised baseline).

    A run that was stopped goes on from its last whole epoch when the same command is given again.

    influence-ssl pretrain --out runs/simclr source:tfds --source.name cifar10

    influence-ssl pretrain --out runs/byol source:folder --source.path faces training:table3-byol --training.epochs 100

    Attributes:
        out: Folder of the run: checkpoints, metrics.jsonl (one line an epoch), and the encoder that `score` reads.
        source: The images. Labels, where there are any, are read by the accuracy probe alone.
        training: A recipe, by name: loss, views, network, optimiser and duration, each of which can be changed.
        input: How an image becomes the network's input.
        probe: The nearest-neighbour and linear accuracy after each epoch.
        distributed: For a run of several processes, where no scheduler says who they are.
    """

    out: Path
    source: AnySource = dataclasses.field(default_factory=Digits)
    training: Recipe = dataclasses.field(default_factory=lambda: RECIPES["solo_learn_simclr"])
    input: ToInput = dataclasses.field(default_factory=ToInput)
    probe: Probe = dataclasses.field(default_factory=Probe)
    distributed: Distributed = dataclasses.field(default_factory=Distributed)

    def run(self, out: Console) -> None:
        """Train or go on, then write the encoder."""
        import jax

        from influence_ssl_jax import provenance  # what follows loads orbax: seconds
        from influence_ssl_jax.configuration import describe
        from influence_ssl_jax.data import cached
        from influence_ssl_jax.parallel import first_only, is_first, start
        from influence_ssl_jax.train import pretrain, save

        start(self.distributed)
        out = out if is_first() else Console(quiet=True)
        opened = self.source.open()
        for note in opened.notes():
            out.print(f"note: {note}", highlight=False, markup=False)
        small = len(opened) * self.input.height * self.input.width * self.input.channels < 2**30
        alone = jax.process_count() == 1  # of several processes none holds the whole set
        images = cached(opened, self.input) if small and alone else opened
        trained = pretrain(self.training, images, self.input, self.out, probe=self.probe, console=out)
        made = {"input": describe(self.input), "source": describe(self.source), "data": opened.fingerprint()}
        where = {"versions": provenance.versions(), "device": provenance.device()}
        files = first_only(lambda: save(self.out / "encoder", trained, **made, **where))
        if files is not None:
            out.print(f"Encoder: {files.arrays}", highlight=False, markup=False, soft_wrap=True)
