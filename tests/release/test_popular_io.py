"""Files of the channel `popular` and of the channels' facts: read as written, refused where they do not match."""

import json

import numpy as np
import polars as pl
import pytest

from vecall.channels.channel_facts import NO_FACTS, ChannelFacts
from vecall.channels.channel_tables import ChannelTables
from vecall.channels.popular_items import PopularItems, PopularLists
from vecall.errors import InvalidReleaseError
from vecall.release.channel_io import load_channels, save_channels

N = 5


@pytest.fixture
def saved(tmp_path):
    by = PopularLists(
        "^genre$",
        pl.Series(["x", "y"]),
        np.array([0, 2, 3]),
        np.array([4, 1, 0], dtype=np.int32),
        np.array([3, 1, 2], dtype=np.float32),
    )
    tables = ChannelTables(
        popular=PopularItems(np.arange(N, dtype=np.float32), by),
        facts=ChannelFacts(fresh_days=3.5, created="added", clock_offset_us=-7, repeat=False, repeat_share=0.25),
    )
    save_channels(tables, tmp_path)
    return tmp_path, tables


def test_tables_are_read_as_they_were_written(saved):
    directory, tables = saved
    read = load_channels(directory, N)
    assert read.facts == tables.facts
    assert read.popular.by_user is None
    np.testing.assert_array_equal(read.popular.counts, tables.popular.counts)
    assert (read.popular.by.column, read.popular.by.values.to_list()) == ("^genre$", ["x", "y"])
    for name in ("offsets", "rows", "scores"):
        expected = getattr(tables.popular.by, name)
        np.testing.assert_array_equal(getattr(read.popular.by, name), expected)
        assert getattr(read.popular.by, name).dtype == expected.dtype


def test_without_tables_nothing_is_written(tmp_path):
    save_channels(ChannelTables(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert load_channels(tmp_path, N) == ChannelTables(facts=NO_FACTS)


@pytest.mark.parametrize(
    ("file", "array"),
    [
        ("popular.counts.npy", np.zeros(N + 1, dtype=np.float32)),
        ("popular.by.offsets.npy", np.array([0, 2, 4])),
        ("popular.by.offsets.npy", np.array([0, 3])),
        ("popular.by.rows.npy", np.array([4, 1, N], dtype=np.int32)),
        ("popular.by.scores.npy", np.ones(2, dtype=np.float32)),
    ],
)
def test_arrays_that_do_not_match_are_refused(saved, file, array):
    directory, _ = saved
    np.save(directory / "channels" / file, array)
    with pytest.raises(InvalidReleaseError, match="publish the release again") as caught:
        load_channels(directory, N)
    assert caught.value.file.startswith("channels/popular.")


def test_missing_array_is_refused(saved):
    directory, _ = saved
    (directory / "channels" / "popular.by.rows.npy").unlink()
    with pytest.raises(InvalidReleaseError):
        load_channels(directory, N)


def test_unknown_fact_is_refused(saved):
    directory, tables = saved
    path = directory / "channels" / "facts.json"
    path.write_text(json.dumps(tables.facts.model_dump() | {"colour": 1}))
    with pytest.raises(InvalidReleaseError, match="colour"):
        load_channels(directory, N)
