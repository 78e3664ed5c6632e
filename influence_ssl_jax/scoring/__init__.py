"""Scores: a problem, a backend and a measurement joined and streamed over a data set."""

from influence_ssl_jax.scoring.estimands import Estimand, Estimate, estimate, reliability
from influence_ssl_jax.scoring.scores import Scorer, Scoring
from influence_ssl_jax.scoring.stream import self_influence, stream

__all__ = ["Estimand", "Estimate", "Scorer", "Scoring", "estimate", "reliability", "self_influence", "stream"]
