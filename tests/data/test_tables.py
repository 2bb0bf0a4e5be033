import hashlib
from datetime import datetime

import polars as pl
import pytest

from vecall.data.settings import DataSettings
from vecall.data.tables import read_tables
from vecall.errors import DataError
from vecall.schema import Schema

INTERACTIONS = {"u": ["1", "2", "1"], "i": ["10", "11", "11"], "when": ["3", "1", "2"]}
ITEMS = {"i": ["11", "10"], "year": ["1999", None], "genres": ["a|b", None], "price": ["2.5", None], "note": ["7", "x"]}
USERS = {"u": ["2"], "age": ["30"]}


def schema(user="string", item="integer", time="when", **interactions):
    features = {"year": {"kind": "numeric"}, "genres": {"kind": "tags"}}
    return Schema.model_validate(
        {
            "interactions": {"user": "u", "item": "i", "time": time} | interactions,
            "items": {
                "id": "i",
                "id_type": item,
                "attributes": ["price", "year"],
                "title": "note",
                "features": features,
            },
            "users": {"id": "u", "id_type": user, "features": {"age": {"kind": "numeric"}}},
        }
    )


@pytest.fixture(params=["csv", "parquet"])
def suffix(request):
    return request.param


@pytest.fixture
def read(tmp_path, suffix):
    """Write tables, read them, and see that the files are as they were."""

    def write_and_read(schema, interactions=INTERACTIONS, items=ITEMS, users=USERS, **settings):
        many = interactions if isinstance(interactions, list) else [interactions]
        tables = {f"log{place}": one for place, one in enumerate(many)} | {"items": items, "users": users}
        paths = {name: tmp_path / f"{name}.{suffix}" for name, table in tables.items() if table is not None}
        for name, path in paths.items():
            frame = pl.DataFrame(tables[name])
            frame.write_csv(path) if suffix == "csv" else frame.write_parquet(path)
        before = [hashlib.sha256(path.read_bytes()).digest() for path in paths.values()]
        logs = tuple(path for name, path in paths.items() if name.startswith("log"))
        try:
            return read_tables(
                DataSettings(interactions=logs, items=paths.get("items"), users=paths.get("users"), **settings), schema
            )
        finally:
            assert before == [hashlib.sha256(path.read_bytes()).digest() for path in paths.values()]

    return write_and_read


def test_columns_come_in_the_types_of_the_schema(read):
    tables = read(schema())
    assert tables.interactions.to_dict(as_series=False) == {
        "user": ["1", "2", "1"],
        "item": [10, 11, 11],
        "time": [3, 1, 2],
        "positive": [True] * 3,
    }
    assert tables.items.ids.to_list() == [11, 10]
    assert tables.items.features.to_dicts() == [{"year": 1999.0, "genres": ["a", "b"]}, {"year": None, "genres": None}]
    assert tables.items.attributes.to_dicts() == [
        {"note": "7", "price": "2.5", "year": "1999"},
        {"note": "x", "price": None, "year": None},
    ]
    assert (tables.users.ids.to_list(), tables.users.features.rows()) == (["2"], [(30.0,)])
    assert tables.dropped == {}


@pytest.mark.parametrize("ids", [["007", "7"], [7, 8]])
@pytest.mark.parametrize("declared", ["string", "integer"])
def test_ids_are_of_the_declared_type_whatever_the_file_has(read, ids, declared):
    log = {"u": ["a", "a"], "i": ids, "when": [1, 2]}
    got = read(schema(item=declared), log, None).interactions["item"].to_list()
    assert got == [(int if declared == "integer" else str)(one) for one in ids]


def test_a_list_of_files_is_read_one_after_the_other(read):
    later = {"u": [9], "i": [10], "when": [0.5], "extra": ["x"]}
    got = read(schema(), [INTERACTIONS, later]).interactions
    assert (got["user"].to_list(), got["time"].to_list()) == (["1", "2", "1", "9"], [3, 1, 2, 0.5])


def test_times_of_one_kind_alone_compare(read):
    dated = {"u": ["1"], "i": ["10"], "when": [datetime(2018, 6, 1)]}
    assert read(schema(), [dated, dated]).interactions["time"].to_list() == [datetime(2018, 6, 1)] * 2
    with pytest.raises(DataError, match=r"do not compare: .*log0.* has numbers, .*log1.* has datetimes"):
        read(schema(), [INTERACTIONS, dated])


