"""Test oracle: predicts what a store must contain after any sequence of operations, crashes and failures.

An operation is a list, so that it can be sent through a pipe as JSON:

    ["upsert", n]  ["delete", n]                 items that are a function of the number n
    ["snapshot"]                                 export the served items as tables, with the last `seq` in them
    ["publish", name, "old" | "new", activate]   publish the initial tables, or the exported ones
    ["compact", name, activate]                  compact the current release
    ["activate", name]  ["rollback"]  ["prune", keep]

The version of an item is the number of the upsert that wrote it and its position there; its vector and fields are
functions of the version.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import polars as pl

from vecall.errors import StoreError
from vecall.index.settings import IndexSettings
from vecall.live.compaction import compact
from vecall.live.journal import Journal
from vecall.live.pruning import get_journal_path, prune_store
from vecall.pipeline.publish_vectors import publish_vectors
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller
from vecall.release.activation import roll_back
from vecall.release.store import Store

DIM = 8
N_INITIAL_ITEMS, N_POSSIBLE_IDS = 300, 500
EXACT_INDEX = IndexSettings(engine="exact")
HNSW_INDEX = IndexSettings(engine="hnsw", M=6, ef_construction=20, ef=500, ks=(10,))

ItemVersion = tuple[int, int]  # number of the upsert, position in it
ItemVersions = dict[str, ItemVersion]


@lru_cache(maxsize=4_096)
def make_vectors(number: int) -> Any:
    """Return the [n, DIM] vectors of an upsert, of length 1, so that each item is the best match of its own vector."""
    vectors = np.random.default_rng(number).standard_normal((N_INITIAL_ITEMS if number == 0 else 50, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def get_vector(version: ItemVersion) -> list[float]:
    return make_vectors(version[0])[version[1]].tolist()


def make_fields(version: ItemVersion) -> dict[str, Any]:
    return {"batch": version[0], "item": version[1], "label": f"{version[0]}/{version[1]}"}


def draw_upsert(number: int) -> ItemVersions:
    """Return the 1 to 50 items of an upsert."""
    rng = Random(number)
    id_numbers = rng.sample(range(N_POSSIBLE_IDS), rng.randint(1, 50))
    return {f"i{id_number}": (number, position) for position, id_number in enumerate(id_numbers)}


def draw_delete(number: int) -> list[str]:
    """Return the 1 to 25 ids of a delete, some of which no item has."""
    rng = Random(number)
    return [f"i{id_number}" for id_number in rng.sample(range(N_POSSIBLE_IDS), rng.randint(1, 25))]


def make_initial_tables() -> ItemVersions:
    return {f"i{id_number}": (0, id_number) for id_number in range(N_INITIAL_ITEMS)}


def to_upsert_items(versions: ItemVersions) -> list[dict[str, Any]]:
    """Return items as `Recaller.upsert` takes them."""
    return [
        {"id": item_id, "vector": get_vector(version), "fields": make_fields(version)}
        for item_id, version in versions.items()
    ]


def execute(operation: list[Any], store_dir: Path, recaller: Any, oracle: "StoreOracle") -> Any:
    """Execute an operation on a real store, with the tables of `oracle`, and return the answer as JSON values."""
    match operation:
        case ["upsert", number]:
            return recaller.upsert(to_upsert_items(draw_upsert(number)))
        case ["delete", number]:
            return recaller.delete(draw_delete(number))
        case ["publish", name, which, activate]:
            seq, items = oracle.resolve_tables(which)
            _publish_items(store_dir, items, name, activate=activate, journal_seq=seq)
        case ["compact", name, activate]:
            return compact(store_dir, name=name, activate=activate)
        case ["activate", name]:
            return recaller.activate(name)
        case ["rollback"]:
            return [*roll_back(Store.open(store_dir))]
        case ["prune", keep]:
            result = prune_store(Store.open(store_dir), keep)
            return [result.release_names, result.operation_count]
    return None


def _publish_items(store_dir: Path, items: ItemVersions, name: str, *, activate: bool, journal_seq: int) -> None:
    """Publish with golden queries, so that activation has something to check, and with alternating index types."""
    vectors = np.array([get_vector(version) for version in items.values()], dtype=np.float32)
    publish_vectors(
        store_dir,
        list(items),
        vectors,
        attributes=pl.DataFrame([make_fields(version) for version in items.values()]),
        queries=vectors[:10],
        index=EXACT_INDEX if ord(name[-1]) % 2 else HNSW_INDEX,
        name=name,
        activate=activate,
        journal_seq=journal_seq,
        allow_worse=True,
    )


@dataclass
class ExpectedRelease:
    """The expected state of a release.

    Attributes:
        items: the items that opening it must show, including live changes; None if it is the compaction of an unknown
            state.
        journal_seq: last operation that the release contains.
        tables_seq: last operation that the tables contain.
        parent: release that was current when this one was published.
    """

    items: ItemVersions | None
    journal_seq: int
    tables_seq: int
    parent: str | None


@dataclass
class StoreOracle:
    """The expected state of a store and of the process that writes to it.

    Attributes:
        releases: the releases by name, oldest first.
        current: name of the store's current release.
        served_release: name of the release that the writer serves, which may be pruned.
        last_operations: `seq` and version of each item's last operation that is not pruned; version None for a delete.
        last_seq: last operation of the journal.
        pruned_to: last pruned operation.
        exported_tables: `seq` and items of the last export.
        served_items: the items that the writer must serve.
        compaction_bases: the items of each release that the writer has served, with the changes since. An automatic
            compaction may be of any of them.
    """

    releases: dict[str, ExpectedRelease] = field(default_factory=dict)
    current: str | None = None
    served_release: str | None = None
    last_operations: dict[str, tuple[int, ItemVersion | None]] = field(default_factory=dict)
    last_seq: int = 0
    pruned_to: int = 0
    exported_tables: tuple[int, ItemVersions] | None = None
    served_items: ItemVersions = field(default_factory=dict)
    compaction_bases: list[ItemVersions] = field(default_factory=list)

    def copy(self) -> "StoreOracle":
        """Return a deep copy."""
        return replace(
            self,
            releases={
                name: replace(release, items=release.items and dict(release.items))
                for name, release in self.releases.items()
            },
            last_operations=dict(self.last_operations),
            served_items=dict(self.served_items),
            compaction_bases=[dict(items) for items in self.compaction_bases],
        )

    def switch_to(self, name: str, items: ItemVersions | None) -> None:
        """Let the writer serve a release."""
        assert items is not None
        self.served_release, self.served_items = name, dict(items)
        self.compaction_bases.append(self.served_items)

    def summarize(self) -> dict[str, Any]:
        """Return a short form for the messages of failing tests."""
        summary: dict[str, Any] = {"current": self.current, "last_seq": self.last_seq, "pruned_to": self.pruned_to}
        summary["last_operations"] = hash(tuple(sorted(self.last_operations)))
        for name, release in self.releases.items():
            items_hash = hash(tuple(sorted((release.items or {}).items())))
            summary[name] = (release.journal_seq, release.tables_seq, release.parent, items_hash)
        return summary

    def restart(self) -> "StoreOracle":
        """Let a new writer open the current release."""
        self.compaction_bases = []
        self.switch_to(str(self.current), self.releases[str(self.current)].items)
        return self

    def apply(self, operation: list[Any]) -> "StoreOracle":
        getattr(self, f"_{operation[0]}")(*operation[1:])
        return self

    def apply_acknowledged(self, operation: list[Any], answer: Any) -> "StoreOracle":
        """Compare an operation's answer with the expected one, then apply the operation."""
        kind, *rest = operation
        before = self.copy() if kind == "prune" else self
        current = self.releases[str(self.current)]
        expected = {
            "upsert": lambda: len(draw_upsert(rest[0])),
            "delete": lambda: sum(item_id in self.served_items for item_id in draw_delete(rest[0])),
            "compact": lambda: rest[0] if self.last_seq > current.journal_seq else self.current,
            "activate": lambda: self.current,
            "rollback": lambda: [current.parent, self.current],
            "prune": lambda: [self.list_prunable(rest[0]), before.apply(operation).pruned_to - self.pruned_to],
        }.get(kind, lambda: None)()
        assert answer == expected, (operation, answer, expected)
        return self.apply(operation)

    def apply_concurrent(self, operation: list[Any], answer: Any) -> "StoreOracle":
        """Apply an operation during which an automatic compaction may have published a release.

        After an operation on releases the state is not known exactly; `adopt_observed` completes it.
        """
        if operation[0] != "prune":
            return self.apply(operation)
        self.drop_operations(self.pruned_to + answer[1])
        return self

    def adopt_observed(self, observed: dict[str, Any]) -> None:
        """Take over the releases that a writer found in the store, and the one that it serves."""
        before = self.releases
        self.releases = {}
        for name, (journal_seq, tables_seq, parent) in observed["releases"].items():
            items = before[name].items if name in before else None
            self.releases[name] = ExpectedRelease(items, journal_seq, tables_seq, parent)
        self.current = observed["current"]
        if observed["served"] != self.served_release:  # a compaction of what was served before
            self.switch_to(observed["served"], self.served_items)
            if observed["served"] in self.releases:
                self.releases[observed["served"]].items = dict(self.served_items)

    def iterate_possible_states(self, operation: list[Any]) -> Iterator["StoreOracle"]:
        """Iterate over all states that may be found if this operation was interrupted or failed."""
        kind, *rest = operation
        yield self
        if kind in ("open", "read", "snapshot", "close"):
            return
        if kind in ("publish", "compact"):  # the release is complete before it is made current
            yield self.copy().apply([kind, *rest[:-1], False])
        if kind == "prune":
            for count in range(1, len(self.list_prunable(rest[0])) + 1):
                state = self.copy()
                state._drop_releases(self.list_prunable(rest[0])[:count])
                yield state
        yield self.copy().apply(operation)

    def _upsert(self, number: int) -> None:
        self._record_changes(draw_upsert(number))

    def _delete(self, number: int) -> None:
        self._record_changes(dict.fromkeys(draw_delete(number)))

    def _record_changes(self, changes: dict[str, ItemVersion] | dict[str, None]) -> None:
        for item_id, version in changes.items():
            self.last_seq += 1
            self.last_operations[item_id] = (self.last_seq, version)
            for items in (*(release.items for release in self.releases.values()), *self.compaction_bases):
                if items is not None:
                    _set_item(items, item_id, version)

    def _read(self, number: int) -> None:
        """Change nothing."""

    def _open(self) -> None:
        if self.served_release is None:
            self.restart()

    def _close(self) -> None:
        self.served_release = None

    def _snapshot(self) -> None:
        self.exported_tables = (self.last_seq, dict(self.served_items))

    def _publish(self, name: str, which: str, activate: bool) -> None:
        seq, items = self.resolve_tables(which)
        items_with_changes = dict(items)
        for item_id, (last_seq, version) in self.last_operations.items():
            if last_seq > seq:
                _set_item(items_with_changes, item_id, version)
        self._add_release(name, ExpectedRelease(items_with_changes, seq, seq, self.current), activate=activate)

    def resolve_tables(self, which: str) -> tuple[int, ItemVersions]:
        """Return `journal_seq` and the items of the tables that a "publish" names."""
        if which == "old":
            return 0, make_initial_tables()
        if self.exported_tables is None:
            raise StoreError("nothing was exported")
        return self.exported_tables

    def _compact(self, name: str, activate: bool) -> None:
        base = self.releases[str(self.current)]
        if self.last_seq > base.journal_seq:
            release = ExpectedRelease(dict(base.items or {}), self.last_seq, base.tables_seq, self.current)
            self._add_release(name, release, activate=activate)

    def _add_release(self, name: str, release: ExpectedRelease, *, activate: bool) -> None:
        self.releases[name] = release
        if activate:
            self.current = name

    def _activate(self, name: str) -> None:
        self.current = name
        self.switch_to(name, self.releases[name].items)

    def _rollback(self) -> None:
        """Change the store's current release; the writer keeps serving its own."""
        self.current = self.releases[str(self.current)].parent

    def list_prunable(self, keep: int) -> list[str]:
        """Return the releases that a pruning deletes, newest first."""
        kept = {self.current, None if self.current is None else self.releases[self.current].parent}
        return [name for name in list(reversed(self.releases))[keep:] if name not in kept]

    def _prune(self, keep: int) -> None:
        self._drop_releases(self.list_prunable(keep))
        newest = next(reversed(self.releases.values()))
        until_seq = min(newest.tables_seq, *(release.journal_seq for release in self.releases.values()))
        self.drop_operations(max(self.pruned_to, until_seq))

    def drop_operations(self, until_seq: int) -> None:
        """Prune the operations up to `until_seq`."""
        self.pruned_to = until_seq
        self.last_operations = {
            item_id: (seq, version) for item_id, (seq, version) in self.last_operations.items() if seq > until_seq
        }

    def _drop_releases(self, names: list[str]) -> None:
        for name in names:
            del self.releases[name]


