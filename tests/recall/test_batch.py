"""Batch recall: every user gets the same answer as alone, in the order of the file, or nothing is written."""

import gzip
import json
import os

import numpy as np
import polars as pl
import pytest

from vecall.errors import DataError, QueryError, StoreError
from vecall.recall import batch
from vecall.recall.batch import recall_file, recommend_file
from vecall.recall.query import Query
from vecall.recall.recommend_query import RecommendRequest

VECTORS = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
NO_FEATURES = {"age": None, "town": None, "taste": None}


@pytest.fixture
def recaller(make_recaller, make_encoder):
    users = [(7 + number, NO_FEATURES, [number, number + 1]) for number in range(12)]
    return make_recaller(VECTORS, users=users, encoder=make_encoder(), popularity=np.arange(40.0))


def test_answers_equal_those_of_single_recalls(recaller, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(batch, "_CHUNK_USERS", 5)
    user_ids = [9, 18, 7, 999, 12, 11, 10, 8, 13, 14, 16, 17]
    pl.DataFrame({"user_id": user_ids, "note": "x"}).write_parquet(tmp_path / "users.parquet")
    result = recall_file(recaller, tmp_path / "users.parquet", tmp_path / "out.parquet", k=6)
    assert (result.users, result.unknown_users, result.out) == (12, 1, tmp_path / "out.parquet")
    assert "does not have 1 of 12 users" in caplog.text
    table = pl.read_parquet(tmp_path / "out.parquet")
    assert table.schema == {
        "user_id": pl.Int64(),
        "ids": pl.List(pl.Int64()),
        "scores": pl.List(pl.Float32()),
        "release": pl.String(),
    }
    assert table["user_id"].to_list() == user_ids
    for user_id, ids, scores, release in table.iter_rows():
        single = recaller.recall(Query(user_id=user_id, k=6))
        assert (ids, release) == (single.ids, single.release)
        assert scores == single.scores
    assert [path.name for path in tmp_path.glob("out*")] == ["out.parquet"]


def test_long_answers_are_written_a_few_users_at_a_time(recaller, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "_CHUNK_IDS", 70)
    sizes = []
    monkeypatch.setattr(
        batch, "_to_frame", lambda *args, make=batch._to_frame: sizes.append(len(args[1])) or make(*args)
    )
    pl.DataFrame({"user_id": [7, 8, 9, 10, 11]}).write_parquet(tmp_path / "users.parquet")
    recall_file(recaller, tmp_path / "users.parquet", tmp_path / "out.parquet", k=30)
    assert sizes == [3, 2]
    table = pl.read_parquet(tmp_path / "out.parquet")
    assert table["user_id"].to_list() == [7, 8, 9, 10, 11]
    assert table["ids"].to_list() == [recaller.recall(Query(user_id=user, k=30)).ids for user in table["user_id"]]


def test_json_requests_keep_their_options_unless_k_overrides_theirs(recaller, tmp_path):
    requests = [{"user_id": 7, "k": 3}, {"history": [100, 101], "exclude": [102]}, {"vector": [1, 0, 0, 0], "k": 2}]
    lines = tmp_path / "requests.jsonl"
    lines.write_text("\n".join(map(json.dumps, requests)) + "\n\n")
    recall_file(recaller, lines, tmp_path / "out.parquet")
    table = pl.read_parquet(tmp_path / "out.parquet")
    assert table["user_id"].to_list() == [7, None, None]
    assert table["ids"].to_list() == [recaller.recall(Query.from_json(request)).ids for request in requests]
    recall_file(recaller, lines, tmp_path / "out.parquet", k=4)  # replaces the older table too
    assert pl.read_parquet(tmp_path / "out.parquet")["ids"].list.len().to_list() == [4, 4, 4]


def test_recommendations_have_channels_and_ranker(recaller, tmp_path):
    requests = [{"user_id": 7, "k": 3}, {"history": [100, 101], "diversity": {"mmr": 0.5}}, {"user_id": 99, "k": 2}]
    lines = tmp_path / "requests.jsonl"
    lines.write_text("\n".join(map(json.dumps, requests)))
    recommend_file(recaller, lines, tmp_path / "out.parquet")
    table = pl.read_parquet(tmp_path / "out.parquet")
    names = pl.List(pl.List(pl.String))
    assert list(table.columns) == ["user_id", "ids", "scores", "release", "channels", "ranker"]
    assert (table.schema["scores"], table.schema["channels"]) == (pl.List(pl.Float64), names)
    for request, row in zip(requests, table.iter_rows(named=True), strict=True):
        answer = recaller.recommend_with_trace(RecommendRequest.from_json(request)).answer
        assert row == {"user_id": request.get("user_id")} | {
            name: getattr(answer, name) for name in ("ids", "scores", "release", "channels", "ranker")
        }
    assert table["ids"].list.len().to_list() == [3, 20, 2]
    (tmp_path / "users.csv").write_text("user_id\n7\n8\n")
    recommend_file(recaller, tmp_path / "users.csv", tmp_path / "out.parquet", k=4)
    assert pl.read_parquet(tmp_path / "out.parquet")["ids"].list.len().to_list() == [4, 4]


def test_invalid_recommendation_error_names_its_location(recaller, tmp_path):
    lines = tmp_path / "requests.jsonl"
    lines.write_text('{"user_id": 7}\n{"user_id": 7, "diversity": {"by": "colour", "max": 1}}\n')
    with pytest.raises(QueryError, match=r"line 2: diversity\.by: expected"):
        recommend_file(recaller, lines, tmp_path / "out.parquet")


def test_user_ids_are_cast_to_the_id_type_of_the_release(recaller, make_recaller, make_encoder, tmp_path):
    (tmp_path / "users.csv").write_text("who\n7\n8\n")
    recall_file(recaller, tmp_path / "users.csv", tmp_path / "out.parquet", k=2)
    assert pl.read_parquet(tmp_path / "out.parquet")["user_id"].to_list() == [7, 8]
    without_users = make_recaller(VECTORS, encoder=make_encoder(), popularity=np.arange(40.0))
    lines = tmp_path / "requests.jsonl"
    lines.write_text('{"user_id": 7}\n{"user_id": "seven"}\n')
    recall_file(without_users, lines, tmp_path / "other.parquet", k=2)
    assert pl.read_parquet(tmp_path / "other.parquet")["user_id"].to_list() == ["7", "seven"]


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.jsonl", '{"user_id": 7}\n{"user_id": 7, "k": 0}\n', QueryError, "line 2: k: expected"),
        ("a.jsonl", '{"user_id": 7}\nuser 8\n', QueryError, "line 2: is not valid JSON"),
        ("a.jsonl", '{"user_id": 7}\n{"user_id": "eight"}\n', QueryError, "line 2: user_id: ids here are integers"),
        (
            "a.jsonl",
            '{"user_id": 7}\n{"user_id": 9223372036854775808}\n',
            QueryError,
            "line 2: user_id: expected an int",
        ),
        ("a.jsonl", "[" * 100_000, QueryError, "line 1: is not valid JSON"),
        ("a.jsonl", "\n", DataError, "contains no users"),
        ("a.csv", "user_id\n7\neight\n", DataError, "row 2: expected an integer id, got 'eight'"),
        ("a.csv", "user,note\n7,x\n", DataError, "expected a column 'user_id' or a single column"),
        ("a.jsonl", None, DataError, "cannot be read"),
    ],
)
def test_invalid_input_error_names_its_location_and_nothing_is_written(
    recaller, tmp_path, name, content, error, message
):
    out = tmp_path / "out.parquet"
    out.write_bytes(b"older")
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message):
        recall_file(recaller, tmp_path / name, out)
    assert out.read_bytes() == b"older"
    assert {path.name for path in tmp_path.glob("out*")} == {"out.parquet"}


