import hashlib
from datetime import datetime

import polars as pl
import pytest

from vecall.data import readers
from vecall.data.settings import DataSettings
from vecall.data.tables import read_tables
from vecall.errors import DataError
from vecall.schema import Schema


def decode(log):
    """Columns of the interactions, with ids in place of codes and datetimes in place of microseconds."""
    times = {} if log.times is None else {"time": pl.Series(log.times)}
    if log.has_datetimes:
        times["time"] = times["time"].cast(pl.Datetime("us"))
    return pl.DataFrame(
        {
            "user": log.user_ids.gather(log.users),
            "item": log.item_ids.gather(log.items),
            **times,
            "positive": pl.Series(log.is_positive),
        }
    )


INTERACTIONS = {"u": ["1", "2", "1"], "i": ["10", "11", "11"], "when": ["3", "1", "2"]}
ITEMS = {"i": ["11", "10"], "year": ["1999", None], "genres": ["a|b", None], "price": ["2.5", None], "note": ["7", "x"]}
USERS = {"u": ["2"], "age": ["30"]}


def make_schema(item_id_type="integer", **interactions):
    features = {"year": {"kind": "numeric"}, "genres": {"kind": "tags"}}
    return Schema.model_validate(
        {
            "interactions": {"user": "u", "item": "i", "time": "when"} | interactions,
            "items": {
                "id": "i",
                "id_type": item_id_type,
                "attributes": ["price", "year"],
                "title": "note",
                "features": features,
            },
            "users": {"id": "u", "id_type": "string", "features": {"age": {"kind": "numeric"}}},
        }
    )


@pytest.fixture(params=["csv", "parquet"])
def suffix(request):
    return request.param


@pytest.fixture(params=[1, 2**22], autouse=True)
def batch_rows(request, monkeypatch):
    """Rows read at a time: the result is the same."""
    monkeypatch.setattr(readers, "_BATCH_ROWS", request.param)
    return request.param


@pytest.fixture
def read(tmp_path, suffix):
    """Function that writes tables, reads them, and checks that reading left the files unchanged."""

    def write_and_read(schema, interactions=INTERACTIONS, items=ITEMS, users=USERS, **settings):
        logs = interactions if isinstance(interactions, list) else [interactions]
        tables = {f"log{index}": log for index, log in enumerate(logs)} | {"items": items, "users": users}
        paths = {name: tmp_path / f"{name}.{suffix}" for name, table in tables.items() if table is not None}
        for name, path in paths.items():
            frame = pl.DataFrame(tables[name])
            frame.write_csv(path) if suffix == "csv" else frame.write_parquet(path)
        before = [hashlib.sha256(path.read_bytes()).digest() for path in paths.values()]
        log_paths = tuple(path for name, path in paths.items() if name.startswith("log"))
        entity_paths = {name: paths.get(name) for name in ("items", "users")}
        try:
            return read_tables(DataSettings(interactions=log_paths, **entity_paths, **settings), schema)
        finally:
            assert before == [hashlib.sha256(path.read_bytes()).digest() for path in paths.values()]

    return write_and_read