def _set_item(items: ItemVersions, item_id: str, version: ItemVersion | None) -> None:
    items.pop(item_id, None)
    if version is not None:
        items[item_id] = version


def inspect_store(store_dir: Path) -> StoreOracle:
    """Return the state of a real store, by opening all releases. What is not stored (tables, writer) stays empty."""
    store = Store.open(store_dir)
    current, observed = store.find_current(), StoreOracle()
    observed.current = current and current.release
    for manifest in reversed(store.list_releases()):
        store.verify(manifest.name)
        with open_recaller(store_dir, release=manifest.name) as recaller:
            items = read_all_items(recaller)
            check_searchable(recaller, dict(Random(manifest.name).sample([*items.items()], min(5, len(items)))))
        observed.releases[manifest.name] = ExpectedRelease(
            items, manifest.journal_seq, manifest.tables_seq, manifest.parent
        )
    journal = Journal.open_readonly(get_journal_path(store), "string")
    if journal is not None:
        observed.last_seq, observed.pruned_to = journal.last_seq, journal.pruned_to
        for operation in journal.read_operations(0):
            version = operation.fields and (operation.fields["batch"], operation.fields["item"])
            observed.last_operations[str(operation.id)] = (operation.seq, version)
    return observed


def read_all_items(recaller: Any) -> ItemVersions:
    """Return all items that a recaller serves, after checking that vectors and fields match their versions."""
    table = recaller.candidates(Query(vector=[1.0] + [0.0] * (DIM - 1), k=2 * N_POSSIBLE_IDS))
    items = dict(zip(table["id"], zip(table["batch"], table["item"], strict=True), strict=True))
    snapshot = recaller.live_index.snapshot
    assert len(items) == len(table) == len(snapshot), "an item is returned twice, or not at all"
    vectors = snapshot.get_vectors(snapshot.to_rows(list(items)))
    for vector, label, version in zip(vectors, table["label"], items.values(), strict=True):
        assert label == make_fields(version)["label"], (label, version)
        assert np.array_equal(vector, make_vectors(version[0])[version[1]].astype(np.float16)), version
    return items


def check_searchable(recaller: Any, items: ItemVersions) -> None:
    """Check that each item is the best match of its own vector, with its own fields."""
    for item_id, version in items.items():
        (row,) = recaller.candidates(Query(vector=get_vector(version), k=1)).to_dicts()
        assert {"id": item_id, **make_fields(version)} == {key: row[key] for key in ("id", "batch", "item", "label")}
