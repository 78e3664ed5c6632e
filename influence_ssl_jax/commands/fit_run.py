"""The fitted backend of a scoring run: on all devices, kept on disk, never mixed with another fit."""

import dataclasses
from typing import TYPE_CHECKING

import jax
from jax.sharding import Mesh
from rich.console import Console

from influence_ssl_jax.configuration import fingerprint
from influence_ssl_jax.errors import StoreError
from influence_ssl_jax.influence.fitting import SplitProblem, fitted, shapes
from influence_ssl_jax.influence.scores import Scorer
from influence_ssl_jax.parallel import agreed, all_devices, first_only, local_devices, replicated
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.run_log import RunLog
from influence_ssl_jax.store import ScoreStore, digest_of, load_fitted, save_fitted
from influence_ssl_jax.types import PyTree

if TYPE_CHECKING:
    from influence_ssl_jax.commands.score import Score


def fitted_scorer(
    settings: "Score", problem: Problem, measurement: Objective, store: ScoreStore, log: RunLog, out: Console
) -> Scorer:
    """Fit, or take up the fit that an earlier run left in the folder, and get ready to score on this process's devices.

    Raises:
        StoreError: Scores of another fit are in the folder.
        IndefiniteError: C + λI is not positive definite.
    """
    with out.status("fitting the curvature"):
        log.beat("fitting")
        split = SplitProblem(problem, all_devices()) if all_devices().size > 1 else None
        state, size = _state(settings, problem, split, store)
        log.event("fitted" if size is None else "fit taken up", devices=jax.device_count(), batch_size=size)
        scoring = settings.scoring if size is None else dataclasses.replace(settings.scoring, batch_size=size)
        scorer = Scorer.of(_for_scoring(problem), state, settings.backend, scoring, measurement)
        store.bind(f"{digest_of(state)} in batches of {scorer.batch_size}")
        if size is None:
            first_only(lambda: save_fitted(store.folder, state, fingerprint(store.identity), scorer.batch_size))
    return scorer


def scoring_mesh() -> Mesh | None:
    """The devices that this process scores on; None where there is one."""
    return local_devices() if all_devices().size > 1 else None


def _state(
    settings: "Score", problem: Problem, split: SplitProblem | None, store: ScoreStore
) -> tuple[PyTree, int | None]:
    """The state, and the batch size that was settled with it where an earlier run fitted it."""
    backend, seed, local = settings.backend, settings.scoring.seed, local_devices()
    expected = shapes(problem, backend, seed) if split is None else split.shapes(backend, seed)
    held = load_fitted(store.folder, *expected, fingerprint(store.identity))
    if agreed(held is not None):
        if held is None:
            raise StoreError(f"This process cannot read the fitted curvature in {store.folder}; is the folder shared?")
        state, size = held
        return (state if split is None else replicated(state, local)), size
    return (fitted(problem, backend, seed) if split is None else split.fitted(backend, seed, local)), None


def _for_scoring(problem: Problem) -> Problem:
    """The problem as scoring reads it: parameters on every device of this process, one batch for the shape of an image."""
    first = jax.tree.map(lambda leaf: leaf[:1], problem.batches)
    if all_devices().size == 1:
        return dataclasses.replace(problem, batches=first)
    place = local_devices()
    params, frozen, batches = (replicated(tree, place) for tree in (problem.params, problem.frozen, first))
    return dataclasses.replace(problem, params=params, frozen=frozen, batches=batches)
