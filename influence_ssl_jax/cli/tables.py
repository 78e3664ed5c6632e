"""Print the tables of an audit and of a comparison."""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from influence_ssl_jax.report import audited, backends


def print_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], out: Console) -> None:
    """Print a table whose first column is text and whose others are numbers."""
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for index, head in enumerate(heads):
        shown.add_column(head, justify="right" if index else "left")
    for row in rows:
        shown.add_row(*row)
    out.print(shown)


def print_audit(record: dict[str, Any], out: Console) -> None:
    """Print the table of an audit and its remarks."""
    title = f"Against {record['counts']['certified']} certified scores, λ = {record['damping']:.4g}"
    print_table(title, audited.HEADS, audited.table(record), out)
    for remark in audited.remarks(record):
        out.print(remark, style="dim", highlight=False)


def print_comparison(rows: backends.Rows, out: Console) -> None:
    """Print one table for each damping, best backend first; then what failed, with its reason."""
    for damping in dict.fromkeys(row["damping"] for row in rows):
        print_table(f"λ = {damping:g} × mean eigenvalue", backends.HEADS, backends.table(rows, damping), out)
    for row in rows:
        if row["reason"]:
            out.print(f"{row['name']}, λ {row['damping']:g}: {row['reason']}", style="dim", highlight=False)
