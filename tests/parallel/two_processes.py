"""Run by `test_processes.py` as each of several processes: pretrain for an epoch, then score, on CPU collectives.

Two further encoders, `first` and `second` beside the folders, are scored together.
"""

import dataclasses
import itertools
import sys
from pathlib import Path

import jax

from influence_ssl_jax.data import Synthetic
from influence_ssl_jax.ihvp import Identity, LoGra
from influence_ssl_jax.losses import SimCLR
from influence_ssl_jax.parallel import Distributed, mesh
from influence_ssl_jax.runs.pretrain import pretrain
from influence_ssl_jax.runs.score import score
from influence_ssl_jax.runs.settings import CurvatureSet, Parts, PretrainRun, ScoreRun
from influence_ssl_jax.scoring.scores import Scoring
from influence_ssl_jax.train import Probe, export
from tests.train.small import INPUT, Small, small

SOURCE = Synthetic(count=230, size=8)


class Interleaved:
    """JAX on a platform that lists devices as a TPU slice may: those of a process do not stand together."""

    def __getattr__(self, name: str) -> object:
        return getattr(jax, name)

    def devices(self) -> list:
        """One of each process, then the next one of each."""
        listed = sorted(jax.devices(), key=lambda each: each.process_index)
        of_process = [list(group) for _, group in itertools.groupby(listed, lambda each: each.process_index)]
        return [each for row in zip(*of_process, strict=True) for each in row]


def main(encoder: Path, coordinator: str, processes: int, process: int, folders: list[Path]) -> None:
    """Both commands in every folder, as one process of several or as the only one; all score with one encoder."""
    jax.config.update("jax_disable_most_optimizations", True)
    export.Pretrain = Small
    who = Distributed(coordinator, processes, process) if processes > 1 else Distributed()
    mesh.jax = Interleaved()  # in this package alone: JAX's own helpers count on its order
    for folder in folders:
        run(folder, encoder, who)


def run(folder: Path, encoder: Path, who: Distributed) -> None:
    """Pretrain, then score, each by its command."""
    training = small(SimCLR(0.5), epochs=1, batch_size=48)
    probe = Probe(bank=8, queries=8, neighbours=1, linear=0)
    pretrain(PretrainRun(folder / "encoder", SOURCE, training, INPUT, probe=probe, distributed=who))
    scored = ScoreRun(
        encoder,
        folder / "scores",
        SOURCE,
        curvature=CurvatureSet(examples=24, batch_size=8),
        backend=LoGra(rank=2),
        scoring=Scoring(draws=2, batch_size=10),
        parts=Parts(32),
        distributed=who,
    )
    score(scored)
    score(scored)  # nothing is left to do, and every process knows
    first, second = (folder.parent / name for name in ("first", "second"))
    together = dataclasses.replace(
        scored, encoder=first, also=(second,), out=folder / "together", backend=Identity(probes=1)
    )
    score(together)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), [Path(path) for path in sys.argv[5:]])
