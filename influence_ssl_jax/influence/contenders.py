"""Which backends are compared, each over its main knob."""

import dataclasses

from influence_ssl_jax.configuration import Plain, describe
from influence_ssl_jax.ihvp import (
    CG,
    EKFAC,
    KFAC,
    Arnoldi,
    Backend,
    Deflated,
    Diagonal,
    Identity,
    LiSSA,
    LoGra,
    Nystrom,
)


@dataclasses.dataclass(frozen=True)
class Knobs:
    """What is varied.

    Attributes:
        ranks: Eigenpairs of Arnoldi, Nyström and Deflated.
        projections: Size of each side's basis of LoGra.
        iterations: Steps of CG. A product with C for each step and draw: name none on a large network without an
            accelerator.
        depths: Steps of LiSSA; as CG.
        samples: Draws per example of EK-FAC, K-FAC, LoGra, the diagonal and Deflated.
        probes: Random vectors for what Arnoldi and Nyström leave out.
        deflated: Further ranks of Deflated alone, whose scores take no product with C: only fitting gets longer.
    """

    ranks: tuple[int, ...] = (16, 64)
    projections: tuple[int, ...] = (8, 16)
    iterations: tuple[int, ...] = (10, 30)
    depths: tuple[int, ...] = (100,)
    samples: int = 4
    probes: int = 16
    deflated: tuple[int, ...] = ()


def contenders(knobs: Knobs) -> list[Backend]:
    """Every scalable backend, cheap ones first."""
    samples, probes = knobs.samples, knobs.probes
    found: list[Backend] = [Identity(probes=probes), Diagonal(samples=samples), KFAC(samples=samples)]
    found += [EKFAC(samples=samples)]
    for rank in knobs.projections:
        found += [LoGra(rank, samples=samples), LoGra(rank, complement="keep", samples=samples)]
    for rank in knobs.ranks:
        found += [Arnoldi(rank, probes=probes), Arnoldi(rank, complement="drop", probes=probes)]
        found += [Nystrom(rank, complement="mean"), Deflated(rank, samples=samples)]
    found += [Deflated(rank, samples=samples) for rank in knobs.deflated]
    found += [CG(tolerance=0.0, iterations=steps, probes=probes) for steps in knobs.iterations]
    return found + [LiSSA(depth, probes=probes) for depth in knobs.depths]


def label(backend: Backend) -> str:
    """A backend in a word or two: its name, its knob, and what it does with the rest."""
    return _words(describe(backend))


def _words(settings: Plain) -> str:
    words = [
        settings["class"],
        *(str(settings[name]) for name in ("rank", "iterations", "depth") if settings.get(name)),
    ]
    if settings.get("complement") == "drop":
        words.append("dropped")
    if settings.get("preconditioner"):
        words.append(f"by {_words(settings['preconditioner'])}")
    return " ".join(words)
