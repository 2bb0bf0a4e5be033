"""What all commands share: options, one readable line for a mistake, one JSON object where it is asked for."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from vecall import console, progress
from vecall.errors import QueryError, VecallError

_SERVE_MODULES = ("httptools", "jinja2", "orjson", "prometheus_client", "starlette", "uvicorn", "uvloop")

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; logs and progress go to stderr.")]
StoreOption = Annotated[Path, typer.Option("--store", help="The store's folder.")]
RunOption = Annotated[Path, typer.Option("--run", help="The run's folder.")]


def handle_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Show progress, and turn a user's mistake into one readable line and exit code 1."""

    @functools.wraps(command)
    def wrapper(*args: Any, **options: Any) -> None:  # noqa: ANN401 - whatever typer parsed
        try:
            with progress.report_to(console.ProgressBars()):
                command(*args, **options)
        except VecallError as error:
            _print_error(error, as_json=bool(options.get("as_json")))
            raise typer.Exit(1) from None
        except OSError as error:  # of a place that nobody has thought of
            _print_error(VecallError(f"{error}"), as_json=bool(options.get("as_json")))
            raise typer.Exit(1) from error
        except ModuleNotFoundError as error:
            extra = "serve" if error.name in _SERVE_MODULES else "train"
            missing = VecallError(f"this command needs {error.name}: pip install 'vecall[{extra}]'")
            _print_error(missing, as_json=bool(options.get("as_json")))
            raise typer.Exit(1) from error

    return wrapper


def _print_error(error: VecallError, *, as_json: bool) -> None:
    if as_json:
        code = error.code if isinstance(error, QueryError) else type(error).__name__
        field = error.field if isinstance(error, QueryError) else None
        console.print_json({"error": {"code": code, "message": str(error), "field": field}})
    else:
        text = f"vecall: {error}".encode(errors="backslashreplace").decode()  # a path may be no UTF-8
        console.err.print(text, style="red", markup=False, soft_wrap=True)


def print_result(payload: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Print a result, as JSON or as a line for people."""
    if as_json:
        console.print_json(payload)
    else:
        console.out.print(text)