@pytest.mark.parametrize(
    ("table", "column", "cells", "error", "rows"),
    [
        ("interactions", "u", ["1", None, "1"], "a non-empty id", "row 2: None"),
        ("interactions", "i", ["10", "11", "x"], "an integer id", "row 3: 'x'"),
        ("interactions", "i", ["10", "99", "11"], "an item of the items table", "row 2: '99'"),
        ("interactions", "when", ["3", "noon", "2"], "a time as a number", "row 2: 'noon'"),
        ("interactions", "when", ["2018-01-01", "x", "2018"], "an ISO 8601 time", "row 2: 'x'; row 3: '2018'"),
        ("interactions", "label", ["1", "nan", "2"], "a finite number", "row 2: 'nan'"),
        ("interactions", "shown", ["true", "maybe", "0"], "true or false", "row 2: 'maybe'"),
        ("items", "i", ["10", "10"], "an id that stands once", "row 2: '10'"),
        ("items", "year", ["old", "1999"], "a finite number or nothing", "row 1: 'old'"),
        ("items", "year", ["inf", "1999"], "a finite number or nothing", "row 1: 'inf'"),
        ("users", "age", ["x"], "a finite number or nothing", "row 1: 'x'"),
    ],
)
def test_bad_rows_are_told_or_dropped_and_counted(read, table, column, cells, error, rows):
    more = {"label": "label"} if column == "label" else {"shown": "shown"} if column == "shown" else {}
    whole = {"interactions": INTERACTIONS, "items": ITEMS, "users": USERS}
    whole[table] = {**whole[table], column: cells}
    if table == "items" and column == "i":
        whole["interactions"] = {**INTERACTIONS, "i": ["10"] * 3}
    file = "log0" if table == "interactions" else table
    with pytest.raises(DataError) as caught:
        read(schema(**more), **whole)
    for part in (f"{file}.", f"column {column!r}", f"expected {error}", rows, "bad_rows"):
        assert part in str(caught.value)
    dropped = read(schema(**more), **whole, bad_rows="drop").dropped
    reason, count = next(iter(dropped.items()))  # a dropped item's interactions come after it
    assert reason.startswith(f"{file}.")
    assert f": {column}: not {error}" in reason
    assert "rows)" in reason
    assert count == rows.count("row ")


def test_dropped_rows_leave_the_others_as_they_are(read):
    log = {"u": ["1", None, "2", "3"], "i": ["10", "10", "99", "11"], "when": ["1", "2", "3", "4"]}
    tables = read(schema(), log, bad_rows="drop")
    assert tables.interactions.rows() == [("1", 10, 1, True), ("3", 11, 4, True)]
    assert sorted(tables.dropped.values()) == [1, 1]
    assert sorted(reason.split(".")[0] + reason.split(":")[1] for reason in tables.dropped) == ["log0 i", "log0 u"]


def test_of_many_bad_rows_three_are_shown(read):
    log = {"u": ["1"] * 9, "i": ["x"] * 9, "when": ["1"] * 9}
    with pytest.raises(DataError, match=r"9 bad of 9 rows \(row 1: 'x'; row 2: 'x'; row 3: 'x'\)"):
        read(schema(), log, None)
    with pytest.raises(DataError, match=r"no interaction is left .*'log0\..*: i: not an integer id \(of 9 rows\)': 9"):
        read(schema(), log, None, bad_rows="drop")


def test_a_missing_column_is_told_with_the_key_that_names_it(read):
    log = {"u": ["1"], "i": ["10"], "wen": ["1"]}
    with pytest.raises(DataError, match=r"log0.*no column 'when' \(schema.interactions.time\).*did you mean 'wen'"):
        read(schema(), log)
    with pytest.raises(DataError, match=r"items.*no column 'genres' \(schema.items.features.genres\)"):
        read(schema(), items={name: cells for name, cells in ITEMS.items() if name != "genres"})


def test_lists_of_another_kind_are_an_error_not_a_crash(tmp_path):
    path = tmp_path / "log.parquet"
    pl.DataFrame({"u": ["1"], "i": [[1, 2]], "when": [1]}).write_parquet(path)
    with pytest.raises(DataError, match=r"column 'i': expected an integer id, .*row 1: \[1, 2\]"):
        read_tables(DataSettings(interactions=(path,)), schema())


def test_lists_and_datetimes_of_parquet(tmp_path):
    items, log = tmp_path / "items[1].parquet", tmp_path / "log*.parquet"  # names, not patterns
    day = datetime(2018, 6, 1)
    pl.DataFrame({**ITEMS, "genres": [["b"], None], "price": [day, None]}).write_parquet(items)
    pl.DataFrame({"u": [1], "i": [10], "when": [day]}).write_parquet(log)
    tables = read_tables(DataSettings(interactions=(log,), items=items), schema())
    assert tables.interactions.rows() == [("1", 10, day, True)]
    assert tables.items.features["genres"].to_list() == [["b"], None]
    assert tables.items.attributes["price"].to_list() == [day, None]


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("gone.csv", None, "no such file; paths in vecall.toml are relative"),
        ("log.txt", b"u,i\n", "expected a .parquet, .csv or .tsv file .*got '.txt'"),
        ("log.csv", b"", "cannot be read"),
        ("log.csv", b"u,i,when\n1,2\n1,2,3,4,5\n", "cannot be read"),
        ("log.csv", b"u,i,when\n\xff\xfe,1,2\n", "cannot be read"),
        ("log.csv", b"u,i,when\n", "no interaction is left"),
        ("log.parquet", b"PAR1 damaged PAR1", "cannot be read"),
    ],
)
def test_files_that_are_no_tables(tmp_path, name, content, error):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=error) as caught:
        read_tables(DataSettings(interactions=(path,)), schema())
    assert name in str(caught.value)
