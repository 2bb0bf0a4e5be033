"""The table of the channel `popular`: its order, its shares, and its rows in another release."""

import numpy as np
import polars as pl
import pytest
from support.channel_oracles import make_popular_lists

from vecall.channels import popular_items
from vecall.channels.channel_facts import ChannelFacts
from vecall.channels.channel_tables import ChannelTables
from vecall.channels.popular_items import PopularItems


def make_lists(by_value, column="genre"):
    return make_popular_lists(column, {value: dict(pairs) for value, pairs in by_value.items()})


def list_shares(lists, codes, weights):
    (starts, ends), factors = lists.locate_lists(np.array(codes), np.array(weights))
    parts = [(lists.rows[a:b], lists.scores[a:b] * factor) for a, b, factor in zip(starts, ends, factors, strict=True)]
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


@pytest.fixture
def popular():
    counts = np.array([1, 4, 0, 4, 2], dtype=np.float32)
    by = make_lists({"x": [(1, 4.0), (4, 2.0)], "y": [(3, 4.0), (0, 1.0)], "z": [(1, 4.0)]})
    return PopularItems(counts, by, make_lists({"north": [(0, 1.0), (4, 0.5)]}, "region"))


def test_rows_are_sorted_by_count_then_row(popular, monkeypatch):
    assert popular.sorted_rows.tolist() == [1, 3, 4, 0, 2]
    for length in range(1, 5):
        monkeypatch.setattr(popular_items, "_SORTED_ROWS", length)
        fresh = PopularItems(popular.counts)
        assert fresh.sorted_rows.tolist() == [1, 3, 4, 0, 2][:length]


def test_shares_are_of_each_list(popular):
    rows, shares = list_shares(popular.by, [2, 1], [0.5, 2.0])
    assert rows.tolist() == [1, 3, 0]
    assert shares == pytest.approx([0.5, 2 * 4 / 5, 2 * 1 / 5])
    assert popular.by.codes == {"x": 0, "y": 1, "z": 2}
    assert popular.by.totals.tolist() == [6, 5, 4]


def test_values_of_cells_become_indices(popular, monkeypatch):
    monkeypatch.setattr(popular_items, "_CHUNK_ROWS", 2)
    cells = pl.Series([["z", "x", "z"], None, [], ["other", "y"], ["x"]])
    codes = popular.by.encode(cells)
    assert [codes[i].tolist() for i in range(5)] == [[0, 2], [], [], [1], [0]]
    assert codes.values.dtype == np.int32
    assert make_lists({"1": [(0, 1.0)]}).encode(pl.Series([1.0, 2.0, None])).offsets.tolist() == [0, 1, 1, 1]
    assert len(popular.by.encode(cells.clear())) == 0


def test_empty_lists_have_no_shares():
    rows, shares = list_shares(make_lists({"x": [], "y": [(2, 1.0)]}), [0, 1], [1.0, 1.0])
    assert (rows.tolist(), shares.tolist()) == ([2], [1.0])
    assert list_shares(make_lists({"x": []}), [0], [1.0])[0].tolist() == []


def test_other_release_has_the_items_under_their_new_rows(popular):
    facts = ChannelFacts(created="added", fresh_days=3.0, clock_offset_us=-5, repeat=False)
    tables = ChannelTables(popular=popular, facts=facts)
    remapped = tables.remap(np.array([-1, 0, 4, 3, -1]), 5)  # item 1 and 2 are gone, 3 comes after 4
    assert remapped.facts == facts
    assert remapped.popular.counts.tolist() == [0, 1, 2, 4, 0]
    by = remapped.popular.by
    assert (by.column, by.values.to_list()) == ("genre", ["x", "y", "z"])
    assert (by.offsets.tolist(), by.rows.tolist(), by.scores.tolist()) == ([0, 1, 3, 3], [2, 3, 1], [2, 4, 1])
    assert remapped.popular.by_user.rows.tolist() == [1, 2]
    assert by.rows.dtype == np.int32


def test_facts_alone_are_not_empty():
    assert ChannelTables().is_empty
    assert not ChannelTables(facts=ChannelFacts(repeat=False)).is_empty
