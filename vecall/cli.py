"""The `vecall` command: parses, calls, prints. Each command imports what it needs, so that recall loads no torch."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from vecall import console, progress
from vecall.errors import QueryError, VecallError

app = typer.Typer(
    help="vecall (矢量召回): train two towers, publish a release, recall items.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
releases = typer.Typer(
    help="List, verify, activate, roll back and prune the releases of a store.", no_args_is_help=True
)
app.add_typer(releases, name="releases")

_SERVE_EXTRA = ("fastapi", "httptools", "jinja2", "prometheus_client", "starlette", "uvicorn", "uvloop")

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; logs and progress go to stderr.")]
StoreDir = Annotated[Path, typer.Option("--store", help="The store's folder.")]
RunDir = Annotated[Path, typer.Option("--run", help="The run's folder.")]


@app.callback()
def _setup(
    *, verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what goes well, too.")] = False
) -> None:
    console.quiet_libraries(verbose=verbose)


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """Show progress, and turn a user's mistake into one readable line and exit code 1."""

    @functools.wraps(command)
    def wrapped(*args: Any, **options: Any) -> None:  # noqa: ANN401 - whatever typer parsed
        try:
            with progress.shown_by(console.Bars()):
                command(*args, **options)
        except VecallError as error:
            _print_error(error, as_json=bool(options.get("as_json")))
            raise typer.Exit(1) from None
        except ModuleNotFoundError as error:
            extra = "serve" if error.name in _SERVE_EXTRA else "train"
            missing = VecallError(f"this command needs {error.name}: pip install 'vecall[{extra}]'")
            _print_error(missing, as_json=bool(options.get("as_json")))
            raise typer.Exit(1) from error

    return wrapped


def _print_error(error: VecallError, *, as_json: bool) -> None:
    if as_json:
        code = error.code if isinstance(error, QueryError) else type(error).__name__
        field = error.field if isinstance(error, QueryError) else None
        console.print_json({"error": {"code": code, "message": str(error), "field": field}})
    else:
        console.err.print(f"vecall: {error}", style="red", markup=False, soft_wrap=True)


@app.command()
@reported
def quickstart(
    out: Annotated[Path, typer.Option("--out", help="Where run, store and report go.")] = Path("quickstart"),
    data: Annotated[Path | None, typer.Option("--data", help="Folder with MovieLens' ratings.csv, movies.csv.")] = None,
    *,
    as_json: Json = False,
) -> None:
    """The whole story on MovieLens: fit, publish, evaluate, recall."""
    from vecall.quickstart import tell

    story = tell(out, data)
    if as_json:
        console.print_json(story.as_json())
    else:
        story.show()


@app.command()
@reported
def fit(
    config: Annotated[Path, typer.Argument(help="A vecall.toml.")],
    run: RunDir,
    init: Annotated[Path | None, typer.Option("--init", help="An older run to start from.")] = None,
    *,
    as_json: Json = False,
) -> None:
    """Train towers on the tables, and judge them on what was held out."""
    from vecall.config import load_config
    from vecall.pipeline import fit as fit_run

    finished = fit_run(load_config(config), run, init=init)
    summary = finished.summary
    if as_json:
        console.print_json({"run": str(run), "seconds": summary.seconds, "metrics": summary.metrics})
        return
    excluded: Any = summary.metrics["seen_excluded"]
    console.show_metrics(f"{summary.protocol}; seen items excluded", {"model": excluded})
    console.out.print(
        f"{summary.epochs} epochs in {summary.seconds:.0f} s, the best was {summary.best_epoch + 1}: {run}"
    )


@app.command()
@reported
def publish(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    store: StoreDir,
    name: Annotated[str | None, typer.Option(help="Of the release; the time by default.")] = None,
    activate: Annotated[bool, typer.Option("--activate/--no-activate", help="Make it the current one.")] = True,
    journal_seq: Annotated[int, typer.Option(min=0, help="Journal operations that the tables already hold.")] = 0,
    *,
    as_json: Json = False,
) -> None:
    """Make a release of a run: export the towers, encode all items, build the index."""
    from vecall.pipeline import publish as publish_run

    made = publish_run(run, store, name=name, activate=activate, journal_seq=journal_seq)
    _show_made(store, made, as_json=as_json)


@app.command()
@reported
def compact(
    store: StoreDir,
    name: Annotated[str | None, typer.Option(help="Of the new release; the time by default.")] = None,
    activate: Annotated[bool, typer.Option("--activate/--no-activate", help="Make it the current one.")] = True,
    release: Annotated[str | None, typer.Option("--release", help="To start from; the current one by default.")] = None,
    *,
    ends_with_parent: Annotated[bool, typer.Option("--ends-with-parent", hidden=True)] = False,
    as_json: Json = False,
) -> None:
    """Make the next release of a release and the live changes since. One thread, low priority; loads no torch."""
    import os

    import faiss

    from vecall.live.compact import compact as compact_store
    from vecall.live.compaction import end_with_parent

    if ends_with_parent:
        end_with_parent()
    os.nice(19)
    faiss.omp_set_num_threads(1)
    made = compact_store(store, name=name, activate=activate, release=release)
    _show_made(store, made, as_json=as_json)


