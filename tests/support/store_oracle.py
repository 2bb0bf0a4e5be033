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

D = 8
FIRST, ALL = 300, 500  # items in the first tables; ids that there can be
EXACT = IndexSettings(engine="exact")
GRAPH = IndexSettings(engine="hnsw", M=6, ef_construction=20, ef=500, ks=(10,))

Value = tuple[int, int]  # number of the upsert, place in it
Items = dict[str, Value]


@lru_cache(maxsize=4_096)
def vectors_of(number: int) -> Any:
    """[FIRST, D] of length 1, so that each item is the best answer to its own vector."""
    vectors = np.random.default_rng(number).standard_normal((FIRST if number == 0 else 50, D))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def vector_of(value: Value) -> list[float]:
    return vectors_of(value[0])[value[1]].tolist()


def fields_of(value: Value) -> dict[str, Any]:
    return {"batch": value[0], "item": value[1], "label": f"{value[0]}/{value[1]}"}


def upserted(number: int) -> Items:
    """1 to 50 items."""
    chance = Random(number)
    names = chance.sample(range(ALL), chance.randint(1, 50))
    return {f"i{name}": (number, place) for place, name in enumerate(names)}


def deleted(number: int) -> list[str]:
    """1 to 25 ids, some of which are no item's."""
    chance = Random(number)
    return [f"i{name}" for name in chance.sample(range(ALL), chance.randint(1, 25))]


def first_tables() -> Items:
    return {f"i{name}": (0, name) for name in range(FIRST)}


def items_of(given: Items) -> list[dict[str, Any]]:
    """As `Recaller.upsert` takes them."""
    return [{"id": one, "vector": vector_of(value), "fields": fields_of(value)} for one, value in given.items()]


def perform(operation: list[Any], folder: Path, recaller: Any, model: "Model") -> Any:
    """Do it to a real store; `model` has the tables. What is answered, as JSON has it."""
    match operation:
        case ["upsert", number]:
            return recaller.upsert(items_of(upserted(number)))
        case ["delete", number]:
            return recaller.delete(deleted(number))
        case ["publish", name, which, activate]:
            seq, items = model.to_publish(which)
            _publish(folder, items, name, activate=activate, journal_seq=seq)
        case ["compact", name, activate]:
            return compact(folder, name=name, activate=activate)
        case ["activate", name]:
            return recaller.activate(name)
        case ["rollback"]:
            return [*Store.open(folder).rollback()]
        case ["prune", keep]:
            pruned = prune_store(Store.open(folder), keep)
            return [pruned.release_names, pruned.operation_count]
    return None


def _publish(folder: Path, items: Items, name: str, *, activate: bool, journal_seq: int) -> None:
    """With golden queries, so that activating has something to prove; exact or a graph, by the name's last letter."""
    vectors = np.array([vector_of(value) for value in items.values()], dtype=np.float32)
    publish_vectors(
        folder,
        list(items),
        vectors,
        attributes=pl.DataFrame([fields_of(value) for value in items.values()]),
        queries=vectors[:10],
        index=EXACT if ord(name[-1]) % 2 else GRAPH,
        name=name,
        activate=activate,
        journal_seq=journal_seq,
    )


@dataclass
class Made:
    """A release.

    Attributes:
        holds: what opening it must show, live changes included; None: what was compacted of an unknown one.
    """

    holds: Items | None
    journal_seq: int
    tables_seq: int
    parent: str | None


