"""Results as plain tables that neither a pipe nor a narrow screen cuts off."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

console = Console(width=140, highlight=False, markup=False)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A title and a table; columns but the first are right-aligned."""
    made = Table(box=None, pad_edge=False)
    for place, column in enumerate(columns):
        made.add_column(column, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    console.print(f"\n{title}", style="bold")
    console.print(made)
