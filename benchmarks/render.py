"""`docs/benchmarks.md`, `docs/benchmarks-aims.md` and plots from `benchmarks/results/*.json`.

python -m benchmarks.render
"""

import re
from pathlib import Path
from typing import Any

import jinja2
import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from benchmarks.aims import Results, aims, elsewhere
from benchmarks.results import FOLDER, number, read, spread

DOCS = Path(__file__).parents[1] / "docs"
TEMPLATES = Path(__file__).parent / "templates"
PAGES = ("benchmarks", "benchmarks-aims")
BENCHMARKS = ("agreement", "cost", "gram_cost", "primitives", "fidelity", "convolutions")
TRANSFORMER = "vision_transformer"


def results(folder: Path = FOLDER) -> Results:
    """Read everything that these benchmarks have written."""
    names = sorted(path.stem for path in folder.glob("*.json"))
    kinds = (TRANSFORMER, *BENCHMARKS)
    records = {name: read(name, folder) for name in names if name.startswith(kinds)}
    return {name: result for name, result in records.items() if result is not None}


def page(records: Results, name: str = "benchmarks") -> str:
    """Return the text of a page, `benchmarks` or `benchmarks-aims`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.ChainableUndefined, trim_blocks=True
    )
    environment.filters |= {
        "number": number,
        "whole": lambda value: f"{value:,.0f}" if value else "",
        "spread": spread,
        "machine": machine,
        "per_vector": per_vector,
    }
    return environment.get_template(f"{name}.md.jinja").render(
        summary=" ".join(summary(records)),
        aims=aims(records),
        agreement=records.get("agreement"),
        transformer=records.get(TRANSFORMER),
        **{kind: every(records, kind) for kind in BENCHMARKS[1:]},
    )


def summary(records: Results) -> list[str]:
    """Return what was measured, in a sentence each for agreement, cost and retraining; nothing of what was not."""
    said = []
    agreement = records.get("agreement")
    if agreement:
        holds = sum(row["value"] <= row["tolerance"] for row in agreement["findings"])
        said.append(
            f"Asked in the same convention, this package and its peers compute the same numbers: {holds} of "
            f"{len(agreement['findings'])} comparisons hold."
        )
    costs = [result for result in every(records, "cost") if result["made"]["device"]["platform"] == "cpu"]
    if costs:
        result = max(costs, key=lambda each: each["config"]["setting"]["batch"])
        cost = {row["operation"]: row["gradients"][0] for row in result["operations"] if "failed" not in row}
        ours, theirs = "EK-FAC, every eigenvector, score", "kronfluence EK-FAC, score"
        ours_projected, theirs_projected = "LoGra, rank 16, score", "LogIX's definition, rank 16, score"
        if {ours, theirs, ours_projected, theirs_projected} <= cost.keys():
            setting = result["config"]["setting"]
            said.append(
                f"In gradients of its own framework (ResNet-18 of width {setting['width']}, batches of {setting['batch']}, "
                f"CPU), a score by EK-FAC costs {number(cost[ours])} here and {number(cost[theirs])} in kronfluence, by "
                f"LoGra of rank 16 {number(cost[ours_projected])} here and {number(cost[theirs_projected])} by LogIX's "
                "definition in torch."
            )
    effects = [
        row["left_out"][0]
        for task in every(records, "fidelity")
        for row in task["rows"]
        if row["method"] == "Exact, Hessian"
    ]
    if effects:
        said.append(
            f"On {len(effects)} small problems, trained again without one example at a time, exact scores by the "
            f"Hessian rank the effects with Spearman's ρ from {number(min(effects))} to {number(max(effects))}."
        )
    return said


def every(records: Results, kind: str) -> list[dict[str, Any]]:
    """Return the results of one benchmark, small networks first."""
    return [result for name, result in sorted(records.items(), key=_order) if name.startswith(f"{kind}_")]


def machine(made: dict[str, Any]) -> str:
    """Describe the machine, versions and date."""
    names = ("jax", "torch", "kronfluence", "dattri", "curvlinops-for-pytorch")
    versions = ", ".join(f"{name} {made['versions'][name]}" for name in names if name in made["versions"])
    where = f"{made['cores']} cores of {made['processor']}"
    if made["device"]["platform"] != "cpu":
        where = f"{made['device']['kind']}, float32 products at precision `{made['device']['matmul_precision']}`"
    return f"{made['date']}, {where}; {versions}"


def per_vector(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Divide the costs of blocks by their number of vectors."""

    def divided(row: dict[str, Any]) -> dict[str, Any]:
        block = re.search(r"block of (\d+)", row["operation"])
        count = int(block.group(1)) if block else 1
        return row | {kind: [value / count for value in row[kind]] for kind in ("seconds", "gradients") if kind in row}

    return [divided(row) for row in rows]


def plot_costs(records: Results, path: Path) -> None:
    """Draw fitting and scoring in gradients, one panel for each setting."""
    costs = every(records, "cost")
    down, across = -(-len(costs) // 2), min(2, len(costs))
    figure, panels = plt.subplots(down, across, figsize=(6.5 * across, 5 * down), squeeze=False, layout="constrained")
    for panel in panels.flat[len(costs) :]:
        panel.set_axis_off()
    for panel, result in zip(panels.flat, costs, strict=False):
        rows = [row for row in reversed(result["operations"]) if row["operation"] != "gradient" and "failed" not in row]
        colours = ["tab:blue" if row["framework"] == "jax" else "tab:orange" for row in rows]
        panel.barh([row["operation"] for row in rows], [row["gradients"][0] for row in rows], color=colours)
        panel.axvline(1, color="black", linewidth=0.8)
        setting = result["config"]["setting"]
        title = f"width {setting['width']}, batch {setting['batch']}{elsewhere(result)}"
        panel.set(xscale="log", xlabel="own gradients (blue: jax, orange: torch)", title=title)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def plot_fidelity(records: Results, path: Path) -> None:
    """Draw the rank correlations of left-out effects, one panel for each task."""
    tasks = every(records, "fidelity")
    figure, panels = plt.subplots(1, len(tasks), figsize=(5 * len(tasks), 4.5), layout="constrained", squeeze=False)
    for panel, task in zip(panels[0], tasks, strict=True):
        rows = list(reversed(task["rows"]))
        for place, row in enumerate(rows):
            value, low, high = row["left_out"] or (float("nan"),) * 3
            colour = "tab:gray" if row["method"].startswith("null") else "tab:blue"
            panel.plot([low, high], [place, place], color=colour)
            panel.plot([value], [place], "o", color=colour)
        for ceiling in task["seed_to_seed"]:
            panel.axvline(ceiling, color="tab:red", linestyle="--", linewidth=0.8)
        panel.set(title=task["task"], xlabel="Spearman's ρ", xlim=(-0.6, 1.05))
        panel.set_yticks(range(len(rows)), [row["method"] for row in rows], fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Write the pages and the plots."""
    plt.rcParams["svg.hashsalt"] = "benchmarks"  # the same file for the same figures
    records = results()
    plots = DOCS / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    for name in PAGES:
        (DOCS / f"{name}.md").write_text(page(records, name))
    if every(records, "cost"):
        plot_costs(records, plots / "cost.svg")
    if every(records, "fidelity"):
        plot_fidelity(records, plots / "fidelity.svg")


def _order(item: tuple[str, dict[str, Any]]) -> tuple[int, int, str]:
    name, result = item
    setting = result["config"].get("setting", {"width": result.get("parameters", 0)})  # none for a fidelity task
    return setting["width"], setting.get("batch", 0), name


if __name__ == "__main__":
    main()