@dataclass
class Model:
    """A store's whole content, and what its writer serves.

    Attributes:
        releases: oldest first.
        last: each item's last operation that was not pruned, seq and value; None where that deleted it.
        tables: the last snapshot.
        serving: what the writer must answer with; the release it serves may be pruned.
        bases: what it has served so far, of which a compaction beside it may be made; as it must be now.
    """

    releases: dict[str, Made] = field(default_factory=dict)
    current: str | None = None
    served: str | None = None
    last: dict[str, tuple[int, Value | None]] = field(default_factory=dict)
    last_seq: int = 0
    pruned_to: int = 0
    tables: tuple[int, Items] | None = None
    serving: Items = field(default_factory=dict)
    bases: list[Items] = field(default_factory=list)

    def copy(self) -> "Model":
        """One that changes by itself."""
        releases = {name: replace(made, holds=made.holds and dict(made.holds)) for name, made in self.releases.items()}
        bases = [dict(one) for one in self.bases]
        return replace(self, releases=releases, last=dict(self.last), serving=dict(self.serving), bases=bases)

    def serve(self, name: str, holds: Items | None) -> None:
        """A writer goes over to a release."""
        assert holds is not None
        self.served, self.serving = name, dict(holds)
        self.bases.append(self.serving)

    def brief(self) -> dict[str, Any]:
        """To be compared by eye."""
        said: dict[str, Any] = {"current": self.current, "last_seq": self.last_seq, "pruned_to": self.pruned_to}
        said["last"] = hash(tuple(sorted(self.last)))
        for name, made in self.releases.items():
            holds = hash(tuple(sorted((made.holds or {}).items())))
            said[name] = (made.journal_seq, made.tables_seq, made.parent, holds)
        return said

    def restarted(self) -> "Model":
        """A writer opens the current release."""
        self.bases = []
        self.serve(str(self.current), self.releases[str(self.current)].holds)
        return self

    def apply(self, operation: list[Any]) -> "Model":
        getattr(self, f"_{operation[0]}")(*operation[1:])
        return self

    def acknowledged(self, operation: list[Any], answer: Any) -> "Model":
        """Apply an operation, once its answer was compared with what it had to be."""
        kind, *rest = operation
        before = self.copy() if kind == "prune" else self
        current = self.releases[str(self.current)]
        expected = {
            "upsert": lambda: len(upserted(rest[0])),
            "delete": lambda: sum(one in self.serving for one in deleted(rest[0])),
            "compact": lambda: rest[0] if self.last_seq > current.journal_seq else self.current,
            "activate": lambda: self.current,
            "rollback": lambda: [current.parent, self.current],
            "prune": lambda: [self.doomed(rest[0]), before.apply(operation).pruned_to - self.pruned_to],
        }.get(kind, lambda: None)()
        assert answer == expected, (operation, answer, expected)
        return self.apply(operation)

    def told(self, operation: list[Any], answer: Any) -> "Model":
        """Apply an operation beside which a compaction may have made a release; `see` tells what there is now."""
        if operation[0] != "prune":
            return self.apply(operation)
        self.forget(self.pruned_to + answer[1])
        return self

    def see(self, seen: dict[str, Any]) -> None:
        """What a writer found in the store, and serves."""
        before = self.releases
        self.releases = {}
        for name, facts in seen["releases"].items():
            holds = before[name].holds if name in before else None
            self.releases[name] = Made(holds, *facts)
        self.current = seen["current"]
        if seen["served"] != self.served:  # it was compacted of what had been served
            self.serve(seen["served"], self.serving)
            if seen["served"] in self.releases:
                self.releases[seen["served"]].holds = dict(self.serving)

    def amid(self, operation: list[Any]) -> Iterator["Model"]:
        """All that may be there when this operation was under way, or failed."""
        kind, *rest = operation
        yield self
        if kind in ("open", "read", "snapshot", "close"):
            return
        if kind in ("publish", "compact"):  # the release is whole before it is made current
            yield self.copy().apply([kind, *rest[:-1], False])
        if kind == "prune":
            for count in range(1, len(self.doomed(rest[0])) + 1):
                part = self.copy()
                part._drop(self.doomed(rest[0])[:count])
                yield part
        yield self.copy().apply(operation)

    def _upsert(self, number: int) -> None:
        self._write(upserted(number))

    def _delete(self, number: int) -> None:
        self._write(dict.fromkeys(deleted(number)))

    def _write(self, changes: dict[str, Value] | dict[str, None]) -> None:
        for one, value in changes.items():
            self.last_seq += 1
            self.last[one] = (self.last_seq, value)
            for holds in (*(made.holds for made in self.releases.values()), *self.bases):
                if holds is not None:
                    _change(holds, one, value)

    def _read(self, number: int) -> None:
        """Nothing changes, nor when a writer opens what it serves already."""

    def _open(self) -> None:
        if self.served is None:
            self.restarted()

    def _close(self) -> None:
        self.served = None

    def _snapshot(self) -> None:
        self.tables = (self.last_seq, dict(self.serving))

    def _publish(self, name: str, which: str, activate: bool) -> None:
        seq, items = self.to_publish(which)
        holds = dict(items)
        for one, (last, value) in self.last.items():
            if last > seq:
                _change(holds, one, value)
        self._add(name, Made(holds, seq, seq, self.current), activate=activate)

    def to_publish(self, which: str) -> tuple[int, Items]:
        """`journal_seq` and the tables."""
        if which == "old":
            return 0, first_tables()
        if self.tables is None:
            raise StoreError("nothing was exported")
        return self.tables

    def _compact(self, name: str, activate: bool) -> None:
        base = self.releases[str(self.current)]
        if self.last_seq > base.journal_seq:
            made = Made(dict(base.holds or {}), self.last_seq, base.tables_seq, self.current)
            self._add(name, made, activate=activate)

    def _add(self, name: str, made: Made, *, activate: bool) -> None:
        self.releases[name] = made
        if activate:
            self.current = name

    def _activate(self, name: str) -> None:
        self.current = name
        self.serve(name, self.releases[name].holds)

    def _rollback(self) -> None:
        """Of the store; the writer serves on what it has."""
        self.current = self.releases[str(self.current)].parent

    def doomed(self, keep: int) -> list[str]:
        """Releases that pruning deletes, newest first."""
        stays = {self.current, None if self.current is None else self.releases[self.current].parent}
        return [name for name in list(reversed(self.releases))[keep:] if name not in stays]

    def _prune(self, keep: int) -> None:
        self._drop(self.doomed(keep))
        newest = next(reversed(self.releases.values()))
        upto = min(newest.tables_seq, *(made.journal_seq for made in self.releases.values()))
        self.forget(max(self.pruned_to, upto))

    def forget(self, upto: int) -> None:
        """Operations up to this one are pruned."""
        self.pruned_to = upto
        self.last = {one: last for one, last in self.last.items() if last[0] > upto}

    def _drop(self, names: list[str]) -> None:
        for name in names:
            del self.releases[name]


