"""What a store must hold after any operations, for sessions that are killed and for disks that fail.

An operation is a list, so that it goes through a pipe as JSON:

    ["upsert", n]  ["delete", n]                 items that follow from the number n
    ["snapshot"]                                 tables are exported: what is served, and up to which operation
    ["publish", name, "old" | "new", activate]   the first tables, or those of the last snapshot
    ["compact", name, activate]                  of the current release
    ["activate", name]  ["rollback"]  ["prune", keep]

An item's value is the upsert that brought it and its place there; vector and fields follow from these.
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
from vecall.release.store import Store

DIM = 8
N_INITIAL_ITEMS, N_POSSIBLE_IDS = 300, 500  # items in the first tables; ids that there can be
EXACT_INDEX = IndexSettings(engine="exact")
HNSW_INDEX = IndexSettings(engine="hnsw", M=6, ef_construction=20, ef=500, ks=(10,))

ItemVersion = tuple[int, int]  # number of the upsert, place in it
ItemVersions = dict[str, ItemVersion]


@lru_cache(maxsize=4_096)
def make_vectors(number: int) -> Any:
    """[FIRST, D] of length 1, so that each item is the best answer to its own vector."""
    vectors = np.random.default_rng(number).standard_normal((N_INITIAL_ITEMS if number == 0 else 50, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def get_vector(version: ItemVersion) -> list[float]:
    return make_vectors(version[0])[version[1]].tolist()


def make_fields(version: ItemVersion) -> dict[str, Any]:
    return {"batch": version[0], "item": version[1], "label": f"{version[0]}/{version[1]}"}


def draw_upsert(number: int) -> ItemVersions:
    """1 to 50 items."""
    chance = Random(number)
    names = chance.sample(range(N_POSSIBLE_IDS), chance.randint(1, 50))
    return {f"i{name}": (number, place) for place, name in enumerate(names)}


def draw_delete(number: int) -> list[str]:
    """1 to 25 ids, some of which are no item's."""
    chance = Random(number)
    return [f"i{name}" for name in chance.sample(range(N_POSSIBLE_IDS), chance.randint(1, 25))]


def make_initial_tables() -> ItemVersions:
    return {f"i{name}": (0, name) for name in range(N_INITIAL_ITEMS)}


def to_upsert_items(versions: ItemVersions) -> list[dict[str, Any]]:
    """As `Recaller.upsert` takes them."""
    return [{"id": one, "vector": get_vector(value), "fields": make_fields(value)} for one, value in versions.items()]


def execute(operation: list[Any], store_dir: Path, recaller: Any, oracle: "StoreOracle") -> Any:
    """Do it to a real store; `oracle` has the tables. What is answered, as JSON has it."""
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
            return [*Store.open(store_dir).rollback()]
        case ["prune", keep]:
            pruned = prune_store(Store.open(store_dir), keep)
            return [pruned.release_names, pruned.operation_count]
    return None


def _publish_items(store_dir: Path, items: ItemVersions, name: str, *, activate: bool, journal_seq: int) -> None:
    """With golden queries, so that activating has something to prove; exact or a graph, by the name's last letter."""
    vectors = np.array([get_vector(value) for value in items.values()], dtype=np.float32)
    publish_vectors(
        store_dir,
        list(items),
        vectors,
        attributes=pl.DataFrame([make_fields(value) for value in items.values()]),
        queries=vectors[:10],
        index=EXACT_INDEX if ord(name[-1]) % 2 else HNSW_INDEX,
        name=name,
        activate=activate,
        journal_seq=journal_seq,
    )


@dataclass
class ExpectedRelease:
    """A release.

    Attributes:
        items: what opening it must show, live changes included; None: what was compacted of an unknown one.
    """

    items: ItemVersions | None
    journal_seq: int
    tables_seq: int
    parent: str | None


