"""A store under any sequence of changes, against plain dictionaries with exact scores."""

import shutil
import tempfile
from pathlib import Path

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
from vecall.release.store import Store

D = 4
IDS = st.integers(0, 14)
# Thirds are rounded to half precision; their inner products with small integers are exact in float32.
VECTORS = st.lists(st.integers(-6, 6).map(lambda n: n / 3), min_size=D, max_size=D)
QUERIES = st.lists(st.integers(-3, 3), min_size=D, max_size=D)
COLOURS = st.sampled_from([None, "red", "blue"])
TABLES = st.dictionaries(IDS, st.tuples(VECTORS, COLOURS), min_size=1, max_size=8)


def half(vector):
    return np.asarray(vector, dtype=np.float32).astype(np.float16).astype(np.float64)


class Shop(RuleBasedStateMachine):
    """`journal` holds all operations; a release is its tables and the operation up to which they hold everything."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.journal, self.pruned_to = [], 0
        self.releases, self.current = {}, None  # oldest first: name -> (items, journal_seq, declared_seq, parent)
        self.recaller, self.named = None, 0

    @initialize(items=TABLES)
    def begin(self, items):
        self.old_tables = items
        self.publish(items, 0)
        self.restart()

    def teardown(self):
        if self.recaller is not None:
            self.recaller.close()
        shutil.rmtree(self.folder)

    def a_name(self):
        self.named += 1
        return f"r{self.named}"

    def content(self, name):
        """What opening a release must show."""
        items, journal_seq, _, _ = self.releases[name]
        held = dict(items)
        for seq, one, what in self.journal:
            if seq > max(journal_seq, self.pruned_to):
                self.change(held, one, what)
        return held

    @staticmethod
    def change(held, one, what):
        held.pop(one, None)
        if what is not None:
            held[one] = what

    def write(self, changes):
        for one, what in changes:
            self.journal.append((len(self.journal) + 1, one, what))
            self.change(self.served, one, what)

    def publish(self, items, journal_seq, *, activate=True):
        name = self.a_name()
        publish_vectors(
            self.folder,
            list(items),
            np.array([vector for vector, _ in items.values()]),
            attributes=pl.DataFrame({"colour": [colour for _, colour in items.values()]}, schema={"colour": pl.String}),
            name=name,
            activate=activate,
            journal_seq=journal_seq,
        )
        self.add(name, (dict(items), journal_seq, journal_seq, self.current), activate=activate)

    def add(self, name, release, *, activate):
        self.releases[name] = release
        if activate:
            self.current = name

    @rule(items=st.dictionaries(IDS, st.tuples(VECTORS, COLOURS), min_size=1, max_size=4))
    def upsert(self, items):
        given = [{"id": one, "vector": v, "fields": {"colour": c}} for one, (v, c) in items.items()]
        assert self.recaller.upsert(given) == len(items)
        self.write(items.items())

    @rule(ids=st.lists(IDS, min_size=1, max_size=4, unique=True))
    def delete(self, ids):
        assert self.recaller.delete(ids) == sum(one in self.served for one in ids)
        self.write([(one, None) for one in ids])

    @rule(vector=QUERIES, k=st.integers(1, 16), colour=COLOURS, exclude=st.lists(IDS, max_size=4))
    def recall(self, vector, k, colour, exclude):
        where = [] if colour is None else [{"field": "colour", "op": "eq", "value": colour}]
        asked = Query(vector=vector, k=k, where=where, exclude=exclude)
        self.check(self.recaller, self.served, asked, lambda one, c: one not in exclude and colour in (None, c))

    def check(self, recaller, held, asked, wanted):
        scores = {one: float(half(v) @ np.array(asked.vector)) for one, (v, c) in held.items() if wanted(one, c)}
        best = sorted(scores, key=lambda one: (-scores[one], one))[: asked.k]
        answer, table = recaller.recall(asked), recaller.candidates(asked)
        assert answer.ids == table["id"].to_list() == best
        assert answer.scores == table["score"].to_list() == [scores[one] for one in best]
        assert table["colour"].to_list() == [held[one][1] for one in best]
        assert answer.exhausted == (asked.k >= len(scores))

    @invariant()
    def everything_is_there(self):
        if self.recaller is not None:
            view = self.recaller.live_index.snapshot
            assert len(view) == len(self.served)
            assert view.is_live(view.to_rows(list(range(15)))).tolist() == [one in self.served for one in range(15)]

    @rule(activate=st.booleans(), go_over=st.booleans())
    def compact(self, activate, go_over):
        base, held = self.current, self.content(self.current)
        _, journal_seq, declared, _ = self.releases[base]
        name = self.a_name()
        if len(self.journal) <= journal_seq:
            assert compact(self.folder, name=name) == base
        elif not held:
            with pytest.raises(StoreError, match="at least one"):
                compact(self.folder, name=name)
        else:
            assert compact(self.folder, name=name, activate=activate) == name
            self.add(name, (held, len(self.journal), declared, base), activate=activate)
            if go_over:
                self.go_over_to(name)

    @rule(activate=st.booleans(), go_over=st.booleans())
    def publish_old_tables(self, activate, go_over):
        self.publish(self.old_tables, 0, activate=activate)
        if go_over:
            self.go_over_to(next(reversed(self.releases)))

    @rule(go_over=st.booleans())
    def publish_todays_tables(self, go_over):
        if self.served:
            self.old_tables = dict(self.served)
            self.publish(self.served, len(self.journal))
            if go_over:
                self.go_over_to(next(reversed(self.releases)))

    @rule(choice=st.integers(0, 99))
    def activate(self, choice):
        self.go_over_to(list(self.releases)[choice % len(self.releases)])

    @rule()
    def roll_back(self):
        parent = self.releases[self.current][3]
        if parent in self.releases:
            assert Store.open(self.folder).rollback() == (parent, self.current)
            self.current = parent
            self.restart()
        else:
            with pytest.raises(StoreError):
                Store.open(self.folder).rollback()

    def go_over_to(self, name):
        assert self.recaller.activate(name) == self.current
        self.current, self.served = name, self.content(name)

    @rule(keep=st.integers(0, 3))
    def prune(self, keep):
        newest_first = list(reversed(self.releases))
        stays = {*newest_first[:keep], self.current, self.releases[self.current][3]}
        pruned = prune_store(Store.open(self.folder), keep)
        assert pruned.release_names == [name for name in newest_first if name not in stays]
        self.releases = {name: release for name, release in self.releases.items() if name in stays}
        declared = next(reversed(self.releases.values()))[2]
        upto = max(self.pruned_to, min(declared, *(release[1] for release in self.releases.values())))
        assert pruned.operation_count == upto - self.pruned_to
        self.pruned_to = upto

    @rule()
    def restart(self):
        if self.recaller is not None:
            self.recaller.close()
        self.recaller = open_recaller(self.folder, writable=True, auto_compact=False)
        assert self.recaller.release == self.current
        self.served = self.content(self.current)

    @rule(choice=st.integers(0, 99), vector=QUERIES)
    def another_process_reads(self, choice, vector):
        name = list(self.releases)[choice % len(self.releases)]
        with open_recaller(self.folder, release=name) as reader:
            self.check(reader, self.content(name), Query(vector=vector, k=20), lambda *_: True)


HURRY = settings(max_examples=30, stateful_step_count=25, suppress_health_check=list(HealthCheck), print_blob=True)


def test_any_sequence_of_changes():
    run_state_machine_as_test(Shop, settings=HURRY)


@pytest.mark.slow
def test_many_sequences_of_changes():
    run_state_machine_as_test(Shop, settings=settings(HURRY, max_examples=500, stateful_step_count=50))
