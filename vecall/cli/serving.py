"""Commands that answer: recall, batch, serve. None loads torch."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vecall import console
from vecall.cli.output import JsonOption, StoreOption, handle_errors, print_result
from vecall.errors import QueryError


@handle_errors
def recall(
    store: StoreOption,
    user: Annotated[str | None, typer.Option("--user", help="A user id.")] = None,
    request: Annotated[Path | None, typer.Option("--request", help="A JSON request, as over HTTP.")] = None,
    k: Annotated[int | None, typer.Option("-k", help="How many items; 100, or what the request says.")] = None,
    release: Annotated[str | None, typer.Option("--release", help="The current one by default.")] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Recall items for one user. Loads no torch."""
    from vecall.recall.query import Query
    from vecall.recall.recaller import open_recaller

    if (user is None) == (request is None):
        raise typer.BadParameter("give either --user or --request")
    with open_recaller(store, release=release) as recaller:
        asked = {"user_id": recaller.parse_user_id(str(user))} if request is None else _read_request(request)
        answer = recaller.recall(Query.from_json(asked | ({} if k is None else {"k": k})))
    if as_json:
        console.print_json(answer.as_json())
        return
    rows = [[str(one), f"{score:.4f}"] for one, score in zip(answer.ids, answer.scores, strict=True)]
    console.print_table(f"release {answer.release}", ["id", "score"], rows)
    if answer.fallback:
        console.out.print(f"fallback: {answer.fallback}")


@handle_errors
def batch(
    store: StoreOption,
    users: Annotated[Path, typer.Option("--users", help="Requests, JSON, one a line; or a .parquet or .csv of ids.")],
    out: Annotated[Path, typer.Option("--out", help="The Parquet table of answers.")],
    k: Annotated[int | None, typer.Option("-k", help="How many items; 100, or what a request says.")] = None,
    release: Annotated[str | None, typer.Option("--release", help="The current one by default.")] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Recall items for all users of a file. Loads no torch."""
    from vecall.recall.batch import recall_file
    from vecall.recall.recaller import open_recaller

    with open_recaller(store, release=release) as recaller:
        done = recall_file(recaller, users, out, k=k)
    line = f"{done.users:,} users in {done.seconds:.1f} s, {done.users / max(done.seconds, 1e-9):,.0f} a second: {out}"
    print_result(done.as_json(), line, as_json=as_json)


@handle_errors
def serve(
    store: StoreOption,
    host: Annotated[str | None, typer.Option(help="To listen on; 127.0.0.1, and others need keys.")] = None,
    port: Annotated[int | None, typer.Option(help="8080; 0 is one that is free.")] = None,
    workers: Annotated[int | None, typer.Option(help="1; more use more cores, each with the store in memory.")] = None,
    keys: Annotated[Path | None, typer.Option("--keys", help="TOML with `read` and `admin` keys.")] = None,
    settings: Annotated[Path | None, typer.Option("--settings", help="TOML with further settings.")] = None,
    allow_host: Annotated[list[str] | None, typer.Option("--allow-host", help="A name that clients may use.")] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Take no upserts and deletes.")] = False,
    log_requests: Annotated[bool, typer.Option("--log-requests", help="Log each request.")] = False,
) -> None:
    """Serve a store over HTTP. Loads no torch."""
    from vecall.service.server import run_server
    from vecall.service.settings import load_settings

    given: dict[str, object] = {"host": host, "port": port, "workers": workers}
    given |= {"allowed_hosts": tuple(allow_host or ()) or None}
    given |= {"writable": False if read_only else None, "log_requests": True if log_requests else None}
    said = {name: value for name, value in given.items() if value is not None}
    run_server(store, load_settings(settings, said), keys_file=keys)


def _read_request(path: Path) -> dict[str, Any]:
    try:
        asked = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise QueryError(f"{path}: is not a JSON file: {error}", code="bad_json") from error
    if not isinstance(asked, dict):
        raise QueryError(f"{path}: expected an object, got {type(asked).__name__}", code="bad_json")
    return asked
