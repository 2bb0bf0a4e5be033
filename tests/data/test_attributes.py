"""Attributes have the type that the schema or the table declares; no type is guessed from cells."""

from csv import writer as csv_writer
from datetime import date, datetime
from decimal import Decimal

import polars as pl
import pytest

from vecall.data.attributes import cast_attribute
from vecall.data.casting import column_to_text_or_null
from vecall.data.datetime_range import is_in_datetime_range
from vecall.data.settings import DataSettings
from vecall.data.table_validator import CellCheck
from vecall.data.tables import read_tables
from vecall.errors import DataError
from vecall.schema import Schema

DAY = datetime(2018, 6, 1)


@pytest.mark.parametrize(
    ("cells", "attribute_type", "expected"),
    [
        (["007", "1E1", "12345678901234567890"], None, ["007", "1E1", "12345678901234567890"]),
        ([True, None], None, [True, None]),
        ([1.0, 2.5], "string", ["1", "2.5"]),
        (["007", "7.0", "x", None], "integer", [7, 7, "bad", None]),
        ([1.0, 2.5, float("nan")], "integer", [1, "bad", None]),
        (pl.Series([2**64 - 1], dtype=pl.UInt64), "integer", [2**64 - 1]),
        (["1.5", "x", ""], "number", [1.5, "bad", None]),
        ([2**53 + 1], "number", [2**53 + 1]),
        ([Decimal("1.50")], "number", [Decimal("1.50")]),
        (["True", "0", "maybe", None], "boolean", [True, False, "bad", None]),
        (["2018-06-01", "June", None], "datetime", [DAY, "bad", None]),
        ([date(2018, 6, 1)], "datetime", [DAY]),
        ([5], "datetime", ["bad"]),
        (["a|b", "['c']", "", None], "tags", [["a", "b"], ["c"], None, None]),
        ([[1, 2]], "tags", [["1", "2"]]),
        (pl.Series([10**18, 0]).cast(pl.Datetime("us")), None, ["bad", datetime(1970, 1, 1)]),
        (["9999-12-31T23:59:59-08:00", "9999-12-31"], "datetime", ["bad", datetime(9999, 12, 31)]),
    ],
)
def test_attribute_is_cast_to_its_type(cells, attribute_type, expected):
    column = cells if isinstance(cells, pl.Series) else pl.Series(cells)
    cast = cast_attribute(column, attribute_type, separator="|")
    values = []
    for row, is_valid in enumerate(cast.is_valid.to_list()):
        # Value by value, because to_list fails on invalid datetimes beyond the range of Python.
        values.append(cast.values[row : row + 1].to_list()[0] if is_valid else "bad")
    assert values == expected


