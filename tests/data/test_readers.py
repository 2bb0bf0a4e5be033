"""Dialects, folders and files that are something else than they are called."""

import gzip

import polars as pl
import pytest

from vecall.data.readers import read_table, suggest_separator
from vecall.data.settings import CsvSettings
from vecall.errors import DataError

TABLE = pl.DataFrame({"a": ["1", "2"], "b": ["x", None]})


def test_quoted_and_bare_empty_cells_are_missing_alike(tmp_path):
    (tmp_path / "t.csv").write_text('a,b\n"1",""\n"2",\n"","x"\n')
    assert read_table(tmp_path / "t.csv").rows() == [("1", None), ("2", None), (None, "x")]


def test_separators(tmp_path):
    (tmp_path / "t.csv").write_text("a;b\n1;x\n2;\n")
    (tmp_path / "t.tsv").write_text("a\tb\n1\tx\n2\t\n")
    assert read_table(tmp_path / "t.csv", CsvSettings(separator=";")).equals(TABLE)
    assert read_table(tmp_path / "t.tsv").equals(TABLE)
    assert suggest_separator(read_table(tmp_path / "t.csv").columns) == (
        "; its columns seem to be separated by ';': set data.csv.separator"
    )
    assert suggest_separator(["a", "b;c"]) == suggest_separator(["a"]) == ""


@pytest.mark.parametrize("name", ["t.csv.gz", "T.CSV.GZ", "t.tsv.gz"])
def test_packed_text(tmp_path, name):
    text = TABLE.write_csv(separator="\t" if "tsv" in name else ",")
    (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    assert read_table(tmp_path / name).equals(TABLE)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_folder_of_parts_as_spark_writes_it(tmp_path, kind):
    folder = tmp_path / "ratings [1].parquet"
    folder.mkdir()
    for part in range(2):
        write = TABLE.write_parquet if kind == "parquet" else TABLE.write_csv
        write(folder / f"part-0000{part}-8f2c-c000.snappy.{kind}")
    for other in ("_SUCCESS", ".part-00000.crc", "_committed_123"):
        (folder / other).touch()
    assert read_table(folder).equals(TABLE.vstack(TABLE))


def test_a_partitioned_folder_has_its_keys_as_columns(tmp_path):
    for day in (1, 2):
        part = tmp_path / "log" / f"day={day}"
        part.mkdir(parents=True)
        TABLE.write_parquet(part / "part-0.parquet")
    table = read_table(tmp_path / "log")
    assert table.columns == ["a", "b", "day"]
    assert table["day"].to_list() == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("t.csv", b"PAR1", "is Parquet by its content: name it .parquet"),
        ("t.csv", b"PK\x03\x04", "a spreadsheet or an archive"),
        ("t.csv", "a,b".encode("utf-16"), "text in UTF-16"),
        ("t.csv", b"a\n\xe9\n", "cannot be read: .*utf-8"),
        ("t.xlsx", b"PK\x03\x04", "expected a .parquet, .csv or .tsv file .*got '.xlsx'"),
        ("t.jsonl", b"{}", "got '.jsonl'"),
        ("t.feather", b"ARROW1", "got '.feather'"),
        ("t.gz", b"", "got '.gz'"),
        ("t", b"", "got 'no suffix'"),
        ("empty/", b"", "this folder holds no file of a table"),
        ("mixed/a.csv", b"a\n1\n", "expected a"),
    ],
)
def test_what_is_something_else_is_told_by_what_it_is(tmp_path, name, content, told):
    path = tmp_path / name
    if name.endswith("/"):
        path.mkdir()
    elif "/" in name:
        path.parent.mkdir()
        path.write_bytes(content)
        TABLE.write_parquet(path.parent / "b.parquet")
        path = path.parent
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=told):
        read_table(path)


def test_a_delta_lake_table_is_no_folder_of_parts(tmp_path):
    (tmp_path / "t" / "_delta_log").mkdir(parents=True)
    TABLE.write_parquet(tmp_path / "t" / "part-0.parquet")
    with pytest.raises(DataError, match="Delta Lake"):
        read_table(tmp_path / "t")