def test_columns_have_the_types_of_the_schema(read):
    tables = read(make_schema())
    assert decode(tables.interactions).to_dict(as_series=False) == {
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
    assert tables.dropped_counts == {}


@pytest.mark.parametrize("ids", [["007", "7"], [7, 8]])
@pytest.mark.parametrize("id_type", ["string", "integer"])
def test_ids_have_the_declared_type_whatever_the_file_holds(read, ids, id_type):
    log = {"u": ["a", "a"], "i": ids, "when": [1, 2]}
    item_ids = decode(read(make_schema(item_id_type=id_type), log, None).interactions)["item"].to_list()
    assert item_ids == [(int if id_type == "integer" else str)(item_id) for item_id in ids]


def test_interactions_of_several_files_are_concatenated(read):
    later = {"u": [9], "i": [10], "when": [0.5], "extra": ["x"]}
    interactions = decode(read(make_schema(), [INTERACTIONS, later]).interactions)
    assert (interactions["user"].to_list(), interactions["time"].to_list()) == (["1", "2", "1", "9"], [3, 1, 2, 0.5])


def test_split_column_names_the_part_of_each_row(read):
    log = INTERACTIONS | {"part": ["train", "test", "valid"]}
    assert read(make_schema(), log, split="given", split_column="part").interactions.parts.tolist() == [0, 2, 1]
    assert read(make_schema(), log).interactions.parts is None
    with pytest.raises(DataError, match=r"no column 'fold' \(data.split_column\)"):
        read(make_schema(), log, split="given", split_column="fold")
    log["part"][1] = "Test"
    with pytest.raises(DataError, match=r"'part': expected 'train', 'valid' or 'test', got .*\(row 2: 'Test'\)"):
        read(make_schema(), log, split="given", split_column="part")


def test_times_of_different_kinds_are_an_error(read):
    with_datetimes = {"u": ["1"], "i": ["10"], "when": [datetime(2018, 6, 1)]}
    assert (
        decode(read(make_schema(), [with_datetimes, with_datetimes]).interactions)["time"].to_list()
        == [datetime(2018, 6, 1)] * 2
    )
    with pytest.raises(DataError, match=r"cannot be compared: .*log0.* has numbers, .*log1.* has datetimes"):
        read(make_schema(), [INTERACTIONS, with_datetimes])


@pytest.mark.parametrize(
    ("table", "column", "cells", "expected", "examples"),
    [
        ("interactions", "u", ["1", None, "1"], "a non-empty id", "row 2: None"),
        ("interactions", "i", ["10", "11", "x"], "an integer id", "row 3: 'x'"),
        ("interactions", "i", ["10", "99", "11"], "an item of the items table", "row 2: '99'"),
        ("interactions", "when", ["3", "noon", "2"], "a time as a number", "row 2: 'noon'"),
        ("interactions", "when", ["2018-01-01", "x", "2018"], "an ISO 8601 time", "row 2: 'x'; row 3: '2018'"),
        ("interactions", "label", ["1", "nan", "2"], "a finite number", "row 2: 'nan'"),
        ("interactions", "impression", ["true", "maybe", "0"], "true or false", "row 2: 'maybe'"),
        ("items", "i", ["10", "10"], "a unique id", "row 2: '10'"),
        ("items", "year", ["old", "1999"], "a finite number or nothing", "row 1: 'old'"),
        ("items", "year", ["inf", "1999"], "a finite number or nothing", "row 1: 'inf'"),
        ("users", "age", ["x"], "a finite number or nothing", "row 1: 'x'"),
    ],
)
def test_bad_rows_are_an_error_or_dropped_and_counted(read, table, column, cells, expected, examples):
    schema = make_schema(**({column: column} if column in ("label", "impression") else {}))
    tables = {"interactions": INTERACTIONS, "items": ITEMS, "users": USERS}
    tables[table] = {**tables[table], column: cells}
    if table == "items" and column == "i":
        tables["interactions"] = {**INTERACTIONS, "i": ["10"] * 3}
    file_stem = "log0" if table == "interactions" else table
    with pytest.raises(DataError) as caught:
        read(schema, **tables)
    for part in (f"{file_stem}.", f"column {column!r}", f"expected {expected}", examples, "bad_rows"):
        assert part in str(caught.value)
    dropped_counts = read(schema, **tables, bad_rows="drop").dropped_counts
    reason, count = next(iter(dropped_counts.items()))  # followed by interactions with the dropped item
    assert reason.startswith(f"{file_stem}.")
    assert f": {column}: not {expected}" in reason
    assert "rows)" in reason
    assert count == examples.count("row ")


def test_rows_beside_dropped_rows_are_unchanged(read):
    log = {"u": ["1", None, "2", "3"], "i": ["10", "10", "99", "11"], "when": ["1", "2", "3", "4"]}
    tables = read(make_schema(), log, bad_rows="drop")
    assert decode(tables.interactions).rows() == [("1", 10, 1, True), ("3", 11, 4, True)]
    assert sorted(tables.dropped_counts.values()) == [1, 1]
    columns = sorted(reason.split(".")[0] + reason.split(":")[1] for reason in tables.dropped_counts)
    assert columns == ["log0 i", "log0 u"]


def test_error_about_many_bad_rows_shows_three(read):
    log = {"u": ["1"] * 9, "i": ["x"] * 9, "when": ["1"] * 9}
    with pytest.raises(DataError, match=r"9 invalid of 9 rows \(row 1: 'x'; row 2: 'x'; row 3: 'x'\)"):
        read(make_schema(), log, None)
    with pytest.raises(
        DataError, match=r"no interactions are left .*'log0\..*: i: not an integer id \(of 9 rows\)': 9"
    ):
        read(make_schema(), log, None, bad_rows="drop")


def test_error_about_a_missing_column_names_its_key(read):
    log = {"u": ["1"], "i": ["10"], "wen": ["1"]}
    with pytest.raises(DataError, match=r"log0.*no column 'when' \(schema.interactions.time\).*did you mean 'wen'"):
        read(make_schema(), log)
    with pytest.raises(DataError, match=r"items.*no column 'genres' \(schema.items.features.genres\)"):
        read(make_schema(), items={name: cells for name, cells in ITEMS.items() if name != "genres"})


def test_list_column_of_ids_is_a_data_error(tmp_path):
    path = tmp_path / "log.parquet"
    pl.DataFrame({"u": ["1"], "i": [[1, 2]], "when": [1]}).write_parquet(path)
    with pytest.raises(DataError, match=r"column 'i': expected an integer id, .*row 1: \[1, 2\]"):
        read_tables(DataSettings(interactions=(path,)), make_schema())


def test_lists_and_datetimes_of_parquet_keep_their_types(tmp_path):
    items, log = tmp_path / "items[1].parquet", tmp_path / "log*.parquet"  # names that look like glob patterns
    day = datetime(2018, 6, 1)
    pl.DataFrame({**ITEMS, "genres": [["b"], None], "price": [day, None]}).write_parquet(items)
    pl.DataFrame({"u": [1], "i": [10], "when": [day]}).write_parquet(log)
    tables = read_tables(DataSettings(interactions=(log,), items=items), make_schema())
    assert decode(tables.interactions).rows() == [("1", 10, day, True)]
    assert tables.items.features["genres"].to_list() == [["b"], None]
    assert tables.items.attributes["price"].to_list() == [day, None]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.csv", None, "no such file; paths in vecall.toml are relative"),
        ("log.txt", b"u,i\n", "expected a .parquet, .csv or .tsv file .*got '.txt'"),
        ("log.csv", b"", "cannot be read"),
        ("log.csv", b"u,i,when\n1,2\n1,2,3,4,5\n", "cannot be read"),
        ("log.csv", b"u,i,when\n\xff\xfe,1,2\n", "cannot be read"),
        ("log.csv", b"u,i,when\n", "no interactions are left"),
        ("log.parquet", b"PAR1 damaged PAR1", "cannot be read"),
    ],
)
def test_file_that_is_not_a_table_is_a_data_error(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_tables(DataSettings(interactions=(path,)), make_schema())
    assert name in str(caught.value)
