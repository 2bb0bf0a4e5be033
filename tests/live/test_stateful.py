"""Any sequence of changes to a store, compared with dictionaries and exact scores."""

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from vecall.errors import StoreError
from vecall.live.compaction import compact
from vecall.live.pruning import prune_store
from vecall.pipeline.publish_vectors import publish_vectors
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller
from vecall.release.activation import roll_back
from vecall.release.store import Store

D = 4
IDS = st.integers(0, 14)
# Thirds need rounding to half precision. Their inner products with small integers are then exact in float32.
VECTORS = st.lists(st.integers(-6, 6).map(lambda n: n / 3), min_size=D, max_size=D)
QUERIES = st.lists(st.integers(-3, 3), min_size=D, max_size=D)
COLOURS = st.sampled_from([None, "red", "blue"])
TABLES = st.dictionaries(IDS, st.tuples(VECTORS, COLOURS), min_size=1, max_size=8)


def round_to_half(vector):
    return np.asarray(vector, dtype=np.float32).astype(np.float16).astype(np.float64)


class ReleaseModel(NamedTuple):
    """The expected state of a release: its tables, and the last operations that it and its tables contain."""

    items: dict
    journal_seq: int
    tables_seq: int
    parent: str | None


class StoreMachine(RuleBasedStateMachine):
    """A store and its model: `journal` has all operations, `releases` all releases, oldest first."""

    def __init__(self):
        super().__init__()
        self.store_dir = Path(tempfile.mkdtemp())
        self.journal, self.pruned_to = [], 0  # (seq, id, value); value None is a delete
        self.releases: dict[str, ReleaseModel] = {}
        self.current: str | None = None
        self.recaller, self.name_count = None, 0

    @initialize(items=TABLES)
    def publish_first_release(self, items):
        self.old_tables = items
        self.publish(items, 0)
        self.restart()

    def teardown(self):
        if self.recaller is not None:
            self.recaller.close()
        shutil.rmtree(self.store_dir)

    def make_name(self):
        self.name_count += 1
        return f"r{self.name_count}"

    def compute_items(self, name):
        """Return the items that opening a release must show."""
        release = self.releases[name]
        items = dict(release.items)
        for seq, item_id, value in self.journal:
            if seq > max(release.journal_seq, self.pruned_to):
                self.set_item(items, item_id, value)
        return items

    @staticmethod
    def set_item(items, item_id, value):
        items.pop(item_id, None)
        if value is not None:
            items[item_id] = value

    def record_changes(self, changes):
        for item_id, value in changes:
            self.journal.append((len(self.journal) + 1, item_id, value))
            self.set_item(self.served, item_id, value)

    def publish(self, items, journal_seq, *, activate=True):
        name = self.make_name()
        publish_vectors(
            self.store_dir,
            list(items),
            np.array([vector for vector, _ in items.values()]),
            attributes=pl.DataFrame({"colour": [colour for _, colour in items.values()]}, schema={"colour": pl.String}),
            name=name,
            activate=activate,
            journal_seq=journal_seq,
            allow_worse=True,
        )
        self.add_release(name, ReleaseModel(dict(items), journal_seq, journal_seq, self.current), activate=activate)

    def add_release(self, name, release, *, activate):
        self.releases[name] = release
        if activate:
            self.current = name

    @rule(items=st.dictionaries(IDS, st.tuples(VECTORS, COLOURS), min_size=1, max_size=4))
    def upsert(self, items):
        upserted = [
            {"id": item_id, "vector": vector, "fields": {"colour": colour}}
            for item_id, (vector, colour) in items.items()
        ]
        assert self.recaller.upsert(upserted) == len(items)
        self.record_changes(items.items())

    @rule(ids=st.lists(IDS, min_size=1, max_size=4, unique=True))
    def delete(self, ids):
        assert self.recaller.delete(ids) == sum(item_id in self.served for item_id in ids)
        self.record_changes([(item_id, None) for item_id in ids])

    @rule(vector=QUERIES, k=st.integers(1, 16), colour=COLOURS, exclude=st.lists(IDS, max_size=4))
    def recall(self, vector, k, colour, exclude):
        where = [] if colour is None else [{"field": "colour", "op": "eq", "value": colour}]
        query = Query(vector=vector, k=k, where=where, exclude=exclude)
        matching = {
            item_id: value
            for item_id, value in self.served.items()
            if item_id not in exclude and colour in (None, value[1])
        }
        self.check_recall(self.recaller, matching, query)

    def check_recall(self, recaller, matching, query):
        """Compare the results of a query with the exact ones among the matching items."""
        scores = {
            item_id: float(round_to_half(vector) @ np.array(query.vector)) for item_id, (vector, _) in matching.items()
        }
        best = sorted(scores, key=lambda item_id: (-scores[item_id], item_id))[: query.k]
        result, table = recaller.recall(query), recaller.candidates(query)
        assert result.ids == table["id"].to_list() == best
        assert result.scores == table["score"].to_list() == [scores[item_id] for item_id in best]
        assert table["colour"].to_list() == [matching[item_id][1] for item_id in best]
        assert result.exhausted == (query.k >= len(scores))

    @invariant()
    def all_items_are_live(self):
        if self.recaller is not None:
            snapshot, ids = self.recaller.live_index.snapshot, list(range(15))
            assert len(snapshot) == len(self.served)
            assert snapshot.is_live(snapshot.to_rows(ids)).tolist() == [item_id in self.served for item_id in ids]

    @rule(activate=st.booleans(), switch=st.booleans())
    def compact(self, activate, switch):
        base, items = self.current, self.compute_items(self.current)
        release = self.releases[base]
        name = self.make_name()
        if len(self.journal) <= release.journal_seq:
            assert compact(self.store_dir, name=name) == base
        elif not items:
            with pytest.raises(StoreError, match="at least one"):
                compact(self.store_dir, name=name)
        else:
            assert compact(self.store_dir, name=name, activate=activate) == name
            compacted = ReleaseModel(items, len(self.journal), release.tables_seq, base)
            self.add_release(name, compacted, activate=activate)
            if switch:
                self.switch_to(name)

    @rule(activate=st.booleans(), switch=st.booleans())
    def publish_old_tables(self, activate, switch):
        self.publish(self.old_tables, 0, activate=activate)
        if switch:
            self.switch_to(next(reversed(self.releases)))

    @rule(switch=st.booleans())
    def publish_current_tables(self, switch):
        if self.served:
            self.old_tables = dict(self.served)
            self.publish(self.served, len(self.journal))
            if switch:
                self.switch_to(next(reversed(self.releases)))

    @rule(choice=st.integers(0, 99))
    def activate(self, choice):
        self.switch_to(list(self.releases)[choice % len(self.releases)])

    @rule()
    def roll_back(self):
        parent = self.releases[self.current].parent
        if parent in self.releases:
            assert roll_back(Store.open(self.store_dir)) == (parent, self.current)
            self.current = parent
            self.restart()
        else:
            with pytest.raises(StoreError):
                roll_back(Store.open(self.store_dir))

    def switch_to(self, name):
        assert self.recaller.activate(name) == self.current
        self.current, self.served = name, self.compute_items(name)

    @rule(keep=st.integers(0, 3))
    def prune(self, keep):
        newest_first = list(reversed(self.releases))
        kept = {*newest_first[:keep], self.current, self.releases[self.current].parent}
        result = prune_store(Store.open(self.store_dir), keep)
        assert result.release_names == [name for name in newest_first if name not in kept]
        self.releases = {name: release for name, release in self.releases.items() if name in kept}
        tables_seq = next(reversed(self.releases.values())).tables_seq
        min_seq = min(tables_seq, *(release.journal_seq for release in self.releases.values()))
        until_seq = max(self.pruned_to, min_seq)
        assert result.operation_count == until_seq - self.pruned_to
        self.pruned_to = until_seq

    @rule()
    def restart(self):
        if self.recaller is not None:
            self.recaller.close()
        self.recaller = open_recaller(self.store_dir, writable=True, auto_compact=False)
        assert self.recaller.release == self.current
        self.served = self.compute_items(self.current)

    @rule(choice=st.integers(0, 99), vector=QUERIES)
    def read_in_another_recaller(self, choice, vector):
        name = list(self.releases)[choice % len(self.releases)]
        with open_recaller(self.store_dir, release=name) as reader:
            self.check_recall(reader, self.compute_items(name), Query(vector=vector, k=20))


SHORT_RUN = settings(max_examples=30, stateful_step_count=25, suppress_health_check=list(HealthCheck), print_blob=True)


def test_store_matches_its_model_after_any_changes():
    run_state_machine_as_test(StoreMachine, settings=SHORT_RUN)


@pytest.mark.slow
def test_store_matches_its_model_after_many_changes():
    run_state_machine_as_test(StoreMachine, settings=settings(SHORT_RUN, max_examples=500, stateful_step_count=50))
