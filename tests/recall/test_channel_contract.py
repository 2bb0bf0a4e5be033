"""Every channel returns exactly its best eligible items, compared with an oracle over dicts, and merged ones exactly k.

A channel needs an oracle in `support.channel_oracles`, and its data in the release here.
"""

from datetime import datetime
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.channel_oracles import (
    ORACLES,
    ReferenceQuery,
    ReferenceStore,
    make_popular_lists,
    make_similar_items,
)

from vecall.channels.channel_facts import ChannelFacts
from vecall.channels.channel_tables import ChannelTables
from vecall.channels.popular_items import PopularItems
from vecall.channels.settings import CHANNEL_NAMES
from vecall.errors import TooManyScansError
from vecall.index.bitmap import Bitmap
from vecall.index.filter_profile import FilterProfile
from vecall.live.memtable import MemTable
from vecall.live.operations import Operation
from vecall.live.snapshot import Snapshot
from vecall.recall import scan_limiter
from vecall.recall.candidate_set import build_candidate_set
from vecall.recall.channels.available import CHANNELS, list_available_channels
from vecall.recall.channels.base import ChannelQuery
from vecall.recall.filters import FilterMask
from vecall.recall.query import Query, UnknownInputs
from vecall.recall.recaller import Recaller
from vecall.recall.resolve import ResolvedQuery
from vecall.recall.scan_limiter import ScanLimiter
from vecall.recall.search import search_candidates

N = 30
RNG = np.random.default_rng(0)
VECTORS = RNG.integers(-3, 4, (N, 4)).astype(np.float32)  # products are exact in any order of summation
POPULARITY = np.arange(N) // 7 % 5
LISTS = [
    sorted(
        ((int(row), int(RNG.integers(1, 6))) for row in RNG.permutation(np.delete(np.arange(N), item))[: item % 8]),
        key=lambda pair: (-pair[1], pair[0]),
    )
    for item in range(N)
]
SEED_WEIGHTS = [0.9**age for age in range(12)]
THIRDS = np.arange(N) % 3
POPULAR_THIRDS = {  # of each value the rows that were taken
    str(third): {int(row): float(POPULARITY[row]) for row in np.flatnonzero((third == THIRDS) & (POPULARITY > 0))}
    for third in range(3)
}
CREATED = [datetime(2200, 1, 1) if row % 2 else datetime(2000, 1, 1) for row in range(N)]  # to come: new whenever
NAMES = ["vector", *CHANNELS]

numbers = st.integers(0, 2 * N + 6)
vectors = st.lists(st.integers(-3, 3), min_size=4, max_size=4)
CASES = st.fixed_dictionaries(
    {
        "batches": st.lists(st.lists(st.tuples(numbers, st.none() | vectors), min_size=1, max_size=8), max_size=4),
        "vector": vectors,
        "history": st.lists(numbers, max_size=14),
        "n": st.integers(1, 8) | st.integers(1, 2 * N),
        "excluded": st.sets(numbers, max_size=8) | st.sets(numbers),
        "passing": st.none() | st.sets(numbers) | st.sets(numbers, max_size=5).map(set(range(2 * N + 7)).__sub__),
    }
)


def to_id(number):
    """Even numbers are items of the base, in the order of rows; odd ones sort between them."""
    return f"{number:03}"


@pytest.fixture
def release(make_release):
    """A release that can answer by every channel."""
    release = make_release(
        VECTORS,
        ids=[to_id(2 * row) for row in range(N)],
        popularity=POPULARITY,
        attributes=pl.DataFrame({"third": THIRDS, "created": CREATED}),
        users=[("ann", {}, [])],
        channels=ChannelTables(
            similar=make_similar_items(LISTS, SEED_WEIGHTS),
            popular=PopularItems(POPULARITY.astype(np.float32), make_popular_lists("third", POPULAR_THIRDS)),
            facts=ChannelFacts(created="created", fresh_days=7.0),
        ),
    )
    assert set(list_available_channels(release)) == set(NAMES)
    return release


def apply(release, batches):
    """The snapshot after some batches of changes, and the same by numbers."""
    memtable = MemTable(release)
    store = ReferenceStore(
        base_vectors={2 * row: vector for row, vector in enumerate(VECTORS)},
        popularity={2 * row: float(count) for row, count in enumerate(POPULARITY)},
        neighbors={2 * row: [(2 * other, score) for other, score in pairs] for row, pairs in enumerate(LISTS)},
        seed_weights=SEED_WEIGHTS,
        values={2 * row: str(third) for row, third in enumerate(THIRDS)},
        new_items={2 * row for row in range(1, N, 2)},
    )
    for batch in batches:
        operations = [
            Operation(0, "delete", to_id(number), None, None, None, has_external_vector=False)
            if vector is None
            else Operation(0, "upsert", to_id(number), {}, np.array(vector, np.float32), None, has_external_vector=True)
            for number, vector in batch
        ]
        memtable.apply(operations, seq=1)
        for number, vector in dict(batch).items():
            store.apply(number, vector)
    return memtable.snapshot, store


