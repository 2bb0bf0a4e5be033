"""The command line: exit codes, one JSON object on stdout, one readable line for a mistake."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from vecall.cli.app import app
from vecall.pipeline.publish_vectors import publish_vectors
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller

MOVIELENS = Path(__file__).parents[2] / "examples" / "movielens"


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    vectors = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    for name in ("one", "two"):
        publish_vectors(tmp_path / "store", list(range(50)), vectors, name=name)
    return tmp_path / "store"


def answer(result: Any) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    parsed = json.loads(result.stdout)
    assert isinstance(parsed, dict)
    return parsed


def test_recall_by_request(store: Path, tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"vector": [1.0] + [0.0] * 7, "k": 3, "exclude": [1, 999]}))
    recalled = answer(run("recall", "--store", store, "--request", request, "--json"))
    assert recalled["release"] == "two"
    assert len(recalled["ids"]) == len(recalled["scores"]) == 3
    assert recalled["unknown"] == {"user": False, "history": 0, "exclude": 1}
    assert len(answer(run("recall", "--store", store, "--request", request, "-k", 7, "--json"))["ids"]) == 7
    assert "release two" in run("recall", "--store", store, "--request", request).stdout


def test_batch(store: Path, tmp_path: Path) -> None:
    requests, out = tmp_path / "requests.jsonl", tmp_path / "out.parquet"
    requests.write_text("".join(json.dumps({"user_id": u, "vector": [u, 1.0] + [0.0] * 6}) + "\n" for u in range(3)))
    options = ["batch", "--store", store, "--users", requests, "--out", out, "-k", 4]
    done = answer(run(*options, "--json"))
    assert set(done) == {"users", "seconds", "out"}
    assert (done["users"], done["out"]) == (3, str(out))
    table = pl.read_parquet(out)
    assert table["ids"].list.len().to_list() == [4, 4, 4]
    assert table["release"].unique().to_list() == ["two"]
    assert "3 users in" in run(*options).stdout
    requests.write_text("{}\n")
    mistaken = run(*options, "--json")
    assert mistaken.exit_code == 1
    assert json.loads(mistaken.stdout)["error"]["code"] == "empty_query"


def test_releases(store: Path) -> None:
    listed = answer(run("releases", "list", "--store", store, "--json"))
    assert listed["current"] == "two"
    assert [one["name"] for one in listed["releases"]] == ["two", "one"]
    assert set(listed["releases"][0]) == {
        *("name", "created", "items", "dim", "bytes", "metrics", "parent", "journal_seq"),
    }
    assert answer(run("releases", "rollback", "--store", store, "--json")) == {"release": "one", "previous": "two"}
    assert answer(run("releases", "activate", "two", "--store", store, "--json")) == {
        "release": "two",
        "previous": "one",
    }
    assert answer(run("releases", "verify", "one", "--store", store, "--json")) == {"release": "one", "ok": True}
    assert answer(run("releases", "prune", "--keep", 0, "--store", store, "--json")) == {
        "deleted": [],
        "operations": 0,
    }
    for command in (("list",), ("verify",), ("rollback",), ("activate", "one"), ("prune", "--keep", 1)):
        assert run("releases", *command, "--store", store).exit_code == 0


def test_journal(store: Path) -> None:
    with open_recaller(store, writable=True, auto_compact=False) as writer:
        writer.upsert([{"id": 77, "vector": [1.0] * 8}])
        writer.delete([3])
    listed = answer(run("journal", "list", "--store", store, "--json"))["operations"]
    assert [(one["seq"], one["op"], one["id"], one["applicable"]) for one in listed] == [
        (1, "upsert", 77, True),
        (2, "delete", 3, True),
    ]
    assert "upsert" in run("journal", "list", "--store", store).stdout
    assert answer(run("journal", "drop", 2, "--store", store, "--json")) == {"seq": 2, "dropped": True}
    assert run("journal", "drop", 1, "--store", store).exit_code == 0
    assert answer(run("journal", "list", "--store", store, "--json")) == {"operations": []}
    again = run("journal", "drop", 1, "--store", store, "--json")
    assert (again.exit_code, json.loads(again.stdout)["error"]["code"]) == (1, "StoreError")
    with open_recaller(store) as reader:
        assert reader.recall(Query(vector=[1.0] * 8, exclude=[77], k=100)).unknown.exclude == 1


def test_a_damaged_release_is_named(store: Path) -> None:
    file = store / "releases" / "two" / "index.faiss"
    damaged = bytearray(file.read_bytes())
    damaged[100] ^= 1
    file.write_bytes(damaged)
    result = run("releases", "verify", "--store", store, "--json")
    assert result.exit_code == 1
    assert "index.faiss" in json.loads(result.stdout)["error"]["message"]


def test_a_mistake_is_one_line_and_exit_1(tmp_path: Path) -> None:
    result = run("recall", "--store", tmp_path / "nothing", "--user", 1, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["code"] == "StoreError"
    plain = run("recall", "--store", tmp_path / "nothing", "--user", 1)
    assert plain.exit_code == 1
    assert plain.stdout == ""
    assert "is no store" in plain.stderr


def test_wrong_usage_is_exit_2(store: Path) -> None:
    assert run("recall").exit_code == 2
    assert run("recall", "--store", store).exit_code == 2
    assert run("nonsense").exit_code == 2


def test_bad_requests(store: Path, tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    for text, code in (("{", "bad_json"), ("[]", "bad_json"), ('{"k": 3}', "empty_query"), ('{"x": 1}', "invalid")):
        request.write_text(text)
        result = run("recall", "--store", store, "--request", request, "--json")
        assert (result.exit_code, json.loads(result.stdout)["error"]["code"]) == (1, code)


def test_an_unknown_key_is_named_by_its_path(tmp_path: Path) -> None:
    config = tmp_path / "vecall.toml"
    config.write_text((MOVIELENS / "vecall.toml").read_text() + "dimm = 3\n")
    result = run("fit", config, "--run", tmp_path / "run", "--json")
    assert result.exit_code == 1
    assert "model.dimm" in json.loads(result.stdout)["error"]["message"]


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "vecall.pipeline.fit", raising=False)
    monkeypatch.setitem(sys.modules, "vecall.pipeline.fit", None)
    result = run("fit", MOVIELENS / "vecall.toml", "--run", tmp_path / "run")
    assert result.exit_code == 1
    assert "vecall[train]" in result.stderr


def test_fit_publish_evaluate_recall(tmp_path: Path) -> None:
    """The whole way on a small cut of MovieLens, each command in a process of its own."""
    ratings = pl.read_csv(MOVIELENS / "ratings.csv").filter(pl.col("user_id") <= 60)
    movies = pl.read_csv(MOVIELENS / "movies.csv").filter(pl.col("item_id").is_in(ratings["item_id"].implode()))
    ratings.write_csv(tmp_path / "ratings.csv")
    movies.write_csv(tmp_path / "movies.csv")
    config = tmp_path / "vecall.toml"
    config.write_text((MOVIELENS / "vecall.toml").read_text() + "[training]\nepochs = 2\n[index]\nengine = 'hnsw'\n")

    def vecall(*arguments: object) -> dict[str, Any]:
        command = [sys.executable, "-c", "from vecall.cli.app import main; main()", *map(str, arguments), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        parsed = json.loads(done.stdout)
        assert isinstance(parsed, dict)
        return parsed

    fitted = vecall("fit", config, "--run", tmp_path / "run")
    assert set(fitted) == {"run", "seconds", "metrics"}
    vectors = np.random.default_rng(0).standard_normal((2 * len(movies) + 1, 8))
    publish_vectors(tmp_path / "store", list(range(len(vectors))), vectors, name="large")
    publish = ["publish", tmp_path / "run", "--store", tmp_path / "store", "--name", "first"]
    refused = run(*publish, "--json")
    assert (refused.exit_code, json.loads(refused.stdout)["error"]["code"]) == (1, "StoreError")
    assert "--allow-worse" in json.loads(refused.stdout)["error"]["message"]
    published = vecall(*publish, "--allow-worse")
    assert (published["release"], published["items"], published["dim"]) == ("first", len(movies), 128)
    judged = vecall("evaluate", "--store", tmp_path / "store", "--config", config, "--report", tmp_path / "r.html")
    assert {"protocol", "dropped", "model", "popularity", "ease", "index", "ann"} <= set(judged)
    for name in ("model", "popularity", "ease", "index"):
        assert judged["with_history"][name] == judged[name]  # by this split all who are judged have one
    assert set(judged["ann"]["paths"]) == {"index", "scan", "all", "popular"}
    assert sum(judged["ann"]["paths"].values()) == judged["ann"]["queries"]
    exact, through = judged["model"]["seen_excluded"], fitted["metrics"]["seen_excluded"]
    for name in exact:
        assert exact[name] == pytest.approx(through[name], abs=0.05)
    assert "<svg" in (tmp_path / "r.html").read_text()
    recalled = vecall("recall", "--store", tmp_path / "store", "--user", 1, "-k", 10)
    seen = set(ratings.filter(pl.col("user_id") == 1)["item_id"])
    assert len(recalled["ids"]) == 10
    assert not seen & set(recalled["ids"])
