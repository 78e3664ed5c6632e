"""What the measurements should come to, and whether they do."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

Results = dict[str, dict[str, Any]]


class Aim(NamedTuple):
    """One aim.

    Attributes:
        text: What should hold.
        limit: The largest ratio that meets it.
        measured: The ratio, or None where it has not been measured.
    """

    text: str
    limit: float
    measured: float | None

    @property
    def verdict(self) -> str:
        """In one word or two."""
        if self.measured is None:
            return "not measured"
        return "met" if self.measured <= self.limit else "missed"


def aims(results: Results) -> list[Aim]:
    """Return every aim, in every setting that was measured."""
    return [aim for name, result in sorted(results.items()) for aim in _of(name, result)]


def _of(name: str, result: dict[str, Any]) -> Iterator[Aim]:
    if name.startswith("primitives"):
        yield from _products(result)
    if name.startswith("gram_cost"):
        yield from _exact(result)
    if name.startswith("cost"):
        yield from _scoring(result)
        yield from _peers(result)


def _products(result: dict[str, Any]) -> Iterator[Aim]:
    where = _where(result)
    for text, operation, limit, count in (
        ("Hessian × vector", "Hessian × vector, forward over reverse", 2.0, 1),
        ("Gauss–Newton × vector", "Gauss–Newton × vector, linearised and transposed", 1.4, 1),
        ("Gauss–Newton × block of 8, a vector", "Gauss–Newton × block of 8", 1.2, 8),
        ("Gauss–Newton × block of 32, a vector", "Gauss–Newton × block of 32", 1.2, 32),
        ("Hessian × block of 8, a vector", "Hessian × block of 8", 1.2, 8),
        ("Hessian × block of 32, a vector", "Hessian × block of 32", 1.2, 32),
    ):
        gradients = _gradients(result, "jax", operation)
        yield Aim(f"{text}, in gradients ({where})", limit, None if gradients is None else gradients / count)


def _exact(result: dict[str, Any]) -> Iterator[Aim]:
    """Yield the aim of exact scores; it is lower for wide layers, whose gradients take longer."""
    limit = 2.0 if result["config"]["setting"]["width"] < 64 else 1.8
    text = f"Gram of {result['rows']} rows, score, in gradients ({_where(result)})"
    yield Aim(text, limit, _gradients(result, "jax", "score"))


def _scoring(result: dict[str, Any]) -> Iterator[Aim]:
    where = _where(result)
    for operation, limit in (
        *((f"LoGra, rank {rank}, score", 0.8) for rank in result["config"]["ranks"]),
        ("EK-FAC, rank 32, score", 1.5),
    ):
        yield Aim(f"{operation}, in gradients ({where})", limit, _gradients(result, "jax", operation))


def _peers(result: dict[str, Any]) -> Iterator[Aim]:
    """Yield the aims of scores that a peer computes too.

    They are EK-FAC with every eigenvector, LoGra of the same rank, and the squared gradient norm.
    """
    pairs = [
        ("EK-FAC, every eigenvector, fit", "kronfluence EK-FAC, fit"),
        ("EK-FAC, every eigenvector, score", "kronfluence EK-FAC, score"),
        ("squared gradient norm, score", "dattri identity, score"),
        *[
            (f"LoGra, rank {rank}, {what}", f"LogIX's definition, rank {rank}, {what}")
            for rank in result["config"]["ranks"]
            for what in ("fit", "fit: the pass over the examples", "score")
        ],
    ]
    kinds: tuple[tuple[str, Callable[..., float | None]], ...] = (
        ("own gradients", _gradients),
        ("wall time", _seconds),
    )
    for kind, measure in kinds:
        for ours, theirs in pairs:
            over, under = measure(result, "jax", ours), measure(result, "torch", theirs)
            if over is not None and under is not None:
                yield Aim(f"{ours}, over {theirs}, in {kind} ({_where(result)})", 1.0, over / under)


def _where(result: dict[str, Any]) -> str:
    setting = result["config"]["setting"]
    return f"width {setting['width']}, batch {setting['batch']}{elsewhere(result)}"


def elsewhere(result: dict[str, Any]) -> str:
    """Return the kind of device; empty for a CPU."""
    device = result.get("made", {}).get("device", {"platform": "cpu"})
    return "" if device["platform"] == "cpu" else f", {device['kind']}"


def _gradients(result: dict[str, Any], framework: str, operation: str) -> float | None:
    return _median(result, framework, operation, "gradients")


def _seconds(result: dict[str, Any], framework: str, operation: str) -> float | None:
    return _median(result, framework, operation, "seconds")


def _median(result: dict[str, Any], framework: str, operation: str, kind: str) -> float | None:
    for row in result["operations"]:
        if (row["framework"], row["operation"]) == (framework, operation) and kind in row:
            return float(row[kind][0])
    return None
