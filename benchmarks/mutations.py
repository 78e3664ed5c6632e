"""Do the tests notice? One fault at a time is planted in a copy of the tree, and the tests of its folder are run.

    python -m benchmarks.mutations --minutes 30 --workers 2
    python -m benchmarks.mutations --only ihvp linalg --limit 10
    python -m benchmarks.mutations --again survived undecided

Faults are of two kinds. `planted.py` lists realistic ones, each named by the text that it replaces: that text is searched
for in the whole package, so a fault survives a move of the code; a text that is found nowhere or twice is an error. The
others are made from the syntax tree by rule (`RULES`: one operator, number, sign, axis or comparison changed inside a
function) and sampled by their hash, so the sample does not change when code moves.

Each fault is tried in a process of its own, with the test files that mention the mutated code first, until one test
fails. What can come of it:

- `assertion`: a test's comparison failed; the fault is noticed.
- `exception`: a test stopped with another error; noticed, though no value was compared.
- `import`: the package or a test file could not be imported; noticed by anything, and counted apart.
- `survived`: every test of the folder passed. Kill it with a new test, or explain it in `EQUIVALENT`.
- `undecided`: the time limit came first.

Results are written after each fault, and the same command goes on with those that are missing. A test that fails without
any fault would notice everything: at the end, all tests that noticed something are run once on the clean copy, and what
only a broken test noticed is undecided.
"""

import ast
import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import tyro

from benchmarks.planted import EQUIVALENT, LIKELY, PLANTED

ROOT = Path(__file__).parents[1]
PACKAGE = "influence_ssl_jax"
TESTS: dict[str, tuple[str, ...]] = {
    "curvature": ("tests/curvature", "tests/ihvp"),
    "ihvp": ("tests/ihvp",),
    "scoring": ("tests/scoring", "tests/evaluation", "tests/parallel/test_devices.py"),
    "evaluation": ("tests/evaluation", "tests/scoring/test_common_noise.py", "tests/ihvp/test_certificate.py"),
    "losses": ("tests/losses", "tests/curvature"),
    "linalg": ("tests/linalg", "tests/ihvp"),
    "data": ("tests/data",),
    "store": ("tests/store", "tests/runs"),
    "train": ("tests/train",),
    "report": ("tests/report", "tests/runs"),
    "augment": ("tests/augment",),
    "runs": ("tests/runs",),
    "cli": ("tests/cli", "tests/runs"),
}
"""The tests that a fault in a folder of the package must be noticed by, the folder's own first."""
SAMPLED = ("curvature", "ihvp", "scoring", "evaluation", "losses", "linalg", "data", "store", "train", "report")
"""Folders that faults are made in by rule."""
LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", "__pycache__", "*.pyc", "demo", ".pytest_cache", "results", "*.svg")
LOADED = (
    "beartype", "flax.linen", "hypothesis", "jax", "jax.numpy", "jaxtyping", "jinja2", "matplotlib.figure", "numpy",
    "optax", "orbax.checkpoint", "PIL.Image", "pyarrow.parquet", "pytest", "rich.console", "scipy.stats",
    "sklearn.isotonic", "sklearn.metrics", "tensorflow_datasets", "tyro",
)  # fmt: skip
"""Loaded once, before processes divide; nothing of the package, and no device is started."""

Outcome: TypeAlias = Literal["assertion", "exception", "import", "survived", "undecided"]
NOTICED = ("assertion", "exception", "import")


@dataclasses.dataclass(frozen=True)
class Config:
    """Which faults are tried, and for how long.

    Attributes:
        only: Folders of the package, such as `ihvp linalg`; all where none is named.
        named: A regular expression that is looked for in the names of faults.
        kinds: Realistic faults, those made by rule, or both (the realistic ones first).
        operators: How many faults are made by rule, over all folders.
        limit: Try so many and stop.
        minutes: Try no further fault after so long.
        seconds: What the tests of one fault may take.
        workers: How many faults are tried side by side, each in a copy of its own.
        again: Outcomes that are tried once more, such as `survived undecided`.
        listed: List the faults and what is known of them; try none.
        seed: Chooses the faults that are made by rule.
        out: Where results are kept.
    """

    only: tuple[str, ...] = ()
    named: str = ""
    kinds: tuple[Literal["realistic", "operator"], ...] = ("realistic", "operator")
    operators: int = 120
    limit: int | None = None
    minutes: float | None = None
    seconds: float = 300.0
    workers: int = 1
    again: tuple[Outcome, ...] = ()
    listed: bool = False
    seed: int = 0
    out: Path = ROOT / "benchmarks" / "results" / "mutations.json"


