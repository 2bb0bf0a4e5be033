"""Shared parts of all commands: common options, error handling, and results as text or JSON."""

import functools
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from vecall import console, progress
from vecall.errors import QueryError, TrainingError, VecallError, get_public_name
from vecall.runtime.missing_modules import explain_missing_module
from vecall.runtime.process_rank import is_main_process

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


def _print_error(error: VecallError, *, as_json: bool) -> None:
    if as_json and _is_main():  # one object, however many processes train
        code = error.code if isinstance(error, QueryError) else get_public_name(error)
        field = error.field if isinstance(error, QueryError) else None
        with suppress(OSError):  # stdout may be what failed
            console.print_json({"error": {"code": code, "message": str(error), "field": field}})
            return
    text = f"vecall: {error}".encode(errors="backslashreplace").decode()  # paths may contain bytes that are not UTF-8
    console.err.print(text, style="red", soft_wrap=True)


def _is_main() -> bool:
    try:
        return is_main_process()
    except TrainingError:  # that the environment is incomplete, which may be what is reported
        return True


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
