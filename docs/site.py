"""Hooks of the site: notebooks as tutorials, the reference from the public names, formulas as MathML.

mkdocs reads this file (`hooks` in mkdocs.yml). Nothing that it makes is committed.
"""

import json
import re
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import influence_ssl_jax

ROOT = Path(__file__).parents[1]
MODULES = {
    "Runs": ("runs.settings", "runs.pretrain", "runs.probe", "runs.score", "runs.audit", "runs.compare"),
    "Problems and curvature": ("problem", "curvature.products", "curvature.gradients", "curvature.blocks", "types"),
    "Backends": ("ihvp.backend",),
    "Losses": ("losses.loss", "losses.alignment"),
    "Views": ("augment.transform", "augment.recipes"),
    "Data": ("data.source", "data.examples"),
    "Scores": ("scoring.scores", "scoring.estimands"),
    "Evaluation": ("evaluation.certificate", "evaluation.calibration", "evaluation.statistics"),
    "Linear algebra": ("linalg.krylov", "linalg.lowrank", "linalg.quadrature"),
    "Errors": ("errors",),
}
"""Modules of the reference, beside the names at the top of the package."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the tutorials, the reference and pictures that lie outside docs/."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"tutorials/{path.stem}.md", content=tutorial(path)))
    for name, content in reference().items():
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.png")):
        files.append(File.generated(config, f"plots/{path.name}", abs_src_path=str(path)))
    files.append(File.generated(config, "changes.md", content=(ROOT / "CHANGELOG.md").read_text()))
    files.append(File.generated(config, "contributing.md", content=(ROOT / "CONTRIBUTING.md").read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write formulas as MathML, and point at the site's own copies of what lies outside docs/."""
    del config, files
    if page.file.src_uri.startswith("reference/"):
        return markdown
    up = "../" * page.file.src_uri.count("/")
    markdown = markdown.replace("](../benchmarks/results/", f"]({up}plots/")
    if page.file.src_uri in ("changes.md", "contributing.md"):  # they stand above docs/
        markdown = markdown.replace("](docs/", "](")
    return typeset(markdown)


def tutorial(path: Path) -> str:
    """Return a notebook as Markdown: its text, code and committed outputs."""
    cells = json.loads(path.read_text())["cells"]
    return "\n\n".join(part for cell in cells for part in parts(cell)) + "\n"


def parts(cell: dict[str, Any]) -> list[str]:
    """Return a cell and its outputs as blocks of Markdown."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    outputs = groupby(cell["outputs"], key=lambda output: output["output_type"] == "stream")
    said = [part for printed, group in outputs for part in ([printed_text(group)] if printed else map(shown, group))]
    return [f"```python\n{source}\n```", *said]


def printed_text(outputs: Iterable[dict[str, Any]]) -> str:
    """Return what a cell printed, however many pieces it came in, as one block."""
    return "```text\n" + "".join("".join(each["text"]) for each in outputs).rstrip() + "\n```"


def shown(output: dict[str, Any]) -> str:
    """Return an output as Markdown.

    Raises:
        ValueError: It is of a kind that is not known here.
    """
    data = output.get("data", {})
    if "image/png" in data:
        return f"![Output of the code above](data:image/png;base64,{data['image/png'].replace(chr(10), '')})"
    if "text/markdown" in data:
        return "".join(data["text/markdown"])
    if "text/plain" in data:
        return "```text\n" + "".join(data["text/plain"]) + "\n```"
    raise ValueError(f"A notebook has an output of kind {output['output_type']!r} with {sorted(data)}.")


def reference() -> dict[str, str]:
    """Return the pages of the reference: the public names by module, and modules by topic."""
    places = sorted((module, name) for name, module in influence_ssl_jax._MODULES.items())
    lines = ["# Public names", "", "`import influence_ssl_jax as isj`, then `isj.EKFAC` and so on.", ""]
    for module, names in groupby(places, key=lambda place: place[0]):
        lines += [f"## {module}", ""]
        lines += [f"::: influence_ssl_jax.{module}.{name}\n    options:\n      heading_level: 3\n" for _, name in names]
    pages = {"index": "\n".join(lines)}
    for topic, modules in MODULES.items():
        elsewhere = "|".join(sorted(influence_ssl_jax._MODULES))
        options = f"heading_level: 2\n      filters: ['!^_', '!^({elsewhere})$']"
        blocks = [f"::: influence_ssl_jax.{module}\n    options:\n      {options}\n" for module in modules]
        said = "What is at the top of the package is under [public names](index.md)."
        pages[topic.lower().replace(" ", "-")] = "\n".join([f"# {topic}", "", said, "", *blocks])
    return pages


def typeset(markdown: str) -> str:
    """Replace `$…$` and `$$…$$` by MathML, outside code."""
    pieces = re.split(r"(^```.*?^```|^~~~.*?^~~~|`[^`\n]+`)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(piece if at % 2 else formulas(piece) for at, piece in enumerate(pieces))


def formulas(text: str) -> str:
    """Replace the formulas of a text without code."""
    text = re.sub(r"\$\$(.+?)\$\$", lambda found: f"\n\n{mathml(found[1], 'block')}\n\n", text, flags=re.DOTALL)
    return re.sub(r"\$([^$]+)\$", lambda found: mathml(found[1], "inline"), text)


def mathml(formula: str, display: str) -> str:
    """Return a formula as MathML on one line, inside an element that Markdown leaves in its paragraph."""
    written = convert(" ".join(formula.split()), display=display).replace("\n", "")
    return f'<span class="formula">{written}</span>' if display == "inline" else written