def rank(scores, eligible, n):
    """(ids, scores) of the n best eligible items, by float32 score, then id."""
    rounded = {number: float(np.float32(score)) for number, score in scores.items() if number in eligible}
    best = sorted(rounded, key=lambda number: (-rounded[number], to_id(number)))[:n]
    return [to_id(number) for number in best], [rounded[number] for number in best]


def recall_by_channel(name, query, n):
    if name != "vector":
        return CHANNELS[name](query, n)
    result = search_candidates(query.snapshot, query.resolved_query.query_matrix, query.candidates, n)
    return result.rows, result.scores


def test_every_channel_has_an_oracle():
    assert set(ORACLES) == set(NAMES) <= set(CHANNEL_NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_channel_returns_its_best_eligible_items(release, name):
    @settings(max_examples=60)
    @given(case=CASES)
    def check(case):
        snapshot, store = apply(release, case["batches"])
        history = [number for number in case["history"] if number in store.vectors]
        rows = snapshot.to_rows([to_id(number) for number in sorted(case["excluded"])])
        filter_mask, passing = None, case["passing"]
        if passing is not None:
            slot_ids = snapshot.delta.slots.ids[: len(snapshot.delta)]
            base = Bitmap.from_mask(np.array([2 * row in passing for row in range(N)]))
            filter_mask = FilterMask(
                FilterProfile(base), np.array([int(item_id) in passing for item_id in slot_ids], dtype=bool)
            )
        excluded_rows = np.sort(rows[rows >= 0])
        resolved_query = ResolvedQuery(
            np.array([case["vector"]], dtype=np.float32),
            excluded_rows,
            None,
            UnknownInputs(),
            history=snapshot.to_rows([to_id(number) for number in history]),
        )
        query = ChannelQuery(snapshot, resolved_query, build_candidate_set(snapshot, excluded_rows, filter_mask))
        found_rows, scores = recall_by_channel(name, query, case["n"])
        eligible = store.live - case["excluded"] & (store.live if passing is None else passing)
        expected = ORACLES[name](store, ReferenceQuery(np.array(case["vector"], np.float32), history))
        assert found_rows.dtype == np.int64
        assert (scores.dtype, len(set(found_rows.tolist()))) == (np.float32, len(found_rows))
        assert (snapshot.to_ids(found_rows), scores.tolist()) == rank(expected, eligible, case["n"])

    check()


def test_scan_for_the_neighbors_of_a_seed_without_a_list_is_limited(release, monkeypatch):
    """An exact index scans all items for it."""
    monkeypatch.setattr(scan_limiter, "_LARGE_SCAN_ROWS", N)
    limiter = ScanLimiter(1)
    recaller = Recaller(SimpleNamespace(snapshot=Snapshot.from_release(release)), scan_limiter=limiter)
    without_list, with_list = (Query(history=[to_id(2 * row)], channels=["similar"]) for row in (0, 1))
    assert recaller.recall(without_list).ids
    with limiter.acquire(N):
        assert recaller.recall(with_list).ids
        with pytest.raises(TooManyScansError):
            recaller.recall(without_list)


@given(
    case=CASES, names=st.sets(st.sampled_from(NAMES), min_size=1), k=st.integers(1, 2 * N), is_filtered=st.booleans()
)
@settings(max_examples=80)
def check_merged(release, case, names, k, is_filtered):
    snapshot, store = apply(release, case["batches"])
    recaller = Recaller(SimpleNamespace(snapshot=snapshot))
    where = [{"field": "third", "op": "ne", "value": 1}] if is_filtered else []
    answer = recaller.recall(
        Query(
            vector=case["vector"],
            history=[to_id(number) for number in case["history"]],
            exclude=[to_id(number) for number in case["excluded"]],
            exclude_seen=bool(len(case["history"]) % 2),
            where=where,
            k=k,
            channels=[name for name in CHANNEL_NAMES if name in names],
        )
    )
    seen = set(case["history"]) if len(case["history"]) % 2 else set()
    in_delta = set(map(int, snapshot.delta.slots.ids))  # they have no attributes, and match no filter
    eligible = {
        number
        for number in store.live - case["excluded"] - seen
        if not is_filtered or (number not in in_delta and number // 2 % 3 != 1)
    }
    history = [number for number in case["history"] if number in store.vectors]
    query = ReferenceQuery(np.array(case["vector"], np.float32), history)
    expected = {}
    for name in CHANNEL_NAMES:
        if name in names:
            ids, scores = rank(ORACLES[name](store, query), eligible, k)
            if len(names) == 1:
                expected = {int(item_id): score for item_id, score in zip(ids, scores, strict=True)}
            else:
                for position, item_id in enumerate(ids, 1):
                    expected[int(item_id)] = expected.get(int(item_id), 0.0) + 1 / (60 + position)
    assert (answer.ids, answer.scores) == rank(expected, eligible, k)
    assert answer.exhausted == (len(answer.ids) == len(eligible))
    if "vector" in names:
        assert len(answer.ids) == min(k, len(eligible))


def test_merged_channels_return_exactly_k_eligible_items(release):
    check_merged(release)
