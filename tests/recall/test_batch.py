"""A file of users in, a table out: what each would get alone, in the file's order, or nothing at all."""

import json

import numpy as np
import polars as pl
import pytest

from vecall.errors import DataError, QueryError, StoreError
from vecall.recall import batch
from vecall.recall.batch import recall_file
from vecall.recall.query import Query

VECTORS = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
NOTHING = {"age": None, "town": None, "taste": None}


@pytest.fixture
def recaller(recaller_of, towers):
    users = [(7 + number, NOTHING, [number, number + 1]) for number in range(12)]
    return recaller_of(VECTORS, users=users, towers=towers(), popularity=np.arange(40.0))


def test_answers_are_those_that_each_user_gets_alone(recaller, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "_AT_ONCE", 5)
    asked = [9, 18, 7, 999, 12, 11, 10, 8, 13, 14, 16, 17]
    pl.DataFrame({"user_id": asked, "note": "x"}).write_parquet(tmp_path / "users.parquet")
    done = recall_file(recaller, tmp_path / "users.parquet", tmp_path / "out.parquet", k=6)
    assert (done.users, done.out) == (12, tmp_path / "out.parquet")
    table = pl.read_parquet(tmp_path / "out.parquet")
    assert table.schema == {
        "user_id": pl.Int64(),
        "ids": pl.List(pl.Int64()),
        "scores": pl.List(pl.Float32()),
        "release": pl.String(),
    }
    assert table["user_id"].to_list() == asked
    for user, ids, scores, release in table.iter_rows():
        alone = recaller.recall(Query(user_id=user, k=6))
        assert (ids, release) == (alone.ids, alone.release)
        assert scores == alone.scores
    assert [path.name for path in tmp_path.glob("out*")] == ["out.parquet"]


def test_requests_say_what_they_want(recaller, tmp_path):
    requests = [{"user_id": 7, "k": 3}, {"history": [100, 101], "exclude": [102]}, {"vector": [1, 0, 0, 0], "k": 2}]
    lines = tmp_path / "requests.jsonl"
    lines.write_text("\n".join(map(json.dumps, requests)) + "\n\n")
    recall_file(recaller, lines, tmp_path / "out.parquet")
    table = pl.read_parquet(tmp_path / "out.parquet")
    assert table["user_id"].to_list() == [7, None, None]
    assert table["ids"].to_list() == [recaller.recall(Query.from_json(one)).ids for one in requests]
    recall_file(recaller, lines, tmp_path / "out.parquet", k=4)  # over what they say, and over the older table
    assert pl.read_parquet(tmp_path / "out.parquet")["ids"].list.len().to_list() == [4, 4, 4]


def test_ids_of_a_csv_are_read_as_the_release_has_them(recaller, recaller_of, towers, tmp_path):
    (tmp_path / "users.csv").write_text("who\n7\n8\n")
    recall_file(recaller, tmp_path / "users.csv", tmp_path / "out.parquet", k=2)
    assert pl.read_parquet(tmp_path / "out.parquet")["user_id"].to_list() == [7, 8]
    unknown_users = recaller_of(VECTORS, towers=towers(), popularity=np.arange(40.0))
    lines = tmp_path / "requests.jsonl"
    lines.write_text('{"user_id": 7}\n{"user_id": "seven"}\n')
    recall_file(unknown_users, lines, tmp_path / "other.parquet", k=2)
    assert pl.read_parquet(tmp_path / "other.parquet")["user_id"].to_list() == ["7", "seven"]


@pytest.mark.parametrize(
    ("name", "content", "error", "said"),
    [
        ("a.jsonl", '{"user_id": 7}\n{"user_id": 7, "k": 0}\n', QueryError, "line 2: k: expected"),
        ("a.jsonl", '{"user_id": 7}\nuser 8\n', QueryError, "line 2: is not JSON"),
        ("a.jsonl", '{"user_id": 7}\n{"user_id": "eight"}\n', QueryError, "line 2: user_id: ids here are integers"),
        ("a.jsonl", "\n", DataError, "holds no user"),
        ("a.csv", "user_id\n7\neight\n", DataError, "row 2: expected an integer id, got 'eight'"),
        ("a.csv", "user,note\n7,x\n", DataError, "expected a column 'user_id', or one column only"),
        ("a.jsonl", None, DataError, "cannot be read"),
    ],
)
def test_a_mistake_names_its_place_and_nothing_is_written(recaller, tmp_path, name, content, error, said):
    out = tmp_path / "out.parquet"
    out.write_bytes(b"older")
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=said):
        recall_file(recaller, tmp_path / name, out)
    assert out.read_bytes() == b"older"
    assert {path.name for path in tmp_path.glob("out*")} == {"out.parquet"}


def test_a_table_that_cannot_be_written_is_told(recaller, tmp_path):
    (tmp_path / "users.csv").write_text("user_id\n7\n")
    with pytest.raises(StoreError, match="cannot be written: is there such a folder"):
        recall_file(recaller, tmp_path / "users.csv", tmp_path / "nowhere" / "out.parquet")
