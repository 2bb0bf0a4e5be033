"""Shared parts of all commands: common options, error handling, and results as text or JSON."""

import functools
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from vecall import console, progress
from vecall.errors import QueryError, VecallError
from vecall.runtime.missing_modules import explain_missing_module

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout; logs and progress go to stderr.")
]
StoreOption = Annotated[Path, typer.Option("--store", help="Store directory.")]
RunOption = Annotated[Path, typer.Option("--run", help="Run directory.")]
ReleaseOption = Annotated[str | None, typer.Option("--release", help="Release name (default: the current release).")]
ActivateOption = Annotated[bool, typer.Option("--activate/--no-activate", help="Make it the current release.")]


def wrap_command(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command: show progress, and report an expected error in one line with exit code 1."""

    @functools.wraps(command)
    def wrapper(*args: Any, **options: Any) -> None:  # noqa: ANN401 - values that typer parsed
        try:
            with progress.report_to(console.build_progress_listener()):
                command(*args, **options)
        except VecallError as error:
            _print_error(error, as_json=bool(options.get("as_json")))
            raise typer.Exit(1) from None
        except OSError as error:  # of a file access that nothing else wraps, for example on a failing disk
            _print_error(VecallError(f"{error}"), as_json=bool(options.get("as_json")))
            raise typer.Exit(1) from error
        except ModuleNotFoundError as error:
            extra = "serve" if command.__name__ == "serve" else "train"
            text = explain_missing_module(error, needed_by="this command", extra=extra)
            _print_error(VecallError(text), as_json=bool(options.get("as_json")))
            raise typer.Exit(1) from error

    return wrapper


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does, so that it removes its temporary files; exit code 143 as without."""

    def exit_command(*_: object) -> None:
        sys.exit(128 + signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, exit_command)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _print_error(error: VecallError, *, as_json: bool) -> None:
    if as_json:
        code = error.code if isinstance(error, QueryError) else type(error).__name__
        field = error.field if isinstance(error, QueryError) else None
        console.print_json({"error": {"code": code, "message": str(error), "field": field}})
    else:
        text = f"vecall: {error}".encode(
            errors="backslashreplace"
        ).decode()  # a path may contain bytes that are not UTF-8
        console.err.print(text, style="red", soft_wrap=True)


def print_result(payload: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Print a result as JSON or as text.

    Args:
        payload: The result as a JSON object.
        text: The result for people.
        as_json: Which of the two is printed.
    """
    if as_json:
        console.print_json(payload)
    else:
        console.out.print(text)
