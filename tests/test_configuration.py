"""Settings survive JSON, and differences name what differs."""

import dataclasses
import json
from pathlib import Path

import pytest

from influence_ssl_jax import configuration, data
from influence_ssl_jax.errors import InfluenceError


@dataclasses.dataclass(frozen=True)
class Inner:
    rank: int = 8
    shares: tuple[float, ...] = (0.1, 0.9)


@dataclasses.dataclass(frozen=True)
class Other:
    steps: int = 3


@dataclasses.dataclass(frozen=True)
class Outer:
    folder: Path
    table: Path | None = None
    backend: Inner | Other = Inner()
    name: str = "x"


@pytest.mark.parametrize(
    "settings",
    [
        Outer(Path("/a/b")),
        Outer(Path("c"), Path("d.csv"), Other(5)),
        Outer(Path("c"), backend=Inner(shares=()), name="ü <b>"),
        data.Digits(size=24, noise=0.0),
        data.Synthetic(),
        data.Folder("faces", table="faces.csv"),
    ],
)
def test_settings_survive_json(settings):
    description = json.loads(json.dumps(configuration.describe(settings)))
    assert configuration.restore(description, [Outer, *data.SOURCES]) == settings


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(TypeError, match="got function"):
        configuration.describe({"loss": lambda: None})


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"class": "Missing"}, "Cannot restore 'Missing': known are Inner, Outer"),
        ({"class": "Inner", "depth": 3}, "it has no depth in this version"),
        (3, "Cannot restore None"),
    ],
)
def test_what_is_not_known_is_not_restored(description, message):
    with pytest.raises(InfluenceError, match=message):
        configuration.restore(description, [Inner, Outer])


def test_differences_are_dotted_lines():
    old = configuration.describe(Outer(Path("a"), backend=Inner(rank=4)))
    new = configuration.describe(Outer(Path("a"), Path("t"), backend=Other()))
    assert configuration.differences(old, new) == [
        "table: None → t",
        "backend: Inner → Other",
        "backend.rank: 4 → (absent)",
        "backend.shares: [0.1, 0.9] → (absent)",
        "backend.steps: (absent) → 3",
    ]
    assert configuration.differences(old, old) == []


def test_the_fingerprint_reads_content_not_order():
    assert configuration.fingerprint({"a": 1, "b": 2}) == configuration.fingerprint({"b": 2, "a": 1})
    assert configuration.fingerprint({"a": 1}) != configuration.fingerprint({"a": 2})
