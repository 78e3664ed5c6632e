"""How fast are XLA's convolutions on a CPU, by compiler flag, beside torch's?

    python -m benchmarks.convolutions --setting.width 16

Forward, and forward with backward, of the shared ResNet-18 on one batch of pairs. A flag belongs to a process, so every
choice runs in its own, in turns; seconds are the median over rounds of each process's best. About three minutes on two
cores, most of it compiling.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import tyro

from benchmarks.measure import LONGEST, interleaved
from benchmarks.primitives import jax_operations
from benchmarks.results import write
from benchmarks.shared import MEAN, STD, Setting, shared

PASSES = ("forward", "gradient")
ROOT = Path(__file__).parents[1]
FLAG = "--xla_cpu_experimental_ynn_fusion_type="
CHOICES = {
    "jax, as installed": {"XLA_FLAGS": ""},
    "jax, no fusion into YNNPACK": {"XLA_FLAGS": FLAG},
    "torch, channels last": {},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is timed.

    Attributes:
        setting: Network and images; one batch of them.
        rounds: Processes of each choice.
        repeats: Repetitions within a process.
        choices: Which.
    """

    setting: Setting = dataclasses.field(default_factory=lambda: Setting(examples=64, batch=64))
    rounds: int = 2
    repeats: int = 4
    choices: tuple[str, ...] = tuple(CHOICES)

    @classmethod
    def tiny(cls) -> "Config":
        """Return settings with one process of the default choice."""
        setting = Setting("linear", width=4, examples=2, batch=2, size=4)
        return cls(setting, rounds=1, repeats=1, choices=("jax, as installed",))


def own(setting: Setting, framework: str, repeats: int) -> dict[str, float]:
    """Measure the best seconds of each pass in this process."""
    given = shared(setting)
    if framework == "torch":
        from benchmarks.peers.operations import primitives  # torch is an extra

        named = primitives(given, (MEAN, STD), ())
    else:
        named = jax_operations(given, ())
    seconds = interleaved({name: (named[name],) for name in PASSES}, repeats)
    return {name: min(values)[0] for name, values in seconds.items()}


def run(config: Config) -> dict:
    """Measure seconds by choice, and as multiples of torch's.

    torch's are there if it takes part.
    """
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in config.choices}
    for _ in range(config.rounds):
        for name in config.choices:
            asked = [dataclasses.asdict(config.setting), name.split(",")[0], config.repeats]
            command = [sys.executable, "-m", "benchmarks.convolutions", "--own", json.dumps(asked)]
            environment = os.environ | CHOICES[name]
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=LONGEST
            )
            measured[name].append(json.loads(done.stdout.splitlines()[-1]))
    rows = [
        {"choice": name, **{key: statistics.median(round_[key] for round_ in rounds) for key in rounds[0]}}
        for name, rounds in measured.items()
    ]
    return {"operations": rows}


def main() -> None:
    """Measure, print, write."""
    if sys.argv[1:2] == ["--own"]:
        setting, framework, repeats = json.loads(sys.argv[2])
        print(json.dumps(own(Setting(**setting), framework, repeats)))
        return
    config = tyro.cli(Config)
    record = run(config)
    for row in record["operations"]:
        print(f"{row['choice']:32}" + "".join(f" {name} {row[name]:.3f} s" for name in PASSES))
    write(f"convolutions_w{config.setting.width}", config, record)


if __name__ == "__main__":
    main()
