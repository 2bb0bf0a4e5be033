"""Commands on a store: compaction, its releases and its journal of live changes. They load no torch."""

import logging
from typing import Annotated

import typer

from vecall import console
from vecall.cli.output import (
    ActivateOption,
    JsonOption,
    ReleaseOption,
    StoreOption,
    print_result,
    wrap_command,
)
from vecall.cli.training import verify_and_print_release
from vecall.errors import InvalidReleaseError

logger = logging.getLogger(__name__)

releases_app = typer.Typer(
    help="List, verify, activate, roll back and prune the releases of a store.", no_args_is_help=True
)
journal_app = typer.Typer(help="List the live changes of a store, or drop one of them.", no_args_is_help=True)


@wrap_command
def compact(
    store: StoreOption,
    name: Annotated[str | None, typer.Option(help="Name of the new release (default: UTC timestamp).")] = None,
    activate: ActivateOption = True,
    release: Annotated[
        str | None, typer.Option("--release", help="Release to merge with the changes (default: the current release).")
    ] = None,
    *,
    tied_to_parent: Annotated[bool, typer.Option("--exit-with-parent", hidden=True)] = False,
    as_json: JsonOption = False,
) -> None:
    """Merge live changes into a new release (single-threaded, low priority)."""
    import os

    import faiss

    from vecall.live.compaction import compact as compact_store
    from vecall.live.compactor import exit_with_parent

    if tied_to_parent:
        exit_with_parent()
    os.nice(19)
    faiss.omp_set_num_threads(1)
    new_name = compact_store(store, name=name, activate=activate, release=release)
    verify_and_print_release(store, new_name, as_json=as_json)


@wrap_command
def reindex(
    store: StoreOption,
    engine: Annotated[str, typer.Option(help="Engine of the new index: auto, exact, hnsw, ivf or milvus.")],
    name: Annotated[str | None, typer.Option(help="Name of the new release (default: UTC timestamp).")] = None,
    activate: ActivateOption = True,
    release: Annotated[
        str | None, typer.Option("--release", help="Release whose vectors are taken (default: the current release).")
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Write the vectors of a release into an index of another engine, as a new release, without training."""
    from vecall.live.reindex import ENGINE_NAMES
    from vecall.live.reindex import reindex as reindex_store

    if engine not in ENGINE_NAMES:
        raise typer.BadParameter(
            f"no engine {engine!r}; expected one of {', '.join(ENGINE_NAMES)}", param_hint="--engine"
        )
    new_name = reindex_store(store, engine=engine, name=name, activate=activate, release=release)
    verify_and_print_release(store, new_name, as_json=as_json)


@releases_app.command("list")
@wrap_command
def list_releases(store: StoreOption, *, as_json: JsonOption = False) -> None:
    """List all releases, newest first; * marks the current one."""
    from vecall.release.store import Store

    opened = Store.open(store)
    try:
        pointer = opened.find_current()
    except InvalidReleaseError as error:  # it says to activate a release, whose names are listed here
        logger.warning("no release is marked: %s", error)
        pointer = None
    current = None if pointer is None else pointer.release
    manifests = opened.list_releases(
        skip_damaged=True, on_damaged=lambda error: logger.warning("a release is left out: %s", error)
    )
    releases = [manifest.to_summary() for manifest in manifests]
    if as_json:
        console.print_json({"current": current, "releases": releases})
        return
    rows = [
        [
            ("* " if release["name"] == current else "  ") + release["name"],
            release["created"],
            f"{release['items']:,}",
            f"{release['bytes']:,}",
        ]
        for release in releases
    ]
    console.print_table(str(store), ["name", "created", "items", "bytes"], rows)


@releases_app.command()
@wrap_command
def verify(
    store: StoreOption,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Release name (default: the current release).")
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Verify the checksums of a release, then its golden queries."""
    from vecall.release.release import open_release
    from vecall.release.store import Store

    release = open_release(Store.open(store), name)
    release.check_golden_queries()
    print_result({"release": release.name, "ok": True}, f"release {release.name} verified", as_json=as_json)


@releases_app.command()
@wrap_command
def activate(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Release name.")],
    store: StoreOption,
    *,
    as_json: JsonOption = False,
) -> None:
    """Make a release the current one after verifying it."""
    from vecall.release.activation import activate_release
    from vecall.release.store import Store

    _print_activation(name, activate_release(Store.open(store), name), as_json=as_json)


@releases_app.command()
@wrap_command
def rollback(store: StoreOption, *, as_json: JsonOption = False) -> None:
    """Activate the parent of the current release after verifying it: what was current when this one was published.

    This need not be the release that was active before.
    """
    from vecall.release.activation import roll_back
    from vecall.release.store import Store

    name, previous = roll_back(Store.open(store))
    _print_activation(name, previous, as_json=as_json)


def _print_activation(name: str, previous: str | None, *, as_json: bool) -> None:
    text = f"activated release {name} (previously {previous or 'none'})"
    print_result({"release": name, "previous": previous}, text, as_json=as_json)


@releases_app.command()
@wrap_command
def prune(
    store: StoreOption,
    keep: Annotated[
        int,
        typer.Option(min=0, help="Keep the N newest releases, and the current one and its parent in addition."),
    ],
    *,
    as_json: JsonOption = False,
) -> None:
    """Delete old releases, and the live changes that all kept releases and the tables already contain."""
    from vecall.live.pruning import prune_store
    from vecall.release.store import Store

    result = prune_store(Store.open(store), keep)
    releases = f"releases {', '.join(result.release_names)}" if result.release_names else "no releases"
    print_result(
        {"deleted": result.release_names, "operations": result.operation_count},
        f"deleted {releases} and {result.operation_count:,} live changes",
        as_json=as_json,
    )


@journal_app.command("list")
@wrap_command
def list_operations(
    store: StoreOption,
    release: ReleaseOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """List the live changes in the journal, and whether each can be applied to a release."""
    from vecall.live.journal_repair import list_operations as list_journal_operations

    operations = [operation.as_json() for operation in list_journal_operations(store, release)]
    if as_json:
        console.print_json({"operations": operations})
        return
    rows = [
        [
            str(operation["seq"]),
            str(operation["op"]),
            str(operation["id"]),
            "yes" if operation["applicable"] else "no",
            str(operation["problem"] or ""),
        ]
        for operation in operations
    ]
    console.print_table(str(store), ["seq", "op", "id", "applicable", "problem"], rows, align_left=True)


@journal_app.command()
@wrap_command
def drop(
    seq: Annotated[
        int, typer.Argument(metavar="SEQ", help="Sequence number of the change, as `vecall journal list` prints it.")
    ],
    store: StoreOption,
    *,
    as_json: JsonOption = False,
) -> None:
    """Remove one live change from the journal. Stop all processes that write to the store first.

    Read-only processes that have already applied the change keep it until they are restarted.
    """
    from vecall.live.journal_repair import drop_operation

    drop_operation(store, seq)
    print_result({"seq": seq, "dropped": True}, f"dropped live change {seq} from the journal", as_json=as_json)