@dataclasses.dataclass(frozen=True)
class Fault:
    """One change of one file.

    Attributes:
        name: What it is, in words or as `function: before → after`.
        kind: Where it comes from.
        file: The file, relative to the root.
        start: Where the replaced text begins.
        end: Where it ends.
        put: What stands there instead.
    """

    name: str
    kind: Literal["realistic", "operator"]
    file: str
    start: int
    end: int
    put: str

    @property
    def folder(self) -> str:
        """The folder of the package that it is in."""
        return Path(self.file).relative_to(PACKAGE).parts[0]

    @property
    def key(self) -> str:
        """What its result is kept under."""
        return f"{self.folder} · {self.name}"

    def planted(self, text: str) -> str:
        """The file with the fault in it."""
        return text[: self.start] + self.put + text[self.end :]


def sources(root: Path = ROOT) -> dict[str, str]:
    """Every file of the package, by its path relative to the root."""
    return {str(path.relative_to(root)): path.read_text() for path in sorted((root / PACKAGE).rglob("*.py"))}


def realistic(files: dict[str, str], listed: tuple[tuple[str, str, str], ...] = PLANTED) -> list[Fault]:
    """The listed faults, each found by its text.

    Raises:
        ValueError: A text is found nowhere, or more than once, or two faults have one name.
    """
    faults, wrong = [], []
    for name, find, put in listed:
        places = [(file, at.start()) for file, text in files.items() for at in re.finditer(re.escape(find), text)]
        if len(places) != 1:
            wrong.append(f"{name}: {len(places)} places hold {find!r}")
        else:
            file, start = places[0]
            faults.append(Fault(name, "realistic", file, start, start + len(find), put))
    twice = [name for name, times in Counter(name for name, *_ in listed).items() if times > 1]
    if wrong or twice:
        raise ValueError(
            "A listed fault must be found in exactly one place and have a name of its own; mend benchmarks/planted.py:\n  "
            + "\n  ".join([*wrong, *(f"{name}: named twice" for name in twice)])
        )
    return faults


Edit: TypeAlias = str | None
"""The text in place of a node's, or nothing where the rule does not apply."""


def _swapped(table: dict[type, str]) -> Callable[[Any, Callable[[ast.AST], str]], Edit]:
    def rule(node: Any, text: Callable[[ast.AST], str]) -> Edit:
        new = table.get(type(node.op))
        # A path over a name, or text after text, would fail however it is changed.
        sides = (node.left, node.right)
        textual = any(isinstance(x, ast.JoinedStr) or isinstance(getattr(x, "value", None), str) for x in sides)
        return None if new is None or textual else f"({text(node.left)}) {new} ({text(node.right)})"

    return rule


def _compared(node: ast.Compare, text: Callable[[ast.AST], str]) -> Edit:
    table = {
        ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
        ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
    }  # fmt: skip
    if len(node.ops) != 1 or type(node.ops[0]) not in table:
        return None
    return f"{text(node.left)} {table[type(node.ops[0])]} {text(node.comparators[0])}"


def _number(node: ast.Constant, _: Callable[[ast.AST], str]) -> Edit:
    if isinstance(node.value, bool):
        return str(not node.value)
    if isinstance(node.value, float):
        return str(2 * node.value or 1.0)
    return str(node.value + 1) if isinstance(node.value, int) else None


CALLS = {
    "maximum": "minimum", "minimum": "maximum", "max": "min", "min": "max", "sum": "mean", "mean": "sum", "any": "all",
    "all": "any", "ceil": "floor", "argmax": "argmin", "sqrt": "abs", "median": "max", "concatenate": "stack",
}  # fmt: skip


def _called(node: ast.Call, text: Callable[[ast.AST], str]) -> Edit:
    whole, function = text(node), text(node.func)
    *owner, name = function.split(".")
    array = owner in (["np"], ["jnp"]) or not owner
    if (
        name not in CALLS
        or not array
        or (not owner and CALLS[name] == "mean")
        or (not owner and name not in dir(__builtins__))
    ):
        return None
    return whole.replace(function, ".".join([*owner, CALLS[name]]), 1)


