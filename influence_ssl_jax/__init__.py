"""Compute influence functions of self-supervised learning, with exact references.

`score` does the main job; its result carries the table, the audit and the report. The public names are loaded at their
first use, so `import influence_ssl_jax` takes no time.

Examples:
    >>> import influence_ssl_jax as isj
    >>> isj.EKFAC(rank=8).rank
    8
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from influence_ssl_jax.augment.noise import GaussianNoise
    from influence_ssl_jax.data import Arrays, Digits, Folder, Parquet, Shards, Synthetic, Tfds, ToInput, resident
    from influence_ssl_jax.encoder import Encoder
    from influence_ssl_jax.errors import InfluenceError
    from influence_ssl_jax.evaluation.calibration import Calibration
    from influence_ssl_jax.evaluation.certificate import Audit
    from influence_ssl_jax.ihvp import (
        ASTRA,
        CG,
        EKFAC,
        KFAC,
        Arnoldi,
        Damping,
        Deflated,
        Diagonal,
        Exact,
        Gram,
        Identity,
        LiSSA,
        LoGra,
        Nystrom,
    )
    from influence_ssl_jax.losses import BYOL, BarlowTwins, CosineDistance, SimCLR, SquaredEuclid
    from influence_ssl_jax.nets import Network
    from influence_ssl_jax.problem import Objective, Problem
    from influence_ssl_jax.runs.run import Run, score
    from influence_ssl_jax.runs.settings import Augmentation, CurvatureSet
    from influence_ssl_jax.scoring import Scoring, self_influence

_PLACES = {
    "augment.noise": ("GaussianNoise",),
    "data": ("Arrays", "Digits", "Folder", "Parquet", "Shards", "Synthetic", "Tfds", "ToInput", "resident"),
    "encoder": ("Encoder",),
    "errors": ("InfluenceError",),
    "evaluation.calibration": ("Calibration",),
    "evaluation.certificate": ("Audit",),
    "ihvp": (
        "ASTRA",
        "CG",
        "EKFAC",
        "KFAC",
        "Arnoldi",
        "Damping",
        "Deflated",
        "Diagonal",
        "Exact",
        "Gram",
        "Identity",
        "LiSSA",
        "LoGra",
        "Nystrom",
    ),
    "losses": ("BYOL", "BarlowTwins", "CosineDistance", "SimCLR", "SquaredEuclid"),
    "nets": ("Network",),
    "problem": ("Objective", "Problem"),
    "runs.run": ("Run", "score"),
    "runs.settings": ("Augmentation", "CurvatureSet"),
    "scoring": ("Scoring", "self_influence"),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "ASTRA",
    "BYOL",
    "CG",
    "EKFAC",
    "KFAC",
    "Arnoldi",
    "Arrays",
    "Audit",
    "Augmentation",
    "BarlowTwins",
    "Calibration",
    "CosineDistance",
    "CurvatureSet",
    "Damping",
    "Deflated",
    "Diagonal",
    "Digits",
    "Encoder",
    "Exact",
    "Folder",
    "GaussianNoise",
    "Gram",
    "Identity",
    "InfluenceError",
    "LiSSA",
    "LoGra",
    "Network",
    "Nystrom",
    "Objective",
    "Parquet",
    "Problem",
    "Run",
    "Scoring",
    "Shards",
    "SimCLR",
    "SquaredEuclid",
    "Synthetic",
    "Tfds",
    "ToInput",
    "resident",
    "score",
    "self_influence",
]


def __getattr__(name: str) -> Any:
    """Load a public name or the package's version at first use."""
    if name == "__version__":
        return importlib.metadata.version("influence-ssl-jax")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}.")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return [*__all__, "__version__"]
