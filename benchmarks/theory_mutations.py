"""Does any check notice? Every constant and operator of the closed forms is changed, one at a time.

    python benchmarks/theory_mutations.py

Each mutant replaces its module in place; the items that belong to the module are then run, uncompiled and on few draws.
A mutant that no check notices survives; zero is the goal. Results: benchmarks/results/theory_mutations.json.
"""

import ast
import copy
import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jax
import numpy as np

from influence_ssl_jax.theory.draw import Draw, pool
from influence_ssl_jax.theory.item import Check

ITEMS_OF = {
    "background": ("background",),
    "linear": ("linear",),
    "two_layer": ("two_layer", "gauss_newton"),
    "gauss_newton": ("gauss_newton",),
    "homogeneous": ("two_layer", "cosine_derivatives"),
    "empirical_fisher": ("gauss_newton",),
    "properties": ("invariance", "stability"),
    "groups": ("conservation", "groups"),
    "deviation": ("deviation",),
    "cosine": ("cosine", "cosine_derivatives"),
    "cosine_derivatives": ("cosine_derivatives",),
    "leverage": ("leverage", "leave_out"),
    "leave_out": ("leave_out",),
    "gaussian": ("gaussian",),
}
"""For each module of closed forms, the modules of items that confront it."""

DRAWS = 3
RESULT = Path(__file__).parent / "results" / "theory_mutations.json"
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}
COMPARISONS = {ast.Gt: ast.Lt, ast.Lt: ast.Gt}


def mutants(tree: ast.Module) -> Iterator[tuple[str, ast.Module]]:
    """Copies of the tree, each with one number one larger, one operator swapped, one sign dropped."""
    for index in range(len(list(ast.walk(tree)))):
        mutated = copy.deepcopy(tree)
        node = list(ast.walk(mutated))[index]
        before = ast.unparse(node)
        if changed(node):
            yield f"line {getattr(node, 'lineno', 0)}: {before} → {ast.unparse(node)}", mutated


def changed(node: ast.AST) -> bool:
    """Changes a number, an operator, a sign or a comparison in place; False where the node is none of them."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        node.value = node.value + 1
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        node.op = OPERATORS[type(node.op)]()
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node.op = ast.UAdd()
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        node.ops = [COMPARISONS[type(node.ops[0])]()]
    else:
        return False
    return True


def install(module: ModuleType, tree: ast.Module) -> None:
    """Runs the tree in the module's own namespace, so that everything that looks a form up there finds it."""
    exec(compile(ast.fix_missing_locations(tree), str(module.__file__), "exec"), module.__dict__)


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


def survivors(name: str, rows: list) -> tuple[int, list[str]]:
    """How many mutants a module has, and those that no check notices."""
    module = importlib.import_module(f"influence_ssl_jax.theory.{name}")
    original = ast.parse(Path(str(module.__file__)).read_text())
    items = [
        item
        for family in ITEMS_OF[name]
        for item in importlib.import_module(f"influence_ssl_jax.theory.items.{family}").ITEMS
    ]
    # A fraction over 200 draws may not hold over three: such a check cannot tell mutants apart here and is left out.
    every = [check for item in items for check in item.all_checks()]
    checks = [check for check in every if not notices(check, rows)]
    print(f"{name}: {len(checks)} of {len(every)} checks", flush=True)
    count, alive = 0, []
    for what, mutated in mutants(original):
        count += 1
        try:
            install(module, mutated)
            if not any(notices(check, rows) for check in checks):
                alive.append(f"{name}.py {what}")
                print("survives:", alive[-1], flush=True)
        except Exception as error:
            print(f"{name}.py {what} cannot be imported: {error}", flush=True)
        finally:
            install(module, original)
    return count, alive


def main() -> None:
    """All modules; writes the count and the survivors."""
    jax.config.update("jax_enable_x64", True)
    drawn = pool(jax.random.key(0), DRAWS)
    rows = [jax.tree.map(lambda numbers, k=k: numbers[k], drawn) for k in range(DRAWS)]
    start, found = time.perf_counter(), {}
    for name in ITEMS_OF:
        count, alive = survivors(name, rows)
        found[name] = {"mutants": count, "survivors": alive}
        print(f"{name}: {len(alive)} of {count} survive, {time.perf_counter() - start:.0f} s", flush=True)
    total = sum(module["mutants"] for module in found.values())
    surviving = sum(len(module["survivors"]) for module in found.values())
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(
        json.dumps({"mutants": total, "survivors": surviving, "modules": found}, indent=1, ensure_ascii=False) + "\n"
    )
    print(f"{surviving} of {total} mutants survive")


if __name__ == "__main__":
    main()