def _transposed(node: ast.Attribute, text: Callable[[ast.AST], str]) -> Edit:
    return text(node.value) if node.attr == "T" else None


def _unsigned(node: ast.UnaryOp, text: Callable[[ast.AST], str]) -> Edit:
    return f"({text(node.operand)})" if isinstance(node.op, ast.USub | ast.Not | ast.Invert) else None


def _joined(node: ast.BoolOp, text: Callable[[ast.AST], str]) -> Edit:
    word = " or " if isinstance(node.op, ast.And) else " and "
    return word.join(f"({text(value)})" for value in node.values)


ARITHMETIC = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.Pow: "*", ast.FloorDiv: "*", ast.Mod: "+",
    ast.BitAnd: "|", ast.BitOr: "&",
}  # fmt: skip
RULES: dict[type, Callable[[Any, Callable[[ast.AST], str]], Edit]] = {
    ast.BinOp: _swapped(ARITHMETIC),
    ast.Compare: _compared,
    ast.Constant: _number,
    ast.Call: _called,
    ast.Attribute: _transposed,
    ast.UnaryOp: _unsigned,
    ast.BoolOp: _joined,
}
"""How a node of the syntax tree is changed."""
UNCHANGED = (ast.Raise, ast.JoinedStr, ast.Assert, ast.Import, ast.ImportFrom)
"""What is not looked into: errors, texts, and what is there for the type checker."""
COSMETIC = (
    "alpha", "bbox_to_anchor", "dpi", "figsize", "fontsize", "indent", "linewidth", "linewidths", "markersize", "numticks",
    "s", "xytext",
)  # fmt: skip
"""Arguments that change how a figure or a file looks, and no value in it."""


def by_rule(files: dict[str, str], count: int, seed: int) -> list[Fault]:
    """So many faults made by rule, those whose hashes are the smallest.

    Nothing in a signature, an annotation, a docstring, an error or a text is changed, and no default of a setting.
    """
    every: dict[str, Fault] = {}
    for file, text in files.items():
        if file.split("/")[1] in SAMPLED:
            for fault in _mutants(file, text):
                every.setdefault(fault.key, fault)
    return sorted(every.values(), key=lambda fault: hashlib.sha256(f"{seed} {fault.name}".encode()).hexdigest())[:count]


def _mutants(file: str, text: str) -> Iterator[Fault]:
    """Every fault that the rules make in a file."""
    lines = [0]
    for line in text.encode().splitlines(keepends=True):
        lines.append(lines[-1] + len(line))

    def span(node: Any) -> tuple[int, int]:
        """In characters; the tree counts bytes."""
        ends = lines[node.lineno - 1] + node.col_offset, lines[node.end_lineno - 1] + node.end_col_offset
        return tuple(len(text.encode()[:end].decode()) for end in ends)  # type: ignore[return-value]

    def of(node: ast.AST) -> str:
        start, end = span(node)
        return text[start:end]

    def named(node: ast.AST, path: tuple[str, ...], put: str, parent: ast.AST) -> str:
        """The function and the change; of a number also what it stands in."""
        before, after, around = (" ".join(part.split()) for part in (of(node), put, of(parent)))
        where = f" in {around[:80]}" if isinstance(node, ast.Constant) else ""
        return f"{'.'.join(path)}: {before} → {after}{where}"

    def walk(node: ast.AST, path: tuple[str, ...], inside: bool, parent: ast.AST) -> Iterator[Fault]:
        if isinstance(node, UNCHANGED) or (isinstance(node, ast.keyword) and node.arg in COSMETIC):
            return
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            path = (*path, node.name)
            inside = inside or isinstance(node, ast.FunctionDef)
            for child in node.body:
                yield from walk(child, path, inside, child)
            return
        if isinstance(node, ast.AnnAssign):
            if node.value is not None:
                yield from walk(node.value, path, inside, node.value)
            return
        put = RULES[type(node)](node, of) if inside and type(node) in RULES else None
        if put is not None:
            yield Fault(named(node, path, put, parent), "operator", file, *span(node), put)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, path, inside, node if hasattr(node, "lineno") else parent)

    tree = ast.parse(text)
    for statement in tree.body:
        yield from walk(statement, (), False, statement)


