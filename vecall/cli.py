"""The `vecall` command: parses, calls, prints. Each command imports what it needs, so that recall loads no torch."""

from typing import Annotated

import typer

from vecall import console
from vecall.commands import answering, stores, training
from vecall.openmp import limit_spinning

app = typer.Typer(
    help="vecall (矢量召回): train two towers, publish a release, recall items.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    training.quickstart,
    training.fit,
    training.publish,
    training.evaluate,
    answering.recall,
    answering.batch,
    answering.serve,
    stores.compact,
):
    app.command()(command)
app.add_typer(stores.releases, name="releases")
app.add_typer(stores.journal, name="journal")


@app.callback()
def _setup(
    *, verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what goes well, too.")] = False
) -> None:
    console.quiet_libraries(verbose=verbose)


def main() -> None:
    """The console script."""
    limit_spinning()
    app()