def test_unwritable_output_is_a_store_error(recaller, tmp_path):
    (tmp_path / "users.csv").write_text("user_id\n7\n")
    with pytest.raises(StoreError, match=r"out\.parquet: cannot be written: .*check that its directory exists"):
        recall_file(recaller, tmp_path / "users.csv", tmp_path / "nowhere" / "out.parquet")


def test_output_that_would_replace_the_input_or_is_named_as_text_is_an_error(recaller, tmp_path):
    users = tmp_path / "users.parquet"
    pl.DataFrame({"user_id": [7]}).write_parquet(users)
    (tmp_path / "link.parquet").symlink_to(users)
    cases = (("users.parquet", "is the input"), ("link.parquet", "is the input"), ("out.csv", "written as Parquet"))
    os.mkfifo(tmp_path / "pipe")
    cases = (*cases, ("out.JSONL", "written as Parquet"), (".", "is a directory"), ("pipe", "is a pipe or a device"))
    for name, message in cases:
        with pytest.raises(StoreError, match=message):
            recall_file(recaller, users, tmp_path / name)
    assert pl.read_parquet(users).columns == ["user_id"]
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"users.parquet", "link.parquet"}


def test_dialects_of_users_files_are_read(recaller, tmp_path):
    (tmp_path / "a.tsv").write_text("user_id\tnote\n7\tx\n8.0\ty\n")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"user_id\n7\n8\n"))
    (tmp_path / "a.jsonl").write_text('\ufeff{"user_id": 7}\r\n{"user_id": 8}\r\n')  # as Windows writes it
    pl.DataFrame({"user_id": pl.Series(["7", "8"], dtype=pl.Categorical)}).write_parquet(tmp_path / "a.PARQUET")
    for name in ("a.tsv", "a.csv.gz", "a.jsonl", "a.PARQUET"):
        recall_file(recaller, tmp_path / name, tmp_path / "out.parquet", k=2)
        assert pl.read_parquet(tmp_path / "out.parquet")["user_id"].to_list() == [7, 8], name


def test_user_id_that_no_column_holds_is_an_error(make_recaller, make_encoder, tmp_path):
    without_users = make_recaller(VECTORS, encoder=make_encoder(), popularity=np.arange(40.0))
    (tmp_path / "a.jsonl").write_text('{"user_id": "\\ud800"}\n')
    with pytest.raises(QueryError, match="line 1: user_id: expected valid Unicode"):
        recall_file(without_users, tmp_path / "a.jsonl", tmp_path / "out.parquet")


def test_pipe_is_refused_since_it_cannot_be_read_twice(recaller, tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="is a pipe or a device, expected a file"):
        recall_file(recaller, tmp_path / "a.jsonl", tmp_path / "out.parquet")
