"""Commands that answer recalls: recall, batch, vectors, serve. They load no torch."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vecall import console
from vecall.cli.output import JsonOption, ReleaseOption, StoreOption, print_result, wrap_command
from vecall.errors import QueryError
from vecall.runtime.signals import exit_on_sigterm

_KOption = Annotated[int | None, typer.Option("-k", help="Number of items (default: the request's k, else 100).")]


@wrap_command
def recall(
    store: StoreOption,
    user: Annotated[str | None, typer.Option("--user", help="User id.")] = None,
    request: Annotated[
        Path | None, typer.Option("--request", help="File with a JSON request, as for POST /v1/recall.")
    ] = None,
    k: _KOption = None,
    release: ReleaseOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Recall items for one user, given by --user or --request. Loads no torch."""
    from vecall.recall.query import Query
    from vecall.recall.recaller import open_recaller

    if (user is None) == (request is None):
        raise typer.BadParameter("use either --user or --request")
    with open_recaller(store, release=release) as recaller:
        fields = {"user_id": recaller.parse_user_id(str(user))} if request is None else _read_request(request)
        recalled = recaller.recall(Query.from_json(fields | ({} if k is None else {"k": k})))
    if as_json:
        console.print_json(recalled.as_json())
        return
    rows = [[str(item_id), f"{score:.4f}"] for item_id, score in zip(recalled.ids, recalled.scores, strict=True)]
    console.print_table(f"release {recalled.release}", ["id", "score"], rows)
    if recalled.fallback:
        console.out.print(f"fallback: {recalled.fallback}")
    if recalled.degraded:
        console.out.print(f"degraded: {', '.join(recalled.degraded)}")


def _read_request(path: Path) -> dict[str, Any]:
    try:
        request = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise QueryError(f"{path}: not a readable JSON file: {error}", code="bad_json") from error
    if not isinstance(request, dict):
        raise QueryError(f"{path}: expected a JSON object, got {type(request).__name__}", code="bad_json")
    return request


@wrap_command
def batch(
    store: StoreOption,
    users: Annotated[
        Path,
        typer.Option(
            "--users", help="File of users: .parquet, .csv or .tsv with user ids, else JSON Lines of requests."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Parquet file of the results.")],
    k: _KOption = None,
    release: ReleaseOption = None,
    recommend: Annotated[
        bool, typer.Option("--recommend", help="Rank: requests are those of POST /v1/recommend; k is 20 by default.")
    ] = False,
    *,
    as_json: JsonOption = False,
) -> None:
    """Recall items, or recommend final lists, for all users of a file. Loads no torch."""
    from vecall.recall.batch import recall_file, recommend_file
    from vecall.recall.recaller import open_recaller

    with exit_on_sigterm(), open_recaller(store, release=release) as recaller:
        result = (recommend_file if recommend else recall_file)(recaller, users, out, k=k)
    rate = f" ({result.users / result.seconds:,.0f} users/s)" if result.seconds else ""
    text = f"{result.users:,} users in {result.seconds:.1f} s{rate}: {out}"
    print_result(result.as_json(), text, as_json=as_json)


@wrap_command
def vectors(
    store: StoreOption,
    out: Annotated[Path, typer.Option("--out", help="Parquet file of ids and vectors.")],
    users: Annotated[bool, typer.Option("--users", help="Export the vectors of users instead of items.")] = False,
    release: ReleaseOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Export the vectors of all items, or of all users, with live changes. Loads no torch."""
    from vecall.recall.recaller import open_recaller
    from vecall.recall.vector_export import export_item_vectors, export_user_vectors

    with exit_on_sigterm(), open_recaller(store, release=release) as recaller:
        result = (export_user_vectors if users else export_item_vectors)(recaller, out)
    text = f"{result.rows:,} vectors of {result.dim} dimensions: {out}"
    print_result(result.as_json(), text, as_json=as_json)


@wrap_command
def serve(
    store: StoreOption,
    host: Annotated[
        str | None,
        typer.Option(help="Address to bind (default 127.0.0.1; any other address requires API keys)."),
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (default 8080; 0 picks a free port).")] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Number of worker processes (default 1), which share the vectors of the release."),
    ] = None,
    keys: Annotated[Path | None, typer.Option("--keys", help="TOML file with `read` and `admin` API keys.")] = None,
    settings: Annotated[
        Path | None, typer.Option("--settings", help="TOML file with further settings; options override it.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", help="Host name that clients may use; repeat for several."),
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Reject upserts, deletes and activations.")] = False,
    ranker: Annotated[
        str | None,
        typer.Option(
            "--ranker", help="MODULE:NAME of your own ranker, a function or a class; goes before the release's."
        ),
    ] = None,
    log_requests: Annotated[bool, typer.Option("--log-requests", help="Log each request.")] = False,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print an error of the start as a JSON object.")] = False,  # noqa: ARG001 - `wrap_command` reads it
) -> None:
    """Serve a store over HTTP. Loads no torch."""
    from vecall.service.server import run_server
    from vecall.service.settings import load_settings

    options: dict[str, object] = {
        "host": host,
        "port": port,
        "workers": workers,
        "allowed_hosts": tuple(allow_host) if allow_host else None,
        "writable": False if read_only else None,
        "ranker": ranker,
        "log_requests": True if log_requests else None,
    }
    overrides = {name: value for name, value in options.items() if value is not None}
    run_server(store, load_settings(settings, overrides), keys_file=keys)