def test_datetime_range_is_that_of_python_in_utc_and_in_the_time_zone_of_the_column():
    bounds = pl.Series([253402300799999999, 253402300800000000, -62135596800000000, -62135596800000001, None])
    utc = bounds.cast(pl.Datetime("us"))
    assert is_in_datetime_range(utc).to_list() == [True, False, True, False, True]
    east = utc.dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Shanghai")
    assert is_in_datetime_range(east).to_list() == [False, False, True, False, True]
    days = (bounds // 86_400_000_000).cast(pl.Int32).cast(pl.Date)
    assert is_in_datetime_range(days).to_list() == [True, False, True, False, True]


def read(tmp_path, items, suffix=".csv", interactions=None, bad_rows="error", csv=None, **item_schema):
    items, log = pl.DataFrame(items), pl.DataFrame(interactions or {"u": ["a", "b"], "i": ["1", "2"]})
    paths = {name: tmp_path / f"{name}{suffix}" for name in ("items", "log")}
    for frame, path in ((items, paths["items"]), (log, paths["log"])):
        if suffix == ".parquet":
            frame.write_parquet(path)
            continue
        with path.open("w", newline="") as file:  # Polars would interpret some names as patterns
            csv_writer(file).writerows([frame.columns, *frame.iter_rows()])
    schema = Schema.model_validate(
        {
            "interactions": {"user": "u", "item": "i"},
            "items": {"id": "i", "id_type": "integer"} | item_schema,
            "users": {"id": "u", "id_type": "string"},
        }
    )
    settings = {"interactions": paths["log"], "items": paths["items"], "bad_rows": bad_rows, "csv": csv or {}}
    return read_tables(DataSettings.model_validate(settings), schema)


def test_numeric_text_stays_text_whatever_the_other_cells_are(tmp_path):
    """A zip code, an EAN beyond the exact floats, a SKU in scientific notation, and a title of digits."""
    cells = {"i": ["1", "2"], "zip": ["00001", "94103"], "ean": ["123456789012345678901"] * 2, "sku": ["1E1", "10"]}
    for sku in ("10", "A001"):
        items = {**cells, "sku": ["1E1", sku], "t": ["007", "9"]}
        attributes = read(tmp_path, items, attributes=["zip", "ean", "sku"], title="t").items.attributes
        assert set(attributes.dtypes) == {pl.String}
        assert attributes.rows()[0] == ("007", "00001", "123456789012345678901", "1E1")


def test_attributes_of_a_table_have_their_declared_types(tmp_path):
    types = {
        "year": "integer",
        "price": "number",
        "fresh": "boolean",
        "day": "datetime",
        "kinds": "tags",
        "zip": "string",
    }
    cells = {"year": ["1999", None], "price": ["1.5", None], "fresh": ["True", "false"], "day": ["2018-06-01", None]}
    cells |= {"kinds": ["a|b", None], "zip": ["007", None]}
    attributes = read(tmp_path, {"i": ["1", "2"], **cells}, attributes=types).items.attributes
    assert attributes.rows() == [(1999, 1.5, True, DAY, ["a", "b"], "007"), (None, None, False, None, None, None)]
    with pytest.raises(DataError, match=r"column 'year': expected an integer or nothing, .*row 2: 'x'"):
        read(tmp_path, {"i": ["1", "2"], **cells, "year": ["1", "x"]}, attributes=types)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_feature_of_the_same_column_changes_the_attribute_only_for_tags(tmp_path, suffix):
    cells = {"i": ["1", "2"], "year": ["1999", "2000"], "fresh": ["True", "False"], "kinds": ["a|1.0", "b"]}
    if suffix == ".parquet":
        cells |= {"year": [1999, 2000], "fresh": [True, False]}
    features = {"year": {"kind": "numeric"}, "fresh": {"kind": "category"}, "kinds": {"kind": "tags"}}
    table = read(tmp_path, cells, suffix, attributes=["year", "fresh", "kinds"], features=features).items
    assert table.features.rows() == [(1999.0, "true", ["a", "1"]), (2000.0, "false", ["b"])]
    expected = [("1999", "True", ["a", "1.0"]), ("2000", "False", ["b"])]
    if suffix == ".parquet":
        expected = [(1999, True, ["a", "1.0"]), (2000, False, ["b"])]
    assert table.attributes.rows() == expected


def test_invalid_feature_or_attribute_is_missing_and_keeps_the_item(tmp_path):
    cells = {"i": ["1", "2", "x"], "price": ["1,5", "2", "3"], "year": ["1999", "?", "3"]}
    item_schema = {"features": {"price": {"kind": "numeric"}}, "attributes": {"year": "integer"}}
    table = read(tmp_path, cells, bad_rows="drop", **item_schema)
    assert table.items.ids.to_list() == [1, 2]
    assert table.items.features.rows() == [(None,), (2.0,)]
    assert table.items.attributes.rows() == [(1999,), (None,)]
    assert dict(table.dropped_counts) == {
        "items.csv: i: not an integer id (of 3 rows)": 1,
        "items.csv: price: not a finite number or nothing, with a decimal point "
        '(data.csv.decimal = "," reads commas) (of 2 rows)': 1,
        "items.csv: year: not an integer or nothing (of 2 rows)": 1,
    }
    table = read(tmp_path, {**cells, "i": ["1", "2", "3"], "year": ["1"] * 3}, csv={"decimal": ","}, **item_schema)
    assert table.items.features["price"].to_list() == [1.5, 2.0, 3.0]
    assert dict(table.dropped_counts) == {}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_column_names_that_are_polars_patterns_are_taken_literally(tmp_path, suffix):
    names = ["#", "*", "^price$", "^.*$", "", "row", "index"]
    cells = {"i": [1, 2]} | {name: [f"{index}", "b"] for index, name in enumerate(names)}
    features = {name: {"kind": "category"} for name in names}
    table = read(tmp_path, cells, suffix, attributes=names, features=features).items
    assert table.attributes.columns == table.features.columns == names
    assert table.attributes.rows()[0] == table.features.rows()[0] == tuple("0123456")


@pytest.mark.parametrize(
    ("label", "positive", "expected"),
    [
        (pl.Series([0.7, 0.6], dtype=pl.Float32), 0.7, [True, False]),
        (pl.Series([0.7, 0.6], dtype=pl.Float64), 0.7, [True, False]),
        (pl.Series([4, 3]), 3.5, [True, False]),
        (pl.Series(["0.7", "0.6"]), 0.7, [True, False]),
    ],
)
def test_label_is_compared_with_the_threshold_in_its_own_precision(tmp_path, label, positive, expected):
    pl.DataFrame({"u": ["a", "b"], "i": [1, 2], "l": label}).write_parquet(tmp_path / "log.parquet")
    schema = Schema.model_validate(
        {
            "interactions": {"user": "u", "item": "i", "label": "l", "positive": positive},
            "items": {"id": "i", "id_type": "integer"},
            "users": {"id": "u", "id_type": "string"},
        }
    )
    tables = read_tables(DataSettings(interactions=(tmp_path / "log.parquet",)), schema)
    assert tables.interactions.is_positive.tolist() == expected


def test_users_table_that_does_not_match_the_interactions_is_reported(tmp_path, caplog):
    def read_users(suffix, n_equal):
        users = [f"{user}{suffix if user >= n_equal else ''}" for user in range(20)]
        pl.DataFrame({"u": users, "i": ["1"] * 20}).write_csv(tmp_path / "log.csv")
        pl.DataFrame({"u": [str(user) for user in range(20)]}).write_csv(tmp_path / "users.csv")
        schema = {"interactions": {"user": "u", "item": "i"}, "items": {"id": "i", "id_type": "integer"}}
        paths = {"interactions": tmp_path / "log.csv", "users": tmp_path / "users.csv"}
        users_schema = {"users": {"id": "u", "id_type": "string"}}
        return read_tables(DataSettings.model_validate(paths), Schema.model_validate(schema | users_schema))

    with pytest.raises(DataError, match=r"none of the 20 users .*formatted alike\? It has \['0', .* have \['0\.0', "):
        read_users(".0", 0)
    assert not caplog.text
    read_users(".0", 5)
    assert "holds only 5 of the 20 users" in caplog.text


@pytest.mark.parametrize(
    "column",
    [
        pl.Series([2**30], dtype=pl.Int32).cast(pl.Date),
        pl.Series([2**63 - 1]).cast(pl.Datetime("ms")),
        pl.Series([2**63 - 1]).cast(pl.Datetime("us", "Asia/Tokyo")),
        pl.Series([-(2**62)]).cast(pl.Datetime("us")),
    ],
    ids=["date", "milliseconds", "with a time zone", "before"],
)
def test_times_beyond_the_range_are_invalid_and_told_as_numbers(column):
    columns = pl.concat([column, pl.Series([None], dtype=column.dtype)])
    assert is_in_datetime_range(columns).to_list() == [False, True]
    assert column_to_text_or_null(columns).to_list() == [None, None]
    for attribute_type in (None, "datetime", "string"):
        result = cast_attribute(columns, attribute_type, separator="|")
        assert result.is_valid.to_list() == [False, True]
        check = CellCheck("added", result.expected)
        check.add_batch(columns, pl.Series([1, 2]), result.is_valid, result.expected)
        assert check.examples == [f"row 1: {column.to_physical()[0]}"]