def _show_made(store: Path, made: str, *, as_json: bool) -> None:
    from vecall.release.store import Store

    manifest = Store.open(store).verify(made)
    if as_json:
        answer = {"release": made, "store": str(store), "items": manifest.items, "dim": manifest.dim}
        console.print_json(answer | {"ann": manifest.ann})
        return
    ann = manifest.ann or {}
    console.out.print(
        f"release {made}: {manifest.items:,} items of {manifest.dim} dimensions, {manifest.bytes:,} bytes"
    )
    frontier = cast("list[dict[str, float]]", ann.get("frontier", []))
    if not frontier:
        return
    chosen = {tuple(point) for point in cast("list[list[int]]", manifest.index.parameters.get("effort", []))}
    console.out.print(f"  {manifest.index.engine}: ANN recall and median latency of the efforts tried; * is used")
    for point in frontier:
        effort = point["k"], point["width"], point["depth"]
        console.out.print(
            "  {mark} k {k:>5,}  width {width:>5,}  depth {depth:>6,}  ANN recall {recall:.4f} ± {recall_ci95:.4f}  "
            "{p50_ms:.2f} ms".format(mark="*" if effort in chosen else " ", **point)
        )


@app.command()
@reported
def evaluate(
    run: Annotated[Path | None, typer.Option("--run", help="A finished run.")] = None,
    store: Annotated[Path | None, typer.Option("--store", help="A store: its current release.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Names the tables; a store needs it.")] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Write the report to this .html file.")] = None,
    *,
    as_json: Json = False,
) -> None:
    """Judge a run or a release beside popularity, EASE and co-occurrence, by one protocol."""
    from vecall.config import load_config
    from vecall.pipeline import assess_run_or_store

    made = assess_run_or_store(run=run, store=store, config=None if config is None else load_config(config))
    if report is not None:
        from vecall.reporting import write_assessment
        from vecall.runs import Run

        epochs = [] if run is None else Run.open(run).epochs()
        write_assessment(report, made, title=f"vecall: {run or store}", epochs=epochs)
    if as_json:
        console.print_json(made.as_json())
        return
    for seen in ("seen_excluded", "seen_included"):
        models = {name: judged.as_json()[seen] for name, judged in made.judgements.items()}
        console.show_metrics(f"model recall, {seen.replace('_', ' items ')}", models)
    for ann in made.ann:
        console.out.print(
            f"{ann.engine}: ANN recall@{ann.k} {ann.recall:.4f}, "
            f"one query {ann.p50_ms:.2f} ms (p50), {ann.p99_ms:.2f} ms (p99)"
        )
    console.out.print("\n".join([*made.protocol, *(f"dropped: {n:,} {why}" for why, n in made.dropped.items())]))


@app.command()
@reported
def recall(
    store: StoreDir,
    user: Annotated[str | None, typer.Option("--user", help="A user id.")] = None,
    request: Annotated[Path | None, typer.Option("--request", help="A JSON request, as over HTTP.")] = None,
    k: Annotated[int | None, typer.Option("-k", help="How many items; 100, or what the request says.")] = None,
    release: Annotated[str | None, typer.Option("--release", help="The current one by default.")] = None,
    *,
    as_json: Json = False,
) -> None:
    """Recall items for one user. Loads no torch."""
    from vecall.recall.recaller import open_recaller
    from vecall.recall.types import Query

    if (user is None) == (request is None):
        raise typer.BadParameter("give either --user or --request")
    with open_recaller(store, release=release) as recaller:
        asked = {"user_id": recaller.parse_user_id(str(user))} if request is None else _read_request(request)
        answer = recaller.recall(Query.from_json(asked | ({} if k is None else {"k": k})))
    if as_json:
        console.print_json(answer.as_json())
        return
    rows = [[str(one), f"{score:.4f}"] for one, score in zip(answer.ids, answer.scores, strict=True)]
    console.show_table(f"release {answer.release}", ["id", "score"], rows)
    if answer.fallback:
        console.out.print(f"fallback: {answer.fallback}")


@app.command()
@reported
def batch(
    store: StoreDir,
    users: Annotated[Path, typer.Option("--users", help="Requests, JSON, one a line; or a .parquet or .csv of ids.")],
    out: Annotated[Path, typer.Option("--out", help="The Parquet table of answers.")],
    k: Annotated[int | None, typer.Option("-k", help="How many items; 100, or what a request says.")] = None,
    release: Annotated[str | None, typer.Option("--release", help="The current one by default.")] = None,
    *,
    as_json: Json = False,
) -> None:
    """Recall items for all users of a file. Loads no torch."""
    from vecall.recall.batch import recall_file
    from vecall.recall.recaller import open_recaller

    with open_recaller(store, release=release) as recaller:
        done = recall_file(recaller, users, out, k=k)
    line = f"{done.users:,} users in {done.seconds:.1f} s, {done.users / max(done.seconds, 1e-9):,.0f} a second: {out}"
    _say(done.as_json(), line, as_json=as_json)