def likeliest(fault: Fault, files: dict[str, str], root: Path) -> list[str]:
    """The test files of the fault's folder, those first that speak most of the mutated code.

    Raises:
        ValueError: The folder has no tests in `TESTS`, or they are not there.
    """
    if fault.folder not in TESTS:
        raise ValueError(
            f"Which tests are those of {PACKAGE}/{fault.folder}? Name them in TESTS of benchmarks/mutations.py."
        )
    stem, text = Path(fault.file).stem, files[fault.file]
    owners = [
        node.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and len("".join(text.splitlines(True)[: node.lineno - 1])) <= fault.start
        and fault.start <= len("".join(text.splitlines(True)[: node.end_lineno]))
    ]
    module = fault.file.removesuffix(".py").replace("/", ".")
    chosen: dict[str, tuple] = {}
    for place, where in enumerate(TESTS[fault.folder]):
        if not (root / where).exists():
            raise ValueError(f"{where}, which TESTS names, is not there; mend benchmarks/mutations.py.")
        paths = sorted((root / where).rglob("test_*.py")) if (root / where).is_dir() else [root / where]
        for path in paths:
            held = path.read_text()
            named = sum(re.search(rf"\b{re.escape(name)}\b", held) is not None for name in owners)
            told = (
                99 * (path.stem == LIKELY.get(fault.name))
                + 4 * (path.stem == f"test_{stem}")
                + 2 * (module in held)
                + 3 * named
                + (stem in path.stem)
            )
            chosen.setdefault(str(path.relative_to(root)), (-told, place, "slow" in held, len(held)))
    return sorted(chosen, key=lambda name: chosen[name])


class _Listener:
    """Hears from pytest what failed first, and how."""

    def __init__(self, out: Path) -> None:
        self._out = out

    def tell(self, outcome: str, test: str, error: str) -> None:
        """Keep the first failure."""
        if not self._out.exists():
            self._out.write_text(json.dumps({"outcome": outcome, "by": test, "error": error}))

    def pytest_collection_finish(self) -> None:
        """Look for no smaller example of a failure: that it fails is enough."""
        from hypothesis import Phase, settings

        settings.register_profile("mutations", settings.default, phases=(Phase.explicit, Phase.generate))
        settings.load_profile("mutations")

    def pytest_collectreport(self, report: Any) -> None:
        """A test file that cannot be imported."""
        if report.failed:
            self.tell("import", report.nodeid, str(report.longrepr).strip().splitlines()[-1][:200])

    def pytest_exception_interact(self, node: Any, call: Any, report: Any) -> None:
        """A test that failed."""
        if report.when in ("setup", "call", "teardown"):
            kind = call.excinfo.typename
            outcome = "assertion" if kind in ("AssertionError", "Failed") else "exception"
            said = " ".join(str(call.excinfo.value).split())
            self.tell(outcome, node.nodeid, f"{kind}: {said}"[:160])


class Trial:
    """The tests of one copy, run in a process of its own.

    Args:
        copy: The tree.
        tests: Files or names of tests, relative to it.
        seconds: How long they may take.
        stop: Whether the first failure ends them.
    """

    def __init__(self, copy: Path, tests: list[str], seconds: float, stop: bool = True) -> None:
        self._out, self._said, self._seconds = copy / "outcome.json", copy / "said.txt", seconds
        self._out.unlink(missing_ok=True)
        self._began, self._status = time.monotonic(), None
        self._process = os.fork()
        if self._process:
            return
        status = 1
        with contextlib.suppress(BaseException), self._said.open("w") as file:
            os.setsid()
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            try:
                status = _tested(copy, tests, stop, _Listener(self._out))
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)

    def result(self) -> dict[str, Any] | None:
        """What came of it, by which test, and in how many seconds; None while it runs."""
        took = round(time.monotonic() - self._began, 1)
        ended, status = os.waitpid(self._process, os.WNOHANG)
        if ended:
            self._status = status
            return {**self._outcome(status), "seconds": took}
        if took < self._seconds:
            return None
        self.stop()
        return {"outcome": "undecided", "by": "", "error": f"time limit of {self._seconds:g} s", "seconds": took}

    def _outcome(self, status: int) -> dict[str, Any]:
        """What the tests said, or how pytest ended where they said nothing."""
        if self._out.exists():
            return json.loads(self._out.read_text())
        if status:  # pytest itself could not begin: what conftest.py imports is broken
            return {"outcome": "import", "by": "conftest", "error": self._said.read_text()[-200:]}
        return {"outcome": "survived", "by": "", "error": ""}

    def stop(self) -> None:
        """End the tests, and what they started, where they still run."""
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process, signal.SIGKILL)
            _, self._status = os.waitpid(self._process, 0)


