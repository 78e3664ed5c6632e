"""What a benchmark writes: settings, figures, and the machine, versions and date behind them."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from influence_ssl_jax.provenance import device, versions

FOLDER = Path(__file__).parent / "results"
PEERS = ("torch", "kronfluence", "dattri", "curvlinops-for-pytorch")


class Finding(NamedTuple):
    """One comparison with a peer.

    Attributes:
        peer: Which.
        quantity: What is compared, in whose convention.
        value: Worst relative error.
        tolerance: What it must not exceed.
    """

    peer: str
    quantity: str
    value: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the error is a number within its tolerance."""
        return self.value <= self.tolerance


def write(name: str, config: Any, content: dict[str, Any], folder: Path = FOLDER) -> Path:
    """Write `<name>.json`, on an accelerator `<name>_<platform>.json`: no figures of a CPU are replaced by others."""
    record = {"config": dataclasses.asdict(config), **content, "made": made()}
    platform = record["made"]["device"]["platform"]
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}{'' if platform == 'cpu' else f'_{platform}'}.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path


def read(name: str, folder: Path = FOLDER) -> dict[str, Any] | None:
    """Read what `write` wrote; None if there is nothing."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def made() -> dict[str, Any]:
    """Return machine, versions and date of a measurement."""
    installed = {dist.metadata["Name"].lower() for dist in importlib.metadata.distributions()}
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "device": device(),
        "versions": versions() | {name: importlib.metadata.version(name) for name in PEERS if name in installed},
    }


def processor() -> str:
    """Return the name of the processor."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def number(value: Any) -> str:
    """Write a number with three digits; empty for None."""
    return "" if _absent(value) else f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def spread(value: Any) -> str:
    """Write a median with its range."""
    return "" if _absent(value) else f"{number(value[0])} ({number(value[1])}–{number(value[2])})"


def _absent(value: Any) -> bool:
    return value is None or isinstance(value, jinja2.Undefined)
