"""Reading of CSV dialects and directories, and errors about files whose content does not match their name."""

import gzip

import polars as pl
import pytest

from vecall.data.readers import read_table, suggest_separator
from vecall.data.settings import CsvSettings
from vecall.errors import DataError

TABLE = pl.DataFrame({"a": ["1", "2"], "b": ["x", None]})


def test_quoted_and_unquoted_empty_cells_are_null(tmp_path):
    (tmp_path / "t.csv").write_text('a,b\n"1",""\n"2",\n"","x"\n')
    assert read_table(tmp_path / "t.csv").rows() == [("1", None), ("2", None), (None, "x")]


def test_separator_is_configured_or_suggested(tmp_path):
    (tmp_path / "t.csv").write_text("a;b\n1;x\n2;\n")
    (tmp_path / "t.tsv").write_text("a\tb\n1\tx\n2\t\n")
    assert read_table(tmp_path / "t.csv", CsvSettings(separator=";")).equals(TABLE)
    assert read_table(tmp_path / "t.tsv").equals(TABLE)
    assert suggest_separator(read_table(tmp_path / "t.csv").columns) == (
        "; its columns seem to be separated by ';': set data.csv.separator"
    )
    assert suggest_separator(["a", "b;c"]) == suggest_separator(["a"]) == ""


@pytest.mark.parametrize("name", ["t.csv.gz", "T.CSV.GZ", "t.tsv.gz"])
def test_compressed_text_is_read(tmp_path, name):
    text = TABLE.write_csv(separator="\t" if "tsv" in name else ",")
    (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    assert read_table(tmp_path / name).equals(TABLE)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_directory_of_spark_part_files_is_one_table(tmp_path, suffix):
    directory = tmp_path / "ratings [1].parquet"
    directory.mkdir()
    for part in range(2):
        write = TABLE.write_parquet if suffix == "parquet" else TABLE.write_csv
        write(directory / f"part-0000{part}-8f2c-c000.snappy.{suffix}")
    for name in ("_SUCCESS", ".part-00000.crc", "_committed_123"):
        (directory / name).touch()
    assert read_table(directory).equals(TABLE.vstack(TABLE))


def test_keys_of_a_partitioned_directory_are_columns(tmp_path):
    for day in (1, 2):
        part = tmp_path / "log" / f"day={day}"
        part.mkdir(parents=True)
        TABLE.write_parquet(part / "part-0.parquet")
    table = read_table(tmp_path / "log")
    assert table.columns == ["a", "b", "day"]
    assert table["day"].to_list() == ["1", "1", "2", "2"]


def test_keys_of_a_partitioned_directory_are_text_and_those_above_it_are_not_read(tmp_path):
    directory = tmp_path / "a=99" / "log"
    for name in ("shop=%C3%A4%2Fb/item=007", "shop=__HIVE_DEFAULT_PARTITION__/item=008"):
        (directory / name).mkdir(parents=True)
        TABLE.write_parquet(directory / name / "part-0.parquet")
    table = read_table(directory).sort("item")
    assert table.select(TABLE.columns).equals(TABLE.vstack(TABLE))
    assert table["item"].to_list() == ["007"] * len(TABLE) + ["008"] * len(TABLE)
    assert table["shop"].to_list() == ["ä/b"] * len(TABLE) + [None] * len(TABLE)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"PAR1", "is Parquet by its content: rename it to .parquet"),
        ("t.csv", b"PK\x03\x04", "a spreadsheet or an archive"),
        ("t.csv", "a,b".encode("utf-16"), "text in UTF-16"),
        ("t.csv", b"a\n\xe9\n", r"cannot be read: line 2, .*is not UTF-8: convert the file"),
        ("t.csv", b"a,b\n1,2\n1,2,3\n", r"cannot be read: line 3, '1,2,3', has 3 cells, and the first line 2"),
        (
            "t.csv",
            b'a,b\n"x, ""y""",2\n"Best" of,1\n',
            r"line 3, '\"Best\" of,1', has a quote within a cell.*data.csv.quote",
        ),
        ("t.csv", b'a,b\n12" vinyl,1\n' + b"x,1\n" * 5000, r"line 2, '12\" vinyl,1', has a quote within a cell"),
        ("t.xlsx", b"PK\x03\x04", "expected a .parquet, .csv or .tsv file .*got '.xlsx'"),
        ("t.jsonl", b"{}", "got '.jsonl'"),
        ("t.feather", b"ARROW1", "got '.feather'"),
        ("t.gz", b"", "got '.gz'"),
        ("t", b"", "got 'no suffix'"),
        ("empty/", b"", "this directory holds no table file"),
        ("mixed/a.csv", b"a\n1\n", r"expected a .*files of 2 formats \(\.csv, \.parquet\)"),
    ],
)
def test_unsupported_content_is_named_in_the_error(tmp_path, name, content, message):
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
    with pytest.raises(DataError, match=message):
        read_table(path)


def test_delta_lake_table_is_rejected(tmp_path):
    (tmp_path / "t" / "_delta_log").mkdir(parents=True)
    TABLE.write_parquet(tmp_path / "t" / "part-0.parquet")
    with pytest.raises(DataError, match="Delta Lake"):
        read_table(tmp_path / "t")


def test_without_quoting_quotes_are_part_of_the_text(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text('a\tb\n12" vinyl\t1\n"Best" of\t2\n', encoding="utf-8")
    table = read_table(path, CsvSettings(quote=""))
    assert table["a"].to_list() == ['12" vinyl', '"Best" of']


def test_damaged_lines_of_compressed_files_and_of_directories_are_named(tmp_path):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "1.csv").write_bytes(b"a,b\n1,2\n")
    (tmp_path / "log" / ".1.csv.crc").write_bytes(b"\xff")  # as Hadoop leaves beside each file
    path = tmp_path / "log" / "2.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n1,2\n1,2,3\n"))
    with pytest.raises(DataError, match=r"2\.csv\.gz: cannot be read: line 3"):
        read_table(path)
    with pytest.raises(DataError, match=r"log: cannot be read: 2\.csv\.gz, line 3"):
        read_table(tmp_path / "log")


def test_damaged_archive_is_a_data_error(tmp_path):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 100_000)[:-200])
    with pytest.raises(DataError, match="cannot be read"):
        read_table(path)


def test_the_last_suffix_alone_says_what_separates_cells(tmp_path):
    path = tmp_path / "t.tsv.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    assert read_table(path).columns == ["a", "b"]