@app.command()
@reported
def serve(
    store: StoreDir,
    host: Annotated[str | None, typer.Option(help="To listen on; 127.0.0.1, and others need keys.")] = None,
    port: Annotated[int | None, typer.Option(help="8080; 0 is one that is free.")] = None,
    processes: Annotated[
        int | None, typer.Option(help="1; more use more cores, each with the store in memory.")
    ] = None,
    keys: Annotated[Path | None, typer.Option("--keys", help="TOML with `read` and `admin` keys.")] = None,
    settings: Annotated[Path | None, typer.Option("--settings", help="TOML with further settings.")] = None,
    allow_host: Annotated[list[str] | None, typer.Option("--allow-host", help="A name that clients may use.")] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Take no upserts and deletes.")] = False,
    log_requests: Annotated[bool, typer.Option("--log-requests", help="Log each request.")] = False,
) -> None:
    """Serve a store over HTTP. Loads no torch."""
    from vecall.service.run import run
    from vecall.service.settings import read_settings

    given: dict[str, object] = {"host": host, "port": port, "processes": processes}
    given |= {"allowed_hosts": tuple(allow_host or ()) or None}
    given |= {"writable": False if read_only else None, "log_requests": True if log_requests else None}
    said = {name: value for name, value in given.items() if value is not None}
    run(store, read_settings(settings, said), keys_file=keys)


def _read_request(path: Path) -> dict[str, Any]:
    try:
        asked = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise QueryError(f"{path}: is not a JSON file: {error}", code="bad_json") from error
    if not isinstance(asked, dict):
        raise QueryError(f"{path}: expected an object, got {type(asked).__name__}", code="bad_json")
    return asked


@releases.command("list")
@reported
def list_releases(store: StoreDir, *, as_json: Json = False) -> None:
    """All releases, newest first."""
    from vecall.release.store import Store

    opened = Store.open(store)
    current = opened.find_current()
    manifests = [one.listed() for one in opened.releases()]
    active = None if current is None else current.release
    if as_json:
        console.print_json({"current": active, "releases": manifests})
        return
    rows = [
        [
            ("* " if one["name"] == active else "  ") + one["name"],
            one["created"],
            f"{one['items']:,}",
            f"{one['bytes']:,}",
        ]
        for one in manifests
    ]
    console.show_table(str(store), ["name", "created", "items", "bytes"], rows)


@releases.command()
@reported
def verify(
    store: StoreDir,
    name: Annotated[str | None, typer.Argument(help="The current one by default.")] = None,
    *,
    as_json: Json = False,
) -> None:
    """Check every byte of a release, then its golden queries."""
    from vecall.release.bundle import open_release
    from vecall.release.store import Store

    release = open_release(Store.open(store), name)
    release.check_golden()
    _say({"release": release.name, "ok": True}, f"release {release.name} is as it was published", as_json=as_json)


@releases.command()
@reported
def activate(name: str, store: StoreDir, *, as_json: Json = False) -> None:
    """Make a release the current one, once its golden queries pass."""
    from vecall.release.bundle import activate_release
    from vecall.release.store import Store

    previous = activate_release(Store.open(store), name)
    _say({"release": name, "previous": previous}, f"{name} is active; before it was {previous}", as_json=as_json)


@releases.command()
@reported
def rollback(store: StoreDir, *, as_json: Json = False) -> None:
    """Activate the release that was current when the current one was published."""
    from vecall.release.store import Store

    now, previous = Store.open(store).rollback()
    _say({"release": now, "previous": previous}, f"{now} is active; before it was {previous}", as_json=as_json)


@releases.command()
@reported
def prune(
    store: StoreDir,
    keep: Annotated[int, typer.Option(min=0, help="The newest so many stay; the current one and its parent always.")],
    *,
    as_json: Json = False,
) -> None:
    """Delete old releases, and the live changes that neither those that stay nor the tables need."""
    from vecall.live.retention import prune as prune_store
    from vecall.release.store import Store

    pruned = prune_store(Store.open(store), keep)
    line = f"deleted {', '.join(pruned.releases) or 'no release'}, and {pruned.operations:,} operations of the journal"
    _say({"deleted": pruned.releases, "operations": pruned.operations}, line, as_json=as_json)


def _say(answer: dict[str, Any], line: str, *, as_json: bool) -> None:
    if as_json:
        console.print_json(answer)
    else:
        console.out.print(line)


def main() -> None:
    """The console script."""
    app()