@dataclass
class StoreOracle:
    """A store's whole content, and what its writer serves.

    Attributes:
        releases: oldest first.
        last_operations: each item's last operation that was not pruned, seq and value; None where that deleted it.
        exported_tables: the last snapshot.
        served_items: what the writer must answer with; the release it serves may be pruned.
        compaction_bases: what it has served so far, of which a compaction beside it may be made; as it must be now.
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
        """One that changes by itself."""
        releases = {name: replace(made, holds=made.items and dict(made.items)) for name, made in self.releases.items()}
        bases = [dict(one) for one in self.compaction_bases]
        return replace(
            self, releases=releases, last=dict(self.last_operations), serving=dict(self.served_items), bases=bases
        )

    def switch_to(self, name: str, items: ItemVersions | None) -> None:
        """A writer goes over to a release."""
        assert items is not None
        self.served_release, self.served_items = name, dict(items)
        self.compaction_bases.append(self.served_items)

    def summarize(self) -> dict[str, Any]:
        """To be compared by eye."""
        said: dict[str, Any] = {"current": self.current, "last_seq": self.last_seq, "pruned_to": self.pruned_to}
        said["last"] = hash(tuple(sorted(self.last_operations)))
        for name, made in self.releases.items():
            holds = hash(tuple(sorted((made.items or {}).items())))
            said[name] = (made.journal_seq, made.tables_seq, made.parent, holds)
        return said

    def restart(self) -> "StoreOracle":
        """A writer opens the current release."""
        self.compaction_bases = []
        self.switch_to(str(self.current), self.releases[str(self.current)].items)
        return self

    def apply(self, operation: list[Any]) -> "StoreOracle":
        getattr(self, f"_{operation[0]}")(*operation[1:])
        return self

    def apply_acknowledged(self, operation: list[Any], answer: Any) -> "StoreOracle":
        """Apply an operation, once its answer was compared with what it had to be."""
        kind, *rest = operation
        before = self.copy() if kind == "prune" else self
        current = self.releases[str(self.current)]
        expected = {
            "upsert": lambda: len(draw_upsert(rest[0])),
            "delete": lambda: sum(one in self.served_items for one in draw_delete(rest[0])),
            "compact": lambda: rest[0] if self.last_seq > current.journal_seq else self.current,
            "activate": lambda: self.current,
            "rollback": lambda: [current.parent, self.current],
            "prune": lambda: [self.list_prunable(rest[0]), before.apply(operation).pruned_to - self.pruned_to],
        }.get(kind, lambda: None)()
        assert answer == expected, (operation, answer, expected)
        return self.apply(operation)

    def apply_concurrent(self, operation: list[Any], answer: Any) -> "StoreOracle":
        """Apply an operation beside which a compaction may have made a release; `see` tells what there is now."""
        if operation[0] != "prune":
            return self.apply(operation)
        self.drop_operations(self.pruned_to + answer[1])
        return self

    def adopt_observed(self, observed: dict[str, Any]) -> None:
        """What a writer found in the store, and serves."""
        before = self.releases
        self.releases = {}
        for name, facts in observed["releases"].items():
            holds = before[name].items if name in before else None
            self.releases[name] = ExpectedRelease(holds, *facts)
        self.current = observed["current"]
        if observed["served"] != self.served_release:  # it was compacted of what had been served
            self.switch_to(observed["served"], self.served_items)
            if observed["served"] in self.releases:
                self.releases[observed["served"]].items = dict(self.served_items)

    def iterate_possible_states(self, operation: list[Any]) -> Iterator["StoreOracle"]:
        """All that may be there when this operation was under way, or failed."""
        kind, *rest = operation
        yield self
        if kind in ("open", "read", "snapshot", "close"):
            return
        if kind in ("publish", "compact"):  # the release is whole before it is made current
            yield self.copy().apply([kind, *rest[:-1], False])
        if kind == "prune":
            for count in range(1, len(self.list_prunable(rest[0])) + 1):
                part = self.copy()
                part._drop_releases(self.list_prunable(rest[0])[:count])
                yield part
        yield self.copy().apply(operation)

    def _upsert(self, number: int) -> None:
        self._record_changes(draw_upsert(number))

    def _delete(self, number: int) -> None:
        self._record_changes(dict.fromkeys(draw_delete(number)))

    def _record_changes(self, changes: dict[str, ItemVersion] | dict[str, None]) -> None:
        for one, value in changes.items():
            self.last_seq += 1
            self.last_operations[one] = (self.last_seq, value)
            for holds in (*(made.items for made in self.releases.values()), *self.compaction_bases):
                if holds is not None:
                    _set_item(holds, one, value)

    def _read(self, number: int) -> None:
        """Nothing changes, nor when a writer opens what it serves already."""

    def _open(self) -> None:
        if self.served_release is None:
            self.restart()

    def _close(self) -> None:
        self.served_release = None

    def _snapshot(self) -> None:
        self.exported_tables = (self.last_seq, dict(self.served_items))

    def _publish(self, name: str, which: str, activate: bool) -> None:
        seq, items = self.resolve_tables(which)
        holds = dict(items)
        for one, (last, value) in self.last_operations.items():
            if last > seq:
                _set_item(holds, one, value)
        self._add_release(name, ExpectedRelease(holds, seq, seq, self.current), activate=activate)

    def resolve_tables(self, which: str) -> tuple[int, ItemVersions]:
        """`journal_seq` and the tables."""
        if which == "old":
            return 0, make_initial_tables()
        if self.exported_tables is None:
            raise StoreError("nothing was exported")
        return self.exported_tables

    def _compact(self, name: str, activate: bool) -> None:
        base = self.releases[str(self.current)]
        if self.last_seq > base.journal_seq:
            made = ExpectedRelease(dict(base.items or {}), self.last_seq, base.tables_seq, self.current)
            self._add_release(name, made, activate=activate)

    def _add_release(self, name: str, release: ExpectedRelease, *, activate: bool) -> None:
        self.releases[name] = release
        if activate:
            self.current = name

    def _activate(self, name: str) -> None:
        self.current = name
        self.switch_to(name, self.releases[name].items)

    def _rollback(self) -> None:
        """Of the store; the writer serves on what it has."""
        self.current = self.releases[str(self.current)].parent

    def list_prunable(self, keep: int) -> list[str]:
        """Releases that pruning deletes, newest first."""
        stays = {self.current, None if self.current is None else self.releases[self.current].parent}
        return [name for name in list(reversed(self.releases))[keep:] if name not in stays]

    def _prune(self, keep: int) -> None:
        self._drop_releases(self.list_prunable(keep))
        newest = next(reversed(self.releases.values()))
        upto = min(newest.tables_seq, *(made.journal_seq for made in self.releases.values()))
        self.drop_operations(max(self.pruned_to, upto))

    def drop_operations(self, until_seq: int) -> None:
        """Operations up to this one are pruned."""
        self.pruned_to = until_seq
        self.last_operations = {one: last for one, last in self.last_operations.items() if last[0] > until_seq}

    def _drop_releases(self, names: list[str]) -> None:
        for name in names:
            del self.releases[name]


def _set_item(items: ItemVersions, item_id: str, version: ItemVersion | None) -> None:
    items.pop(item_id, None)
    if version is not None:
        items[item_id] = version


def inspect_store(store_dir: Path) -> StoreOracle:
    """What a store holds, found by opening all of it. `tables` and `served` are not there to be found."""
    store = Store.open(store_dir)
    current, model = store.find_current(), StoreOracle()
    model.current = current and current.release
    for manifest in reversed(store.list_releases()):
        store.verify(manifest.name)
        with open_recaller(store_dir, release=manifest.name) as recaller:
            holds = read_all_items(recaller)
            check_searchable(recaller, dict(Random(manifest.name).sample([*holds.items()], min(5, len(holds)))))
        model.releases[manifest.name] = ExpectedRelease(
            holds, manifest.journal_seq, manifest.tables_seq, manifest.parent
        )
    journal = Journal.open_readonly(get_journal_path(store), "string")
    if journal is not None:
        model.last_seq, model.pruned_to = journal.last_seq, journal.pruned_to
        for one in journal.read_operations(0):
            model.last_operations[str(one.id)] = (one.seq, one.fields and (one.fields["batch"], one.fields["item"]))
    return model


def read_all_items(recaller: Any) -> ItemVersions:
    """All items that a recaller answers with; vectors and fields must be those of their values."""
    table = recaller.candidates(Query(vector=[1.0] + [0.0] * (DIM - 1), k=2 * N_POSSIBLE_IDS))
    items = dict(zip(table["id"], zip(table["batch"], table["item"], strict=True), strict=True))
    assert len(items) == len(table) == len(recaller.live.snapshot), "an item is answered twice, or not at all"
    view = recaller.live.snapshot
    vectors = view.vectors(view.rows(list(items)))
    for vector, label, value in zip(vectors, table["label"], items.values(), strict=True):
        assert label == make_fields(value)["label"], (label, value)
        assert np.array_equal(vector, make_vectors(value[0])[value[1]].astype(np.float16)), value
    return items


def check_searchable(recaller: Any, items: ItemVersions) -> None:
    """Each of some items is the best answer to its own vector, with its own fields."""
    for one, value in items.items():
        (answer,) = recaller.candidates(Query(vector=get_vector(value), k=1)).to_dicts()
        assert {"id": one, **make_fields(value)} == {key: answer[key] for key in ("id", "batch", "item", "label")}
