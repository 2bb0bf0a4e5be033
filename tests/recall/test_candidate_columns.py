"""Columns of candidates: read one by one they are those of the table, also of live items, and made only when read."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from vecall.channels.channel_tables import ChannelTables
from vecall.channels.merge_plan import MergePlan
from vecall.channels.popular_items import PopularItems
from vecall.ranking.candidate_columns import CandidateColumns, FrameColumns
from vecall.ranking.ranker import score_candidates
from vecall.recall.candidate_columns import RecalledColumns
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller

N = 30
ATTRIBUTES = {
    "price": [None if n % 7 == 0 else float(n) for n in range(N)],
    "kind": [None if n % 5 == 0 else f"kind {n % 5}" for n in range(N)],
    "tags": [None if n % 4 == 0 else ["red", "new"][: n % 3] for n in range(N)],
    "added": [None if n % 6 == 0 else datetime(2024, 1, 1 + n % 20, tzinfo=UTC) for n in range(N)],
}
VECTOR = [9.0, 9.0, 9.0, 9.0]
QUERY = Query(vector=VECTOR, history=[103, 105, 103, 108], channels=["vector", "popular"], k=N + 10, exclude_seen=False)


COUNTS = np.arange(N, dtype=np.float32) % 8  # of the channel `popular`


@pytest.fixture
def recaller(make_release, tmp_path, monkeypatch):
    """Recaller of two channels, with three replaced and two new items."""
    vectors = np.random.default_rng(0).integers(-3, 4, (N, 4)).astype(np.float32)
    channels = ChannelTables(popular=PopularItems(COUNTS))
    make_release(vectors, popularity=np.arange(N), attributes=pl.DataFrame(ATTRIBUTES), channels=channels)
    fields = {"price": 3.5, "kind": "live", "tags": ["live"], "added": "2024-02-01T00:00:00Z"}
    with open_recaller(tmp_path / "store", writable=True, auto_compact=False) as recaller:
        manifest = recaller.live_index.snapshot.release.manifest
        monkeypatch.setitem(manifest.__dict__, "merge", MergePlan(weights={"vector": 1.0, "popular": 2.0}))
        recaller.upsert([{"id": item, "vector": VECTOR, "fields": fields} for item in (103, 105, 108, 901, 902)])
        yield recaller


def make_columns(recaller):
    trace = recaller.recall_with_trace(QUERY)
    query = replace(trace.resolved_query, user_features=pl.DataFrame({"age": [1.5]}))
    return RecalledColumns(trace.snapshot, query, trace.search_result, now_ns=0)


def test_columns_read_alone_equal_those_of_the_table(recaller):
    table = make_columns(recaller).to_frame()
    assert {"vector.rank", "popular.score", "user.age", "history.share.tags", "history.difference.added"} <= set(
        table.columns
    )
    assert {901, 902} & set(table["id"]), "live items are among the candidates"
    expected, columns = FrameColumns(table), make_columns(recaller)
    assert isinstance(columns, CandidateColumns)
    for name in table.columns:
        if isinstance(table.schema[name], pl.List):
            np.testing.assert_array_equal(columns.get_lengths(name), expected.get_lengths(name), err_msg=name)
        elif table.schema[name] == pl.String:
            assert columns.get_texts(name) == expected.get_texts(name), name
        else:
            np.testing.assert_array_equal(columns.get_numbers(name), expected.get_numbers(name), err_msg=name)


def test_recent_popularity_is_that_of_the_channel_and_its_share_of_all(recaller):
    table = make_columns(recaller).to_frame()
    numbers = [item - 100 if item < 900 else None for item in table["id"].to_list()]
    counts = [0 if number is None else float(COUNTS[number]) for number in numbers]
    assert table["item.recent_popularity"].to_list() == counts
    shares = [count / max(number or 0, 1) for count, number in zip(counts, numbers, strict=True)]
    np.testing.assert_allclose(table["item.recent_share"], shares, rtol=1e-6)


def test_table_of_some_columns_is_a_part_of_the_whole_table(recaller):
    table, names = make_columns(recaller).to_frame(), ["tags", "id", "popular.rank", "user.age"]
    assert make_columns(recaller).to_frame([*names, "fresh.rank"]).equals(table.select(names))
    assert make_columns(recaller).to_frame([]).shape == (N + 2, 0)


def test_channels_and_positions_are_those_of_the_hits(recaller):
    result = recaller.recall_with_trace(QUERY).search_result
    table = make_columns(recaller).to_frame()
    for name, (rows, scores) in result.hits.items():
        ranks = {row: rank for rank, row in enumerate(rows.tolist(), 1)}
        assert table[f"{name}.rank"].to_list() == [ranks.get(row) for row in result.rows.tolist()]
        by_row = dict(zip(rows.tolist(), scores.tolist(), strict=True))
        assert table[f"{name}.score"].to_list() == [by_row.get(row) for row in result.rows.tolist()]
    names = [[name for name in result.hits if row in result.hits[name][0]] for row in result.rows.tolist()]
    assert table["channels"].to_list() == names
    assert result.list_channels(np.array([4, 0])) == [names[4], names[0]]


def test_missing_columns_are_none(recaller):
    columns = make_columns(recaller)
    for read in (columns.get_numbers, columns.get_texts, columns.get_lengths):
        assert read("fresh.rank") is None


def test_ranker_that_declares_columns_gets_these_alone(recaller):
    tables = []

    def prefer_cheap(candidates):
        tables.append(candidates)
        return -candidates["price"].fill_null(50)

    prefer_cheap.candidate_columns = ("price", "fresh.rank")
    columns = make_columns(recaller)
    scores = score_candidates(columns, prefer_cheap)
    assert [table.columns for table in tables] == [["price"]]
    whole = make_columns(recaller).to_frame()
    assert scores.tolist() == (-whole["price"].fill_null(50)).to_list()
    assert not {"vectors"} & set(columns.items.__dict__), "no vector was read"
