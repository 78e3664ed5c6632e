"""Does any check notice? Constants, operators, signs, transposes, calls and comparisons are changed, one at a time.

    python benchmarks/theory_mutations.py [MODULE ...]

Mutated are the closed forms and the oracle that they are compared with. Each mutant replaces its module in place; the items
that belong to the module are then run, uncompiled and on few draws, until one check fails. A mutant that no check notices
survives; zero is the goal. Mutants that provably compute the same are listed in theory_equivalents.json with the reason.
Results of all modules: benchmarks/results/theory_mutations.json.
"""

import ast
import copy
import importlib
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType

import jax
import numpy as np

from influence_ssl_jax.theory.instances import Draw, pool
from influence_ssl_jax.theory.item import Check

CONFRONTED_BY = {
    "background": ("background",),
    "linear": ("linear",),
    "two_layer": ("two_layer", "gauss_newton"),
    "gauss_newton": ("gauss_newton",),
    "homogeneous": ("two_layer", "cosine"),
    "properties": ("properties",),
    "groups": ("groups",),
    "deviation": ("deviation",),
    "cosine": ("cosine",),
    "leverage": ("leverage", "leave_out"),
    "leave_out": ("leave_out",),
    "gaussian": ("gaussian",),
    "oracle": ("linear", "two_layer", "cosine", "gaussian", "deviation", "groups"),
}
"""For each module of closed forms, and for the oracle, the modules whose checks confront it."""

CHECKS = "# Checks\n"
"""The line after which a module holds checks, which are not mutated."""

EQUIVALENT = {
    (module, what)
    for modules in json.loads((Path(__file__).parent / "theory_equivalents.json").read_text()).values()
    for module, every in modules.items()
    for what in every
}
"""Mutants that change no value; the file gives the reasons."""

DRAWS = 3
RESULT = Path(__file__).parent / "results" / "theory_mutations.json"
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}
SYMMETRIC = ("min(", "max(", "jnp.minimum(", "jnp.maximum(")
"""Calls whose arguments may be swapped."""
COMPARISONS = {ast.Gt: ast.Lt, ast.Lt: ast.Gt, ast.GtE: ast.LtE, ast.LtE: ast.GtE, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}


def mutants(tree: ast.Module, end: float) -> Iterator[tuple[str, ast.Module]]:
    """Copies of the tree, each with one thing of a closed form changed as `changed` does."""
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.lineno < end]
    for place, index in ((f, i) for f in functions for i in range(len(list(ast.walk(f))))):
        mutated = copy.deepcopy(tree)
        function = mutated.body[tree.body.index(place)]
        node = list(ast.walk(function))[index]
        before = ast.unparse(node)
        if changed(node) and ast.unparse(node) != before and not before.startswith(SYMMETRIC):
            yield f"{place.name}: {before} → {ast.unparse(node)}", mutated


def changed(node: ast.AST) -> bool:
    """Changes one node in place; False where there is nothing to change.

    A number grows by one, an operator becomes another, a comparison turns round; a product of matrices and a call of two
    arguments swap them, a call of one argument and a sign are dropped, a transpose too.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        node.value = node.value + 1
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        node.op = OPERATORS[type(node.op)]()
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
        node.left, node.right = node.right, node.left
    elif (
        isinstance(node, ast.Call)
        and len(node.args) >= 2
        and not any(isinstance(a, ast.Starred) for a in node.args[:2])
    ):
        node.args[0], node.args[1] = node.args[1], node.args[0]
    elif isinstance(node, ast.Call) and len(node.args) == 1 and not isinstance(node.args[0], ast.Starred):
        node.func, node.keywords = ast.parse("(lambda unchanged: unchanged)", mode="eval").body, []
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node.op = ast.UAdd()
    elif isinstance(node, ast.Attribute) and node.attr == "T":
        node.attr = "real"  # the same numbers, not transposed
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        node.ops = [COMPARISONS[type(node.ops[0])]()]
    else:
        return False
    return True


def install(module: ModuleType, tree: ast.Module) -> None:
    """Gives the module's functions the bodies of the tree: whoever holds one of them, by any name, holds the mutant."""
    scratch = dict(module.__dict__)
    exec(compile(ast.fix_missing_locations(tree), str(module.__file__), "exec"), scratch)
    for name, function in vars(module).items():
        if isinstance(function, FunctionType) and function.__module__ == module.__name__:
            function.__code__, function.__defaults__ = scratch[name].__code__, scratch[name].__defaults__


def notices(check: Check, rows: list) -> bool:
    """Whether the check fails, or cannot be computed at all."""
    measured = []
    try:
        for row in rows[: check.most]:
            measured.append(float(check.measure(Draw(row))))
            # A worst value out of bounds stays out of bounds: the other draws need not be computed.
            if check.limit.statistic == "worst" and not check.judge(np.asarray(measured)).passed:
                return True
        return not check.judge(np.asarray(measured)).passed
    except Exception:
        return True


def cost(check: Check, rows: list) -> float:
    """Seconds of a check that has run before."""
    start = time.perf_counter()
    notices(check, rows)
    return time.perf_counter() - start


def survivors(name: str, rows: list) -> dict:
    """How many mutants a module has, which of them change nothing, and which no check notices."""
    module = importlib.import_module(f"influence_ssl_jax.theory.{name}")
    source = Path(str(module.__file__)).read_text()
    original, (forms, *checked) = ast.parse(source), source.split(CHECKS)
    end = forms.count("\n") if checked else math.inf
    items = [
        item
        for family in CONFRONTED_BY[name]
        for item in importlib.import_module(f"influence_ssl_jax.theory.{family}").ITEMS
    ]
    # A fraction over 200 draws may not hold over three: such a check cannot tell mutants apart here and is left out.
    every = [check for item in items for check in item.all_checks()]
    checks = sorted((check for check in every if not notices(check, rows)), key=lambda check: cost(check, rows[:1]))
    print(f"{name}: {len(checks)} of {len(every)} checks", flush=True)
    count, alive, same = 0, [], []
    for what, mutated in mutants(original, end):
        count += 1
        try:
            install(module, mutated)
            noticed = next((check for check in checks if notices(check, rows)), None)
            if noticed is not None:
                checks.insert(0, checks.pop(checks.index(noticed)))  # what noticed one mutant may well notice the next
            else:
                (same if (name, what) in EQUIVALENT else alive).append(what)
        except Exception as error:
            print(f"{name}.py {what} cannot be imported: {error}", flush=True)  # noticed, if not by a check
        finally:
            install(module, original)
    return {"mutants": count, "equivalent": same, "survivors": alive}


def main(names: list[str]) -> None:
    """These modules, all where none is named; writes the counts and the survivors beside those already found."""
    jax.config.update("jax_enable_x64", True)
    drawn = pool(jax.random.key(0), DRAWS)
    rows = [jax.tree.map(lambda numbers, k=k: numbers[k], drawn) for k in range(DRAWS)]
    by_module = json.loads(RESULT.read_text())["modules"] if RESULT.exists() else {}
    for name in names or CONFRONTED_BY:
        start = time.process_time()
        by_module[name] = survivors(name, rows)
        print(name, by_module[name], f"{time.process_time() - start:.0f} s of CPU", flush=True)
        ordered = {name: by_module[name] for name in CONFRONTED_BY if name in by_module}
        totals = {
            key: sum(module[key] if key == "mutants" else len(module[key]) for module in ordered.values())
            for key in ("mutants", "equivalent", "survivors")
        }
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps({**totals, "modules": ordered}, indent=1, ensure_ascii=False) + "\n")
    print(totals)


if __name__ == "__main__":
    main(sys.argv[1:])