def tried(copy: Path, tests: list[str], seconds: float, stop: bool = True) -> dict[str, Any]:
    """Run tests of the copy and wait for what comes of it."""
    trial = Trial(copy, tests, seconds, stop)
    try:
        while (result := trial.result()) is None:
            time.sleep(0.05)
    finally:
        trial.stop()
    return result


def outcomes(
    faults: list[Fault], copies: list[Path], files: dict[str, str], seconds: float, over: Callable[[], bool]
) -> Iterator[tuple[Fault, dict[str, Any]]]:
    """Try every fault, one in each copy at a time, and give what came of each; begin none when it is over."""
    waiting, free = list(reversed(faults)), list(copies)
    running: dict[Path, tuple[Fault, Trial, contextlib.ExitStack]] = {}
    try:
        while running or (waiting and not over()):
            while free and waiting and not over():
                fault, copy, planted = waiting.pop(), free.pop(), contextlib.ExitStack()
                planted.enter_context(put_in(fault, copy, files))
                running[copy] = fault, Trial(copy, likeliest(fault, files, copy), seconds), planted
            time.sleep(0.05)
            for copy, (fault, trial, planted) in list(running.items()):
                if (result := trial.result()) is not None:
                    planted.close()
                    del running[copy]
                    free.append(copy)
                    yield fault, result
    finally:
        for _, trial, planted in running.values():
            trial.stop()
            planted.close()


def _tested(copy: Path, tests: list[str], stop: bool, listener: _Listener) -> int:
    """Run pytest in the copy, in a process in which nothing of the package has been imported."""
    import pytest

    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)  # processes that tests start must not import the work tree
    sys.path[:] = [str(copy), *(each for each in sys.path if each and Path(each).resolve() != ROOT)]
    for name in [name for name in sys.modules if name.split(".")[0] in (PACKAGE, "benchmarks", "tests")]:
        del sys.modules[name]
    # Plugins of pytest that were loaded before it began are not rewritten, and need not be.
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
        *(["-x"] if stop else []),
    ]
    return int(pytest.main([*options, *tests], [listener]))