def _change(items: Items, one: str, value: Value | None) -> None:
    items.pop(one, None)
    if value is not None:
        items[one] = value


def look(folder: Path) -> Model:
    """What a store holds, found by opening all of it. `tables` and `served` are not there to be found."""
    store = Store.open(folder)
    current, model = store.find_current(), Model()
    model.current = current and current.release
    for manifest in reversed(store.list_releases()):
        store.verify(manifest.name)
        with open_recaller(folder, release=manifest.name) as recaller:
            holds = shown(recaller)
            check_found(recaller, dict(Random(manifest.name).sample([*holds.items()], min(5, len(holds)))))
        model.releases[manifest.name] = Made(holds, manifest.journal_seq, manifest.tables_seq, manifest.parent)
    journal = Journal.open_readonly(get_journal_path(store), "string")
    if journal is not None:
        model.last_seq, model.pruned_to = journal.last_seq, journal.pruned_to
        for one in journal.read_operations(0):
            model.last[str(one.id)] = (one.seq, one.fields and (one.fields["batch"], one.fields["item"]))
    return model


def shown(recaller: Any) -> Items:
    """All items that a recaller answers with; vectors and fields must be those of their values."""
    table = recaller.candidates(Query(vector=[1.0] + [0.0] * (D - 1), k=2 * ALL))
    items = dict(zip(table["id"], zip(table["batch"], table["item"], strict=True), strict=True))
    assert len(items) == len(table) == len(recaller.live.snapshot), "an item is answered twice, or not at all"
    view = recaller.live.snapshot
    vectors = view.vectors(view.rows(list(items)))
    for vector, label, value in zip(vectors, table["label"], items.values(), strict=True):
        assert label == fields_of(value)["label"], (label, value)
        assert np.array_equal(vector, vectors_of(value[0])[value[1]].astype(np.float16)), value
    return items


def check_found(recaller: Any, items: Items) -> None:
    """Each of some items is the best answer to its own vector, with its own fields."""
    for one, value in items.items():
        (answer,) = recaller.candidates(Query(vector=vector_of(value), k=1)).to_dicts()
        assert {"id": one, **fields_of(value)} == {key: answer[key] for key in ("id", "batch", "item", "label")}
