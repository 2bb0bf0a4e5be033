"""Times that items came are read like interaction times, and make a datetime attribute."""

from datetime import date, datetime

import polars as pl
import pytest
from support.doctor import make_config, make_dataset

from vecall.data.creation_times import cast_creation_time
from vecall.errors import ConfigError, DataError

NEW_YEAR, SECONDS = datetime(2020, 1, 1), 1_577_836_800


@pytest.mark.parametrize(
    ("cells", "time_unit", "expected"),
    [
        (["2020-01-01", "", None, "2020-01-01T01:00:00+01:00"], None, [NEW_YEAR, None, None, NEW_YEAR]),
        ([str(SECONDS), "2020-01-01", ""], "s", [NEW_YEAR, NEW_YEAR, None]),
        ([SECONDS * 1000, None], "ms", [NEW_YEAR, None]),
        ([float(SECONDS), float("nan")], "s", [NEW_YEAR, None]),
        ([date(2020, 1, 1)], "s", [NEW_YEAR]),
        ([NEW_YEAR], None, [NEW_YEAR]),
        ([None], None, [None]),
    ],
)
def test_valid_times_become_datetimes(cells, time_unit, expected):
    result = cast_creation_time(pl.Series(cells), time_unit=time_unit)
    assert result.values.dtype == pl.Datetime("us")
    assert result.values.to_list() == expected
    assert result.is_valid.all()


@pytest.mark.parametrize(
    ("cells", "time_unit"), [(["soon"], "s"), ([SECONDS], None), ([str(SECONDS)], None), ([1e30], "s"), ([[1]], "s")]
)
def test_other_cells_are_invalid(cells, time_unit):
    assert not cast_creation_time(pl.Series(cells), time_unit=time_unit).is_valid.any()


def make_items_dataset(cells, attributes=(), **interactions):
    items = {"id": "id", "id_type": "string", "created": "added", "attributes": attributes}
    schema = {
        "interactions": {"user": "user", "item": "item", "time": "time"} | interactions,
        "items": items,
        "users": {"id": "id", "id_type": "string"},
    }
    frame = pl.DataFrame({"id": ["a", "b"], "added": cells})
    return make_dataset(make_config(schema=schema), [("u", "a", 1)], items=frame)


def test_created_is_an_attribute():
    for attributes in ([], ["added"], {"added": "datetime"}):
        dataset = make_items_dataset([SECONDS, None], attributes, time_unit="s")
        assert dataset.catalogue.item_attributes.to_dict(as_series=False) == {"added": [NEW_YEAR, None]}


def test_number_without_a_unit_is_refused_with_the_setting():
    with pytest.raises(DataError, match=r"added.*schema\.interactions\.time_unit"):
        make_items_dataset([SECONDS, None])


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"attributes": {"added": "integer"}}, "declared as 'integer'"),
        ({"features": {"added": {"kind": "numeric"}}}, "is a feature"),
        ({"title": "added"}, "is a feature or the title"),
        ({"id": "added"}, "is the id column"),
    ],
)
def test_column_with_another_meaning_is_refused(items, message):
    with pytest.raises(ConfigError, match=message):
        make_config(
            schema={
                "interactions": {"user": "user", "item": "item"},
                "items": {"id": "id", "id_type": "string", "created": "added"} | items,
                "users": {"id": "id", "id_type": "string"},
            }
        )