@contextlib.contextmanager
def copied() -> Iterator[Path]:
    """A copy of the tree that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
        yield copy


@contextlib.contextmanager
def put_in(fault: Fault, copy: Path, files: dict[str, str]) -> Iterator[None]:
    """The copy with the fault in it, then without; compiled files of either are forgotten."""
    path, whole = copy / fault.file, files[fault.file]

    def write(text: str) -> None:
        path.write_text(text)
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            compiled.unlink()

    write(fault.planted(whole))
    try:
        yield
    finally:
        write(whole)


class Results:
    """What came of every fault, on disk after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        held = json.loads(path.read_text()) if path.exists() else {}
        self.faults: dict[str, dict[str, Any]] = held.get("faults", {})
        self.sound: dict[str, bool] = held.get("tests_without_a_fault", {})

    def add(self, fault: Fault, result: dict[str, Any], every: list[Fault], config: Config) -> None:
        """Keep one."""
        self.faults[fault.key] = {"kind": fault.kind, **result}
        self.write(every, config)

    def write(self, every: list[Fault], config: Config) -> None:
        """Counts, survivors, then fault by fault; those that are not among the faults any more are left out."""
        keys = {fault.key for fault in every}
        kept = {key: value for key, value in self.faults.items() if key in keys}
        survivors = [key for key, value in kept.items() if value["outcome"] == "survived"]
        record = {
            "faults_there_are": len(every),
            "faults_tried": len(kept),
            "outcomes": dict(Counter(value["outcome"] for value in kept.values())),
            "by_kind": {
                kind: {
                    "there_are": sum(fault.kind == kind for fault in every),
                    **Counter(value["outcome"] for value in kept.values() if value["kind"] == kind),
                }
                for kind in ("realistic", "operator")
            },
            "by_folder": {
                folder: dict(Counter(value["outcome"] for key, value in kept.items() if key.split(" · ")[0] == folder))
                for folder in sorted({fault.folder for fault in every})
            },
            "survivors": {key: EQUIVALENT.get(key.split(" · ", 1)[1], "") for key in survivors},
            "operators": config.operators,
            "seed": config.seed,
            "made": _made(),
            "tests_without_a_fault": self.sound,
            "faults": kept,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        unfinished.replace(self.path)

    def judge(self, copy: Path, seconds: float) -> None:
        """Run every test that noticed something once without a fault; what a broken one noticed is undecided."""
        noticed = {value["by"] for value in self.faults.values() if value["outcome"] in ("assertion", "exception")}
        unknown = sorted(noticed - self.sound.keys())
        if not unknown:
            return
        print(f"{len(unknown)} tests that noticed something are run without a fault", flush=True)
        result = tried(copy, unknown, seconds)
        if result["outcome"] == "survived":
            self.sound |= dict.fromkeys(unknown, True)
            return
        for test in unknown:
            self.sound[test] = tried(copy, [test], seconds)["outcome"] == "survived"
        for value in self.faults.values():
            if self.sound.get(value["by"]) is False:
                value.update(outcome="undecided", error="noticed by a test that fails without any fault")


_machine: dict[str, Any] = {}


def _made() -> dict[str, Any]:
    """Machine, versions and date, asked of a process of its own: this one starts no device."""
    if not _machine:
        ask = "import json; from benchmarks.results import made; print(json.dumps(made()))"
        told = subprocess.run(
            [sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
        )
        _machine.update(json.loads(told.stdout))
    return _machine


def main(config: Config) -> None:
    """Try the faults that are asked for and have no result, and say how it goes."""
    for number in (signal.SIGINT, signal.SIGTERM):  # either ends the process under way and removes the copy
        signal.signal(number, signal.default_int_handler)
    files = sources()
    every = [*realistic(files), *by_rule(files, config.operators, config.seed)]
    unknown = set(config.only) - set(TESTS)
    if unknown:
        raise SystemExit(f"There are no faults in {', '.join(sorted(unknown))}; folders are {', '.join(TESTS)}.")
    results = Results(config.out)
    asked = [
        fault
        for fault in every
        if fault.kind in config.kinds
        and (not config.only or fault.folder in config.only)
        and re.search(config.named, fault.name)
    ]
    if config.listed:
        for fault in asked:
            print(f"{results.faults.get(fault.key, {}).get('outcome', '–'):10} {fault.kind:10} {fault.key}")
        return
    todo = [f for f in asked if results.faults.get(f.key, {"outcome": ""})["outcome"] in ("", *config.again)]
    todo = todo[: config.limit]
    print(f"{len(every)} faults, {len(asked)} asked for, {len(todo)} to try.", flush=True)
    began, done = time.monotonic(), 0
    with contextlib.ExitStack() as stack:
        copies = [stack.enter_context(copied()) for _ in range(config.workers)]
        copy = copies[0]
        _load(copy)

        def over() -> bool:
            return config.minutes is not None and time.monotonic() - began > 60 * config.minutes

        for fault, result in outcomes(todo, copies, files, config.seconds, over):
            results.add(fault, result, every, config)
            done += 1
            rate = done / (time.monotonic() - began)
            left = (len(todo) - done) / rate / 60
            print(
                f"[{done}/{len(todo)}  {60 * rate:.1f} a minute, {left:.0f} min left]  {result['outcome']:10} {fault.key}"
            )
            print(f"      {result['seconds']:.0f} s  {result['by']}  {result['error']}", flush=True)
        results.judge(copy, 3 * config.seconds)
    results.write(every, config)
    summary = Counter(value["outcome"] for value in results.faults.values())
    print(f"{len(results.faults)} of {len(every)} faults tried: {dict(summary)}")
    for key, value in results.faults.items():
        if value["outcome"] == "survived":
            print(f"  survived: {key}  {EQUIVALENT.get(key.split(' · ', 1)[1], '')}")


def _load(copy: Path) -> None:
    """Load what the tests load, but for the package itself, so that a process for a fault begins in no time."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(copy.parent / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    for name in LOADED:
        importlib.import_module(name)


if __name__ == "__main__":
    main(tyro.cli(Config, prog="python -m benchmarks.mutations", description=__doc__))
