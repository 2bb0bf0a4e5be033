"""The `vecall` command line. Commands import what they need when they run, so that serving commands load no torch."""

from typing import Annotated

import typer

from vecall import console
from vecall.cli import doctor as doctor_commands
from vecall.cli import reference as reference_commands
from vecall.cli import serving as serving_commands
from vecall.cli import store as store_commands
from vecall.cli import training as training_commands
from vecall.runtime.huge_pages import use_huge_pages
from vecall.runtime.openmp import limit_spinning

app = typer.Typer(
    help="vecall (矢量召回): train two towers, publish a release, recall items.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    training_commands.quickstart,
    training_commands.fit,
    training_commands.publish,
    training_commands.evaluate,
    doctor_commands.doctor,
    serving_commands.recall,
    serving_commands.batch,
    serving_commands.vectors,
    serving_commands.serve,
    store_commands.compact,
    store_commands.reindex,
    reference_commands.config,
):
    app.command()(command)
app.add_typer(store_commands.releases_app, name="releases")
app.add_typer(store_commands.journal_app, name="journal")


@app.callback()
def _setup(
    *, verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Enable info-level logging.")] = False
) -> None:
    console.configure_logging(verbose=verbose)


def main() -> None:
    """Run the command line; entry point of the `vecall` script."""
    limit_spinning()  # before a command loads faiss or torch
    use_huge_pages()
    app()
