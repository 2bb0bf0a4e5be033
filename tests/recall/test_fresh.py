"""The channel `fresh` and the age of items, beside a naive scan, by a clock of the test."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecall.channels.channel_facts import ChannelFacts
from vecall.channels.channel_tables import ChannelTables
from vecall.errors import InvalidReleaseError
from vecall.live.compaction import compact
from vecall.live.live_index import LiveIndex
from vecall.live.memtable import MemTable
from vecall.live.operations import Operation
from vecall.recall.candidate_set import build_candidate_set
from vecall.recall.channels import fresh
from vecall.recall.channels.available import list_available_channels
from vecall.recall.channels.base import ChannelQuery
from vecall.recall.channels.fresh import FreshChannel
from vecall.recall.item_age import compute_age_days
from vecall.recall.query import Query, UnknownInputs
from vecall.recall.recaller import Recaller, open_recaller
from vecall.recall.resolve import ResolvedQuery

N, DIM = 20, 4
PUBLISHED = datetime(2024, 3, 1)  # by the wall clock; the data end ten days before
OFFSET = timedelta(days=-10)
NOW = datetime(2024, 3, 2)
DATA_NOW = NOW + OFFSET
EPOCH = datetime(1970, 1, 1)
AGES = [0, 1, 2, 3, 3, 5, 6, 6.5, 7, 7.5, 9, 30, None, None, -2, 4, 4, 4, 100, 7]  # days
VECTORS = np.random.default_rng(0).integers(-3, 4, (N, DIM)).astype(np.float32)


def to_id(number):
    """Even numbers are items of the base, in the order of rows; odd ones sort between them."""
    return f"{number:03}"


def to_time(age):
    return None if age is None else DATA_NOW - timedelta(days=age)


def read_clock():
    return (NOW - EPOCH) // timedelta(microseconds=1) * 1000


@pytest.fixture
def make_dated_release(make_release):
    def make(created="added", fresh_days=7.0, **contents):
        facts = ChannelFacts(
            created=created, fresh_days=fresh_days, clock_offset_us=OFFSET // timedelta(microseconds=1)
        )
        return make_release(
            VECTORS,
            ids=[to_id(2 * row) for row in range(N)],
            attributes={"added": pl.Series([to_time(age) for age in AGES], dtype=pl.Datetime("us"))},
            channels=ChannelTables(facts=facts),
            **contents,
        )

    return make


def make_operation(number, content):
    if content is None:
        return Operation(0, "delete", to_id(number), None, None, None, has_external_vector=False)
    age, vector = content
    fields = {} if age is None else {"added": to_time(age).isoformat()}
    return Operation(
        0, "upsert", to_id(number), fields, np.array(vector, dtype=np.float32), None, has_external_vector=True
    )


def ask(snapshot, n, vector, excluded=()):
    rows = snapshot.to_rows([to_id(number) for number in excluded])
    matrix = None if vector is None else np.array([vector], dtype=np.float32)
    resolved = ResolvedQuery(matrix, np.unique(rows[rows >= 0]), None, UnknownInputs())
    candidates = build_candidate_set(snapshot, resolved.excluded_rows, None)
    return FreshChannel(read_clock)(ChannelQuery(snapshot, resolved, candidates), n)


def rank_naively(items, n, vector, excluded):
    """Rank items, by number, of (age, vector)."""
    scores = {}
    for number, (age, item_vector) in items.items():
        is_in_release = number % 2 == 0 and number < 2 * N
        if number not in excluded and (age <= 7 if age is not None else not is_in_release):
            score = -max(age or 0, 0) if vector is None else float(np.dot(item_vector, vector))
            scores[to_id(number)] = np.float32(score)
    ranked = sorted(scores, key=lambda item_id: (-scores[item_id], item_id))[:n]
    return ranked, [scores[item_id] for item_id in ranked]


numbers = st.integers(0, 2 * N + 4)
vectors = st.lists(st.integers(-3, 3), min_size=DIM, max_size=DIM)
CASES = {
    "batches": st.lists(
        st.lists(
            st.tuples(numbers, st.none() | st.tuples(st.sampled_from([None, 0, 3, 7, 8, 50]), vectors)),
            min_size=1,
            max_size=9,
        ),
        max_size=3,
    ),
    "vector": st.none() | vectors,
    "excluded": st.sets(numbers, max_size=6),
    "n": st.integers(1, 6) | st.just(60),
}


def test_new_items_are_returned_by_vector_or_age(make_dated_release):
    release = make_dated_release()

    @settings(max_examples=40)
    @given(case=st.fixed_dictionaries(CASES))
    def check(case):
        memtable, items = MemTable(release), {2 * row: (AGES[row], VECTORS[row]) for row in range(N)}
        for batch in case.pop("batches"):
            memtable.apply([make_operation(*change) for change in batch], seq=0)
            for number, content in dict(batch).items():
                items.pop(number, None)
                if content is not None:
                    items[number] = content
        rows, scores = ask(memtable.snapshot, **case)
        expected_ids, expected_scores = rank_naively(items, **case)
        assert memtable.snapshot.to_ids(rows) == expected_ids
        assert scores.tolist() == pytest.approx(expected_scores)

    check()


def test_newest_items_count_where_there_are_many(make_dated_release, monkeypatch):
    monkeypatch.setattr(fresh, "MAX_ROWS", 3)
    rows, _ = ask(MemTable(make_dated_release()).snapshot, 60, [1, 0, 0, 0])
    assert sorted(rows.tolist()) == [0, 1, 14]  # created in the future, now, and yesterday


def test_time_that_passes_makes_items_old(make_dated_release):
    snapshot = MemTable(make_dated_release()).snapshot
    rows = np.arange(N)
    ages = compute_age_days(snapshot, rows, read_clock())
    assert ages.tolist() == pytest.approx([np.nan if age is None else max(age, 0) for age in AGES], nan_ok=True)
    later = compute_age_days(snapshot, rows, read_clock() + 5 * 86_400 * 10**9)
    assert later[:4].tolist() == [5, 6, 7, 8]


def test_candidates_have_the_age(make_dated_release, monkeypatch):
    monkeypatch.setattr("time.time_ns", read_clock)
    recaller = Recaller(LiveIndex.from_release(make_dated_release()))
    table = recaller.candidates(Query(vector=[1.0, 0, 0, 0], k=N))
    expected = {to_id(2 * row): None if age is None else max(age, 0) for row, age in enumerate(AGES)}
    assert dict(zip(table["id"], table["item.age_days"], strict=True)) == pytest.approx(expected)


def test_age_is_null_where_the_release_has_no_times(make_recaller):
    table = make_recaller(np.eye(4)).candidates(Query(vector=[1.0, 0, 0, 0], k=4))
    assert table["item.age_days"].to_list() == [None] * 4


def test_live_items_are_new_without_any_times(make_dated_release):
    memtable = MemTable(make_dated_release(created=None))
    memtable.apply([make_operation(1, (None, [1, 0, 0, 0])), make_operation(2, (None, [9, 0, 0, 0]))], seq=0)
    rows, scores = ask(memtable.snapshot, 9, [2, 0, 0, 0])
    assert (memtable.snapshot.to_ids(rows), scores.tolist()) == (["001"], [2.0])


def test_age_of_live_items_survives_a_compaction(make_dated_release, tmp_path):
    make_dated_release()
    store = tmp_path / "store"
    with open_recaller(store, writable=True, auto_compact=False) as recaller:
        changed = {"id": "002", "vector": [1.0, 0, 0, 0], "fields": {"added": to_time(5).isoformat()}}
        recaller.upsert([changed, {"id": "001", "vector": [1.0, 0, 0, 0], "fields": {}}])
        recaller.delete(["004"])
        expected = get_ages(recaller.live_index.snapshot)
    compact(store)
    with open_recaller(store) as recaller:
        ages = get_ages(recaller.live_index.snapshot)
    assert ages == pytest.approx(expected, nan_ok=True)
    assert ages["002"] == 5
    assert np.isnan(ages["001"])
    assert "004" not in ages


def get_ages(snapshot):
    rows = snapshot.list_live_rows()
    return dict(zip(snapshot.to_ids(rows), compute_age_days(snapshot, rows, read_clock()).tolist(), strict=True))


def test_release_without_the_column_that_its_facts_name_is_refused(make_dated_release):
    with pytest.raises(InvalidReleaseError, match="no column 'other'"):
        make_dated_release(created="other")


def test_channel_is_off_unless_it_is_turned_on(make_dated_release):
    assert "fresh" in list_available_channels(make_dated_release())
    release = make_dated_release(fresh_days=None)
    assert "fresh" not in list_available_channels(release)
    assert len(ask(MemTable(release).snapshot, 9, [1, 0, 0, 0])[0]) == 0


def test_new_items_of_a_user_without_a_vector_are_no_popular_items(make_release, make_encoder):
    release = make_release(
        VECTORS,
        encoder=make_encoder(),
        popularity=np.arange(N),
        attributes=pl.DataFrame({"added": [datetime(2200, 1, 1)] * N}),
        channels=ChannelTables(facts=ChannelFacts(created="added", fresh_days=7.0, clock_offset_us=0)),
    )
    recaller = Recaller(LiveIndex.from_release(release))
    for channels, fallback in ((["fresh"], None), (["vector"], "popular"), (["vector", "fresh"], "popular")):
        answer = recaller.recall(Query(history=[], k=3, channels=channels))
        assert (len(answer.ids), answer.fallback) == (3, fallback)


@pytest.mark.parametrize("channels", [["vector"], ["fresh"], ["vector", "fresh"]])
def test_more_items_than_numbers_hold_are_all_items(make_dated_release, channels):
    with Recaller(LiveIndex.from_release(make_dated_release())) as recaller:
        answer = recaller.recall(Query(vector=[1, 0, 0, 0], k=10**20, channels=channels))
        assert len(answer.ids) == (0 if channels == ["fresh"] else N)
