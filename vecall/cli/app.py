"""The `vecall` command: parses, calls, prints. Each command imports what it needs, so that recall loads no torch."""

from typing import Annotated

import typer

from vecall import console
from vecall.cli import serving as serving_module
from vecall.cli import store as store_module
from vecall.cli import training
from vecall.runtime.openmp import limit_spinning

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
    serving_module.recall,
    serving_module.batch,
    serving_module.serve,
    store_module.compact,
):
    app.command()(command)
app.add_typer(store_module.releases_app, name="releases")
app.add_typer(store_module.journal_app, name="journal")


@app.callback()
def _setup(
    *, verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what goes well, too.")] = False
) -> None:
    console.configure_logging(verbose=verbose)


def main() -> None:
    """The console script."""
    limit_spinning()
    app()
