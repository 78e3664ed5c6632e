"""Strict by default: float64, no silent rank promotion, shapes checked at run time, drawn inputs that repeat."""

import ast
import gc
import json
import os
import threading
from pathlib import Path

# Tests compile longer than they compute. The variables are for the processes that tests start; a plugin may have
# imported JAX here already, so this process is told again below.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Two workers share the cores; threads of BLAS would wait for small matrices in busy loops.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import pytest
from hypothesis import HealthCheck, settings
from jax._src.interpreters import mlir
from jaxtyping import _import_hook, install_import_hook

# Kernels written straight to LLVM in place of by way of MLIR, all in one module: the same formulas, compiled in a third
# of the time. Later releases have no such choice, and abort on a flag that they do not know.
if jax.__version_info__ < (0, 11):
    quick = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick}".strip()

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Few programs are compiled twice: to write all of them, or only to hash them, takes longer than to compile those again.
jax.config.update("jax_enable_compilation_cache", False)
# Importing makes very many objects that live: cycles among them are searched for rarely from the beginning.
gc.set_threshold(200_000, 10, 10)


class CheckedFunctions(_import_hook.JaxtypingTransformer):
    """Checks the functions of modules and classes, and not those inside them.

    A function inside another is made, and its check compiled, at each call of the outer one: a twelfth of all seconds.
    """

    def generic_visit(self, node):
        if not isinstance(node, ast.FunctionDef):
            super().generic_visit(node)


_import_hook.JaxtypingTransformer = CheckedFunctions
install_import_hook("influence_ssl_jax", "beartype.beartype")


class SharedContexts(threading.local):
    """Gives ten lowerings of a thread one MLIR context, as JAX from 0.12 on does: a small program takes as long as one."""

    make = staticmethod(mlir.make_ir_context)

    def __init__(self):
        self.context, self.left = None, 0

    def __call__(self):
        if self.left == 0:
            self.context, self.left = self.make(), 10
        self.left -= 1
        return self.context


if jax.__version_info__ < (0, 12):
    mlir.make_ir_context = SharedContexts()

settings.register_profile(
    "house", max_examples=25, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("house")

MAPS = Path("/proc/self/maps")
"""The memory maps of this process, a line each, where the system lists them."""

SECONDS = Path(__file__).parent / "seconds.json"
"""Measured seconds of every test file; `pytest --write-seconds` writes it again."""


def pytest_addoption(parser):
    parser.addoption("--write-seconds", action="store_true", help="write the seconds of every file to seconds.json")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Order the files of a worker by their measured seconds, longest first, and keep a file on one worker.

    Without workers, files run in the order in which they are named: benchmarks/mutations.py names the likeliest first.

    Files that share fitted states name a common group by `pytest.mark.xdist_group`. `make test` distributes groups in
    this order, so that a run ends with short files. A file that was not measured counts as a long one.
    """
    if not hasattr(config, "workerinput"):
        return
    seconds = json.loads(SECONDS.read_text())
    groups, weights = {}, {}
    for item in items:
        file = item.nodeid.split("::")[0]
        shared = item.get_closest_marker("xdist_group")
        if shared is None:
            item.add_marker(pytest.mark.xdist_group(file))
        groups[item] = (shared.args[0] if shared else file), file
    for group, file in set(groups.values()):
        weights[group] = weights.get(group, 0.0) + seconds.get(file, 60.0)
    items.sort(key=lambda item: (-weights[groups[item][0]], groups[item]))


def pytest_collection_finish(session):
    """Refuse to continue if groups are not kept together: shared fixtures would be set up by every worker, unnoticed.

    Raises:
        pytest.UsageError: pytest-xdist does not mark the group of a test behind its name.
    """
    names = [item.nodeid for item in session.items]
    if getattr(session.config.option, "loadgroup", False) and not all("@" in name for name in names):
        raise pytest.UsageError(
            "pytest-xdist does not know the groups of tests; install the versions of constraints.txt."
        )
    # Tracing makes very many objects that live, and a search for cycles among all of them takes long. What is imported by
    # now stays and is not searched again.
    gc.collect()
    gc.freeze()


def pytest_runtest_teardown(item, nextitem):
    """Forget compiled programs before they are too many.

    Every program holds several memory maps. Linux allows a process 65,530 of them, and a compiler that gets no more
    ends the process by a segmentation fault.
    """
    last_of_file = nextitem is None or nextitem.path != item.path
    if last_of_file and MAPS.exists() and MAPS.read_bytes().count(b"\n") > 40_000:
        jax.clear_caches()
        gc.collect()


def pytest_configure(config):
    if config.getoption("--write-seconds") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Stopwatch())


class Stopwatch:
    """Adds up the seconds of each file and writes them when the session ends."""

    def __init__(self):
        self.seconds = {}

    def pytest_runtest_logreport(self, report):
        file = report.nodeid.split("::")[0]
        self.seconds[file] = self.seconds.get(file, 0.0) + report.duration

    def pytest_sessionfinish(self):
        ordered = sorted(self.seconds.items(), key=lambda pair: -pair[1])
        SECONDS.write_text(json.dumps({file: round(value, 1) for file, value in ordered}, indent=1) + "\n")
