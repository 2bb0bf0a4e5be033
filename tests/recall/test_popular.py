"""The channel `popular` beside a naive ranking of all items, with live changes, filters and exclusions."""

from collections import Counter
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.channel_oracles import make_popular_lists

from vecall.channels.channel_facts import ChannelFacts
from vecall.channels.channel_tables import ChannelTables
from vecall.channels.popular_items import PopularItems
from vecall.errors import InvalidReleaseError
from vecall.index.bitmap import Bitmap
from vecall.live.memtable import MemTable
from vecall.live.operations import Operation
from vecall.recall.candidate_set import build_candidate_set
from vecall.recall.channels import popular as popular_channel
from vecall.recall.channels.available import list_available_channels
from vecall.recall.channels.base import ChannelQuery
from vecall.recall.channels.popular import recall_popular
from vecall.recall.filters import FilterMask
from vecall.recall.query import Query, UnknownInputs
from vecall.recall.resolve import ResolvedQuery

N = 24
GENRES = "abcde"
GENRES_BY_ITEM = {2 * row: sorted({GENRES[row % 5], GENRES[row * 7 // 3 % 5]}) for row in range(N)}
TOWNS = {"york": {3: 2.0, 5: 1.0, 8: 1.0}, "bath": {0: 4.0}}


def to_id(number):
    """Even numbers are items of the base, in the order of rows; odd ones sort between them."""
    return f"{number:03}"


COUNTS = np.array([row * 5 % 7 / 2 for row in range(N)], dtype=np.float32)
BY_GENRE = {
    genre: {row: float(COUNTS[row]) for row in range(N) if genre in GENRES_BY_ITEM[2 * row] and COUNTS[row]}
    for genre in GENRES[:4]
}  # nobody took the last genre lately


def make_popular(by=True, by_user=True):
    return PopularItems(
        COUNTS,
        make_popular_lists("genre", BY_GENRE) if by else None,
        make_popular_lists("town", TOWNS) if by_user else None,
    )


@pytest.fixture
def make_genre_release(make_release):
    def make(popular, **facts):
        return make_release(
            np.eye(N),
            ids=[to_id(2 * row) for row in range(N)],
            attributes={"genre": list(GENRES_BY_ITEM.values())},
            channels=ChannelTables(popular=popular, facts=ChannelFacts(**facts)),
        )

    return make


class ReferenceModel:
    """The live items by number with their genres, and the score by its formula."""

    def __init__(self):
        self.genres = dict(GENRES_BY_ITEM)
        self.live = set(self.genres)

    def apply(self, number, genres):
        self.live.discard(number)
        if genres is not None:
            self.live.add(number)
            self.genres[number] = genres

    def score(self, number, history, town):
        if number % 2 or number >= 2 * N:
            return 0.0
        row, total = number // 2, sum(COUNTS.tolist())
        newest = history[-popular_channel.HISTORY_LENGTH :]
        frequencies = Counter(genre for item in newest for genre in set(self.genres[item]) if genre in BY_GENRE)
        ranked = sorted(frequencies.items(), key=lambda pair: (-pair[1], pair[0]))[: popular_channel.MAX_VALUES]
        score = float(COUNTS[row])
        for genre, frequency in ranked:
            score += total * frequency / len(newest) * BY_GENRE[genre].get(row, 0) / sum(BY_GENRE[genre].values())
        if town in TOWNS:
            score += total * TOWNS[town].get(row, 0) / sum(TOWNS[town].values())
        return score


def make_operation(number, genres):
    if genres is None:
        return Operation(0, "delete", to_id(number), None, None, None, has_external_vector=False)
    vector = np.zeros(N, dtype=np.float32)
    return Operation(0, "upsert", to_id(number), {"genre": genres}, vector, None, has_external_vector=True)


def make_filter_mask(passing, snapshot):
    if passing is None:
        return None
    base = Bitmap.from_mask(np.array([2 * row in passing for row in range(N)]))
    slot_ids = snapshot.delta.slots.ids[: len(snapshot.delta)]
    return FilterMask(base, np.array([int(item_id) in passing for item_id in slot_ids], dtype=bool))


def ask(snapshot, n, history=(), town=None, excluded=(), passing=None):
    rows = snapshot.to_rows([to_id(number) for number in sorted(excluded)])
    resolved = ResolvedQuery(
        None,
        np.unique(rows[rows >= 0]),
        None,
        UnknownInputs(),
        history=snapshot.to_rows([to_id(number) for number in history]),
        user_features=None if town is None else pl.DataFrame({"town": [town]}),
    )
    candidates = build_candidate_set(snapshot, resolved.excluded_rows, make_filter_mask(passing, snapshot))
    return recall_popular(ChannelQuery(snapshot, resolved, candidates), n)


numbers = st.integers(0, 2 * N + 4)
CASES = {
    "batches": st.lists(
        st.lists(st.tuples(numbers, st.none() | st.lists(st.sampled_from(GENRES), max_size=2)), min_size=1, max_size=9),
        max_size=3,
    ),
    "history": st.lists(st.integers(0, N - 1).map(lambda row: 2 * row), max_size=8),
    "town": st.sampled_from([None, "york", "bath", "hull"]),
    "excluded": st.sets(numbers, max_size=6),
    "passing": st.none() | st.sets(numbers),
    "n": st.integers(1, 8) | st.just(60),
}


@pytest.mark.parametrize("limits", [(50, 8), (3, 2)])
def test_the_best_eligible_items_are_returned(make_genre_release, limits, monkeypatch):
    monkeypatch.setattr(popular_channel, "HISTORY_LENGTH", limits[0])
    monkeypatch.setattr(popular_channel, "MAX_VALUES", limits[1])
    release = make_genre_release(make_popular())

    @settings(max_examples=25)
    @given(case=st.fixed_dictionaries(CASES))
    def check(case):
        memtable, model = MemTable(release), ReferenceModel()
        for batch in case.pop("batches"):
            memtable.apply([make_operation(*change) for change in batch], seq=0)
            for number, genres in dict(batch).items():
                model.apply(number, genres)
        rows, scores = ask(memtable.snapshot, **case)
        passing = model.live if case["passing"] is None else model.live & case["passing"]
        expected = {
            to_id(number): np.float32(model.score(number, case["history"], case["town"]))
            for number in passing - case["excluded"]
        }
        ranked = sorted(expected, key=lambda item_id: (-expected[item_id], item_id))[: case["n"]]
        assert memtable.snapshot.to_ids(rows) == ranked
        assert scores.tolist() == pytest.approx([expected[item_id] for item_id in ranked], rel=1e-5)

    check()


def test_user_without_history_gets_what_is_popular_overall(make_genre_release):
    snapshot = MemTable(make_genre_release(make_popular(by_user=False))).snapshot
    rows, scores = ask(snapshot, 4, town="york")
    assert rows.tolist() == np.argsort(-COUNTS, kind="stable")[:4].tolist()
    assert scores.tolist() == COUNTS[rows].tolist()


def test_release_without_counts_ranks_by_popularity(make_recaller, make_encoder):
    popularity = [3, 1, 4, 1]
    recaller = make_recaller(np.eye(4), popularity=popularity, users=[("ann", {}, [2])], encoder=make_encoder())
    assert recaller.recall(Query(user_id="ann", channels=["popular"])).ids == [100, 101, 103]


def test_channel_is_there_with_counts_or_popularity_unless_it_is_off(make_release, make_genre_release):
    assert "popular" in list_available_channels(make_genre_release(make_popular()))
    assert "popular" in list_available_channels(make_release(np.eye(4), popularity=np.arange(4)))
    assert "popular" not in list_available_channels(make_release(np.eye(4)))
    release = make_release(np.eye(4), popularity=np.arange(4))
    off = replace(release, channels=ChannelTables(facts=ChannelFacts(popular=False)))
    assert "popular" not in list_available_channels(off)


def test_release_without_the_attribute_of_its_lists_is_refused(make_release):
    with pytest.raises(InvalidReleaseError, match="no column 'genre'"):
        make_release(np.eye(N), channels=ChannelTables(popular=make_popular()))


def test_counts_survive_in_the_files(make_genre_release):
    popular, read = make_popular(), make_genre_release(make_popular(), repeat_share=0.5).channels
    np.testing.assert_array_equal(read.popular.counts, popular.counts)
    for name in ("by", "by_user"):
        lists, expected = getattr(read.popular, name), getattr(popular, name)
        assert (lists.column, lists.values.to_list()) == (expected.column, expected.values.to_list())
        for array in ("offsets", "rows", "scores"):
            np.testing.assert_array_equal(getattr(lists, array), getattr(expected, array))
    assert read.facts == ChannelFacts(repeat_share=0.5)
