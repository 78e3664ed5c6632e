"""Score examples by a problem, a backend and a measurement.

`self_influence` reads a data set and needs the extra `data`; nothing else here needs it.
"""

from typing import TYPE_CHECKING, Any

from influence_ssl_jax.errors import require
from influence_ssl_jax.scoring.estimands import Estimand, Estimate, estimate
from influence_ssl_jax.scoring.scores import Scorer, Scoring

if TYPE_CHECKING:
    from influence_ssl_jax.scoring.stream import self_influence

__all__ = ["Estimand", "Estimate", "Scorer", "Scoring", "estimate", "self_influence"]


def __getattr__(name: str) -> Any:
    """Import `self_influence` when it is first used."""
    if name != "self_influence":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}.")
    require("data")
    from influence_ssl_jax.scoring.stream import self_influence

    return self_influence
