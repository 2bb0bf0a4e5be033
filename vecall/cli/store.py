"""Commands on a store: its releases, compaction, the journal of live changes. None loads torch."""

from typing import Annotated

import typer

from vecall import console
from vecall.cli.output import JsonOption, StoreOption, handle_errors, print_result
from vecall.cli.training import print_release

releases_app = typer.Typer(
    help="List, verify, activate, roll back and prune the releases of a store.", no_args_is_help=True
)
journal_app = typer.Typer(help="Look at the live changes of a store, and take out one of them.", no_args_is_help=True)


@handle_errors
def compact(
    store: StoreOption,
    name: Annotated[str | None, typer.Option(help="Of the new release; the time by default.")] = None,
    activate: Annotated[bool, typer.Option("--activate/--no-activate", help="Make it the current one.")] = True,
    release: Annotated[str | None, typer.Option("--release", help="To start from; the current one by default.")] = None,
    *,
    tied_to_parent: Annotated[bool, typer.Option("--exit-with-parent", hidden=True)] = False,
    as_json: JsonOption = False,
) -> None:
    """Make the next release of a release and the live changes since. One thread, low priority; loads no torch."""
    import os

    import faiss

    from vecall.live.compaction import compact as compact_store
    from vecall.live.compactor import exit_with_parent

    if tied_to_parent:
        exit_with_parent()
    os.nice(19)
    faiss.omp_set_num_threads(1)
    made = compact_store(store, name=name, activate=activate, release=release)
    print_release(store, made, as_json=as_json)


@releases_app.command("list")
@handle_errors
def list_releases(store: StoreOption, *, as_json: JsonOption = False) -> None:
    """All releases, newest first."""
    from vecall.release.store import Store

    opened = Store.open(store)
    current = opened.find_current()
    manifests = [one.to_summary() for one in opened.list_releases()]
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
    console.print_table(str(store), ["name", "created", "items", "bytes"], rows)


@releases_app.command()
@handle_errors
def verify(
    store: StoreOption,
    name: Annotated[str | None, typer.Argument(help="The current one by default.")] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Check every byte of a release, then its golden queries."""
    from vecall.release.release import open_release
    from vecall.release.store import Store

    release = open_release(Store.open(store), name)
    release.check_golden_queries()
    print_result(
        {"release": release.name, "ok": True}, f"release {release.name} is as it was published", as_json=as_json
    )


@releases_app.command()
@handle_errors
def activate(name: str, store: StoreOption, *, as_json: JsonOption = False) -> None:
    """Make a release the current one, once its golden queries pass."""
    from vecall.release.release import activate_release
    from vecall.release.store import Store

    previous = activate_release(Store.open(store), name)
    print_result(
        {"release": name, "previous": previous}, f"{name} is active; before it was {previous}", as_json=as_json
    )


@releases_app.command()
@handle_errors
def rollback(store: StoreOption, *, as_json: JsonOption = False) -> None:
    """Activate the release that was current when the current one was published."""
    from vecall.release.store import Store

    now, previous = Store.open(store).rollback()
    print_result({"release": now, "previous": previous}, f"{now} is active; before it was {previous}", as_json=as_json)


@releases_app.command()
@handle_errors
def prune(
    store: StoreOption,
    keep: Annotated[int, typer.Option(min=0, help="The newest so many stay; the current one and its parent always.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Delete old releases, and the live changes that neither those that stay nor the tables need."""
    from vecall.live.pruning import prune_store as prune_store
    from vecall.release.store import Store

    pruned = prune_store(Store.open(store), keep)
    line = f"deleted {', '.join(pruned.release_names) or 'no release'}, and {pruned.operation_count:,} operations of the journal"
    print_result({"deleted": pruned.release_names, "operations": pruned.operation_count}, line, as_json=as_json)


@journal_app.command("list")
@handle_errors
def list_operations(
    store: StoreOption,
    release: Annotated[str | None, typer.Option("--release", help="To be held against; the current one.")] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """The live changes as they are written down, and whether the release can take each of them."""
    from vecall.live.journal_repair import list_operations as operations_of

    operations = [operation.as_json() for operation in operations_of(store, release)]
    if as_json:
        console.print_json({"operations": operations})
        return
    rows = [
        [
            str(one["seq"]),
            str(one["op"]),
            str(one["id"]),
            "yes" if one["applicable"] else "no",
            str(one["problem"] or ""),
        ]
        for one in operations
    ]
    console.print_table(str(store), ["seq", "op", "id", "applicable", "problem"], rows, align_left=True)


@journal_app.command()
@handle_errors
def drop(
    seq: Annotated[int, typer.Argument(help="Number of the change, as `vecall journal list` names it.")],
    store: StoreOption,
    *,
    as_json: JsonOption = False,
) -> None:
    """Take one live change out of the journal; nobody may write meanwhile.

    A process that only reads, and has taken it in, knows of it until it is started again.
    """
    from vecall.live.journal_repair import drop_operation

    drop_operation(store, seq)
    print_result(
        {"seq": seq, "dropped": True}, f"operation {seq} is dropped: from now on it says nothing", as_json=as_json
    )
