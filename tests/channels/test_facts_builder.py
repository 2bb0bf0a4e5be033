"""What the data say of the channels: repeats, and the newest time."""

import polars as pl
import pytest
from support.doctor import make_config, make_dataset

from vecall.channels.facts_builder import build_channel_facts
from vecall.channels.settings import ChannelsSettings

NOW_US = 100 * 10**6
ROWS = [("u", "a", 10), ("u", "b", 20), ("u", "a", 30)]


def build(rows=ROWS, settings=None, items=None, created=None, ends_with_positives=False, **interactions):
    schema = {
        "interactions": {"user": "user", "item": "item", "time": "time"} | interactions,
        "items": {"id": "id", "id_type": "string", "created": created},
        "users": {"id": "id", "id_type": "string"},
    }
    dataset = make_dataset(make_config(schema=schema), rows, items=items)
    channels = ChannelsSettings(**(settings or {}))
    positives = dataset.interactions.positives
    return build_channel_facts(
        channels, created, dataset.catalogue, positives, now_us=NOW_US, ends_with_positives=ends_with_positives
    )


def test_repeat_is_on_where_users_take_items_again():
    facts = build()
    assert (facts.repeat, facts.repeat_share) == (True, pytest.approx(1 / 3, abs=1e-4))
    assert not build(settings={"repeat": False}).repeat
    once = build([("u", f"i{n}", n) for n in range(200)] + [("u", "i0", 300)])
    assert (once.repeat, once.repeat_share) == (False, pytest.approx(1 / 201, abs=1e-4))


def test_settings_are_kept():
    assert build().fresh_days is None
    assert build(settings={"fresh": {}}).fresh_days == 7.0
    assert build().popular
    assert not build(settings={"popular": False}).popular


def test_clock_of_the_data_is_its_newest_time():
    items = pl.DataFrame({"id": ["a", "b"], "added": ["1970-01-01T00:00:50", "9999-01-01"]})
    assert build().clock_offset_us == 0  # no time is known
    assert build(time_unit="s").clock_offset_us == -70 * 10**6
    assert build(items=items, created="added").clock_offset_us == -50 * 10**6
    later = build([*ROWS, ("u", "b", 60)], items=items, created="added", time_unit="s")
    assert later.clock_offset_us == -40 * 10**6
    assert later.created == "added"
    assert build(time_unit="ms", rows=[("u", "a", 10**9)]).clock_offset_us == 0  # in the future


def test_clock_of_an_evaluation_is_the_newest_time_that_was_learned_from():
    items = pl.DataFrame({"id": ["a", "b"], "added": ["1970-01-01T00:00:50", "1970-01-01T00:01:30"]})
    options = {"items": items, "created": "added", "ends_with_positives": True}
    assert build(**options, time_unit="s").clock_offset_us == -70 * 10**6
    assert build(**options).clock_offset_us == -10 * 10**6  # no time of an interaction is known


def test_creation_column_without_a_table_is_none():
    assert build(created="added").created is None
