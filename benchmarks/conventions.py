"""What each peer's convention makes of a fitted state and its damping, and how far that is from this package's scores."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.evaluation.statistics import spearman
from influence_ssl_jax.ihvp.eigenbasis import EigenbasisState


def questions(
    states: dict[str, EigenbasisState], matrices: tuple[cut.MatrixBlock, ...], rows: dict[str, int]
) -> tuple[tuple[str, tuple[EigenbasisState, dict[str, Array]]], ...]:
    """Return the states and dampings that are compared, by convention.

    Peers see weight matrices alone, and damp by a tenth of the mean of the eigenvalues that a module's state holds.
    kronfluence's K-FAC divides both factors by the number of rows, not of examples, and so understates every module by
    its rows per example.
    """
    ekfac, kfac, logra = (dataclasses.replace(states[name], blocks=matrices) for name in ("ekfac", "kfac", "logra"))
    understated = {name: values / rows.get(name, 1) for name, values in kfac.eigenvalues.items()}

    def damped(state: EigenbasisState) -> tuple[EigenbasisState, dict[str, Array]]:
        return state, {name: 0.1 * jnp.mean(values) for name, values in state.eigenvalues.items()}

    return (
        ("kronfluence EK-FAC", damped(ekfac)),
        ("kronfluence K-FAC", damped(dataclasses.replace(kfac, eigenvalues=understated))),
        ("LogIX", damped(logra)),
        ("K-FAC", damped(kfac)),
        ("EK-FAC, λ = 1e-8", (ekfac, {name: jnp.asarray(1e-8) for name in ekfac.eigenvalues})),
        ("EK-FAC with BatchNorm", damped(states["ekfac"])),
        ("LoGra, λ of the whole block", (logra, {name: 0.1 * value for name, value in logra.mean.items()})),
    )


DIFFERENCES = (
    (
        "kronfluence",
        "K-FAC: both factors are means over rows, so every module is understated",
        "kronfluence K-FAC",
        "K-FAC",
    ),
    (
        "kronfluence",
        "default damping, 1e-8 absolute, against a tenth of the mean eigenvalue",
        "EK-FAC, λ = 1e-8",
        "kronfluence EK-FAC",
    ),
    ("every peer", "BatchNorm's parameters left out", "kronfluence EK-FAC", "EK-FAC with BatchNorm"),
    (
        "LogIX",
        "λ a tenth of the mean *projected* eigenvalue, not of the block's",
        "LogIX",
        "LoGra, λ of the whole block",
    ),
)
"""(peer, convention, scores in it, scores in this package's)."""


def differences(scores: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Measure what each convention does to scores."""
    return [
        {
            "peer": peer,
            "convention": words,
            "spearman": spearman(scores[theirs], scores[own]),
            "ratio": float(np.median(scores[theirs] / scores[own])),
        }
        for peer, words, theirs, own in DIFFERENCES
    ]
