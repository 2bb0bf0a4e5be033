"""Plain tables that neither a pipe nor a narrow terminal truncates."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

console = Console(width=140, highlight=False, markup=False)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, align_left: int = 1) -> None:
    """Print a title and a table.

    Args:
        title: the line above the table.
        columns: headers.
        rows: cells, as many in each row as columns.
        align_left: number of leading columns that are left-aligned; the others are right-aligned.
    """
    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < align_left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(f"\n{title}", style="bold")
    console.print(table)
