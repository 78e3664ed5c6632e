"""A comparison: everything that `influence-ssl compare` does, one step after the other."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from influence_ssl_jax import provenance
from influence_ssl_jax.configuration import Plain, describe
from influence_ssl_jax.data.loader import batches
from influence_ssl_jax.evaluation.comparison import Examples, compared, contenders, label, nulls
from influence_ssl_jax.evaluation.exact import Truth, kind_for, truths
from influence_ssl_jax.evaluation.sample import sample
from influence_ssl_jax.ihvp import CG, Backend
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.report.backends import null_rows, plain, say, write_figures
from influence_ssl_jax.run_log import RunLog
from influence_ssl_jax.runs.score import Prepared, prepare, problem_over
from influence_ssl_jax.runs.settings import CompareRun, ScoreRun
from influence_ssl_jax.scoring.memory import available, memory_of
from influence_ssl_jax.store.files import lock, write_atomically
from influence_ssl_jax.store.identity import claim, refuse_foreign

COMPARISON, TRUTH, PARTS = "comparison.json", "truth.npz", "parts"


def compare(settings: CompareRun, out: Console) -> None:
    """Find exact scores, race every backend that has not been, write table and figures.

    Raises:
        StoreError: The folder holds something else, or is in use.
        InfluenceError: There is no exact score at this size and curvature.
    """
    made = _as_score(settings)
    prepared = prepare(made, out)
    settings.out.mkdir(parents=True, exist_ok=True)
    refuse_foreign(settings.out)
    with lock(settings.out):
        claim(settings.out, _identity(settings, prepared))
        log, every = RunLog(settings.out), contenders(settings.knobs)
        (settings.out / PARTS).mkdir(exist_ok=True)
        there = sum(_part(settings, backend).exists() for backend in every)
        log.event("start", todo=len(every) - there, total=len(every), command=provenance.command())
        problem = problem_over(made, prepared)
        examples = _examples(settings, prepared, problem)
        log.beat("exact scores")
        known = _truths(settings, problem, examples, out)
        rows = _nulls(settings, problem, examples, known)
        for number, backend in enumerate(every, 1):
            path = _part(settings, backend)
            if not path.exists():
                out.print(f"{number} of {len(every)}: {label(backend)}", highlight=False)
                log.beat(label(backend), done=number - 1, total=len(every))
                found = [plain(row) for row in compared([backend], problem, examples, known, settings.calibration)]
                write_atomically(path, json.dumps(found).encode())
                log.event("part", backend=label(backend), done=number, total=len(every))
            rows += json.loads(path.read_text(encoding="utf-8"))
        _finish(settings, prepared, known, rows, out)
        log.event("finished", backends=len(every), resumed=there)


def _nulls(settings: CompareRun, problem: Problem, examples: Examples, known: list[Truth]) -> list[dict[str, Plain]]:
    """Rows of the baselines, from the folder where they are there."""
    path = settings.out / PARTS / "baselines.json"
    if not path.exists():
        write_atomically(path, json.dumps(null_rows(nulls(problem, examples), known)).encode())
    return json.loads(path.read_text(encoding="utf-8"))


def _finish(
    settings: CompareRun, prepared: Prepared, known: list[Truth], rows: list[dict[str, Plain]], out: Console
) -> None:
    """Table, figures and record."""
    record = {
        "configuration": describe(settings),
        "data": prepared.source.fingerprint(),
        "damping": {str(truth.relative): truth.damping for truth in known},
        "relative_width": {
            str(truth.relative): float(np.nanmedian((truth.upper - truth.lower) / truth.upper)) for truth in known
        },
        "device": provenance.device(),
        "versions": provenance.versions(),
        "rows": rows,
    }
    write_atomically(settings.out / COMPARISON, json.dumps(record, indent=1).encode())
    write_figures(rows, settings.out)
    say(rows, out)
    out.print(f"Comparison: {settings.out / COMPARISON}", highlight=False, markup=False, soft_wrap=True)


def _as_score(settings: CompareRun) -> ScoreRun:
    """The scoring run whose problem this is."""
    shared = ("encoder", "out", "source", "output", "perturbation", "measurement", "curvature", "scoring")
    return ScoreRun(**{name: getattr(settings, name) for name in shared})


def _identity(settings: CompareRun, prepared: Prepared) -> Plain:
    """Everything that a row depends on; more knobs add rows, and change none that is there."""
    places = ("out", "encoder", "source", "knobs")
    return {
        "configuration": {name: value for name, value in describe(settings).items() if name not in places},
        "encoder": provenance.tree_digest({"params": prepared.encoder.params, "frozen": prepared.encoder.frozen}),
        "data": prepared.source.fingerprint(),
        "versions": provenance.versions(provenance.DECISIVE),
    }


def _examples(settings: CompareRun, prepared: Prepared, problem: Problem) -> Examples:
    """The sample, read in batches that the backend which takes most, one that forms whole gradients, has room for."""
    chosen, key = sample(settings.audit, len(prepared.source)), jax.random.key(settings.scoring.seed)
    shape, draws = problem.batches.image.shape[2:], settings.scoring.draws
    held = (prepared.measurement, problem.params, problem.frozen, CG(), problem.params, shape, draws)
    size = min(settings.scoring.batch_size or memory_of(*held).batch_size(*available()), len(chosen))
    loaded = list(batches(prepared.source, prepared.transform, size, key, chosen))
    valid = np.concatenate([part.valid for part in loaded])
    return Examples(prepared.measurement, [part.batch for part in loaded], valid, settings.scoring)


def _truths(settings: CompareRun, problem: Problem, examples: Examples, out: Console) -> list[Truth]:
    """Exact scores, from the folder where they are there."""
    path = settings.out / TRUTH
    if not path.exists():
        kind = kind_for(problem) if settings.truth == "auto" else settings.truth
        begun = time.monotonic()
        with out.status(f"exact scores of {int(examples.valid.sum())} images: {kind}"):
            found = truths(kind, problem, *examples[:3], settings.dampings, examples.scoring, settings.audit)
        arrays: dict[str, Any] = {
            name: np.stack([np.asarray(getattr(truth, name)) for truth in found]) for name in Truth._fields
        }
        np.savez(path.with_suffix(".tmp.npz"), **arrays)
        path.with_suffix(".tmp.npz").replace(path)
        out.print(f"Exact scores ({kind}): {time.monotonic() - begun:.0f} s", highlight=False)
    with np.load(path, allow_pickle=False) as held:
        columns = [held[name] for name in Truth._fields]
    return [Truth(float(a), float(b), low, high) for a, b, low, high in zip(*columns, strict=True)]


def _part(settings: CompareRun, backend: Backend) -> Path:
    """The file of one backend's rows, named by its settings."""
    digest = hashlib.sha256(json.dumps(describe(backend), sort_keys=True).encode()).hexdigest()
    return settings.out / PARTS / f"{label(backend).replace(' ', '_')}_{digest[:8]}.json"
