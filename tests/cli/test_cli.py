"""The command line: exit codes, one JSON object on stdout, one readable line for an error."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from support.cli import invoke, list_commands, parse_object, run_json
from support.movielens import MOVIELENS_DIR, read_subset

from vecall.cli import output
from vecall.errors import InvalidReleaseError, TrainingError
from vecall.pipeline.publish_vectors import publish_vectors
from vecall.quickstart import run as quickstart_module
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller
from vecall.release.release import Release
from vecall.release.store import Store
from vecall.runtime.signals import exit_on_sigterm


@pytest.fixture
def store(tmp_path: Path) -> Path:
    vectors = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    for name in ("one", "two"):
        publish_vectors(tmp_path / "store", list(range(50)), vectors, name=name)
    return tmp_path / "store"


def parse_result(result: Any) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return parse_object(result.stdout)


def parse_error(result: Any) -> dict[str, Any]:
    assert result.exit_code == 1, result.output
    error = parse_object(result.stdout)["error"]
    assert isinstance(error, dict)
    return error


@pytest.mark.parametrize("command", list_commands(), ids=lambda command: command.name)
def test_command_and_all_its_parameters_have_help(command: Any) -> None:
    assert command.help
    assert [parameter.name for parameter in command.params if not parameter.help and not parameter.hidden] == []


def test_recall_by_request(store: Path, tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"vector": [1.0] + [0.0] * 7, "k": 3, "exclude": [1, 999]}))
    options = ["recall", "--store", store, "--request", request]
    recalled = parse_result(invoke(*options, "--json"))
    assert recalled["release"] == "two"
    assert len(recalled["ids"]) == len(recalled["scores"]) == 3
    assert recalled["unknown"] == {"user": False, "history": 0, "exclude": 1}
    assert len(parse_result(invoke(*options, "-k", 7, "--json"))["ids"]) == 7
    assert "release two" in invoke(*options).stdout


def test_batch(store: Path, tmp_path: Path) -> None:
    requests, out = tmp_path / "requests.jsonl", tmp_path / "out.parquet"
    lines = [json.dumps({"user_id": user_id, "vector": [user_id, 1.0] + [0.0] * 6}) + "\n" for user_id in range(3)]
    requests.write_text("".join(lines))
    options = ["batch", "--store", store, "--users", requests, "--out", out, "-k", 4]
    result = parse_result(invoke(*options, "--json"))
    assert set(result) == {"users", "unknown_users", "seconds", "out"}
    assert (result["users"], result["unknown_users"], result["out"]) == (3, 0, str(out))
    table = pl.read_parquet(out)
    assert table["ids"].list.len().to_list() == [4, 4, 4]
    assert table["release"].unique().to_list() == ["two"]
    assert "3 users in" in invoke(*options).stdout
    requests.write_text("{}\n")
    assert parse_error(invoke(*options, "--json"))["code"] == "empty_query"


def test_releases(store: Path) -> None:
    listed = parse_result(invoke("releases", "list", "--store", store, "--json"))
    assert listed["current"] == "two"
    assert [release["name"] for release in listed["releases"]] == ["two", "one"]
    assert set(listed["releases"][0]) == {
        *("name", "created", "items", "dim", "bytes", "metrics", "parent", "journal_seq"),
    }
    rolled_back = parse_result(invoke("releases", "rollback", "--store", store, "--json"))
    assert rolled_back == {"release": "one", "previous": "two"}
    activated = parse_result(invoke("releases", "activate", "two", "--store", store, "--json"))
    assert activated == {"release": "two", "previous": "one"}
    verified = parse_result(invoke("releases", "verify", "one", "--store", store, "--json"))
    assert verified == {"release": "one", "ok": True}
    pruned = parse_result(invoke("releases", "prune", "--keep", 0, "--store", store, "--json"))
    assert pruned == {"deleted": [], "operations": 0}


def test_releases_as_text(store: Path) -> None:
    texts = {
        ("list",): "* two",
        ("verify",): "release two verified",
        ("rollback",): "activated release one (previously two)",
        ("activate", "one"): "activated release one (previously one)",
        ("prune", "--keep", 1): "deleted no releases and 0 live changes",
    }
    for command, text in texts.items():
        result = invoke("releases", *command, "--store", store)
        assert result.exit_code == 0
        assert text in result.stdout


def test_journal(store: Path) -> None:
    with open_recaller(store, writable=True, auto_compact=False) as writer:
        writer.upsert([{"id": 77, "vector": [1.0] * 8}])
        writer.delete([3])
    operations = parse_result(invoke("journal", "list", "--store", store, "--json"))["operations"]
    assert [
        (operation["seq"], operation["op"], operation["id"], operation["applicable"]) for operation in operations
    ] == [
        (1, "upsert", 77, True),
        (2, "delete", 3, True),
    ]
    assert "upsert" in invoke("journal", "list", "--store", store).stdout
    dropped = parse_result(invoke("journal", "drop", 2, "--store", store, "--json"))
    assert dropped == {"seq": 2, "dropped": True}
    assert invoke("journal", "drop", 1, "--store", store).exit_code == 0
    assert parse_result(invoke("journal", "list", "--store", store, "--json")) == {"operations": []}
    assert parse_error(invoke("journal", "drop", 1, "--store", store, "--json"))["code"] == "StoreError"
    with open_recaller(store) as reader:
        assert reader.recall(Query(vector=[1.0] * 8, exclude=[77], k=100)).unknown.exclude == 1


def test_verify_names_the_damaged_file(store: Path) -> None:
    file = store / "releases" / "two" / "index.faiss"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    error = parse_error(invoke("releases", "verify", "--store", store, "--json"))
    assert "index.faiss" in error["message"]


def test_error_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    options = ["recall", "--store", tmp_path / "nothing", "--user", 1]
    assert parse_error(invoke(*options, "--json"))["code"] == "StoreError"
    result = invoke(*options)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "is no store" in result.stderr


def test_wrong_usage_is_exit_code_2(store: Path) -> None:
    assert invoke("recall").exit_code == 2
    assert invoke("recall", "--store", store).exit_code == 2
    assert invoke("nonsense").exit_code == 2
    assert invoke("evaluate").exit_code == 2
    assert invoke("evaluate", "--run", store, "--store", store).exit_code == 2
    assert invoke("reindex", "--store", store, "--engine", "nonsense").exit_code == 2


def test_error_of_the_start_of_a_service_is_one_object(tmp_path: Path) -> None:
    assert parse_error(invoke("serve", "--store", tmp_path / "nothing", "--port", 0, "--json"))["code"] == "StoreError"


def test_config_of_the_default_preset_is_that_without_one() -> None:
    assert invoke("config", "--preset", "auto").stdout == invoke("config").stdout


def test_damaged_release_is_left_out_of_the_list_with_a_warning(store: Path) -> None:
    (store / "releases" / "one" / "manifest.json").write_text("{")
    (store / "releases" / ".DS_Store").touch()
    result = invoke("releases", "list", "--store", store, "--json")
    assert [release["name"] for release in parse_result(result)["releases"]] == ["two"]
    assert result.stderr.count("a release is left out") == 2


def test_releases_are_listed_with_a_damaged_current(store: Path) -> None:
    """The error says to activate one of them."""
    (store / "CURRENT").write_text("x")
    result = invoke("releases", "list", "--store", store, "--json")
    listed = parse_result(result)
    assert (listed["current"], [release["name"] for release in listed["releases"]]) == (None, ["two", "one"])
    assert "no release is marked" in result.stderr


def test_sigterm_ends_a_command_like_an_exit() -> None:
    previous = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, exit_on_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is previous


def test_rollback_to_a_release_whose_golden_queries_fail_is_refused(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_release: Release) -> None:
        raise InvalidReleaseError("other answers", file="golden.npz")

    monkeypatch.setattr(Release, "check_golden_queries", fail)
    current = Store.open(store).get_current()
    assert "other answers" in parse_error(invoke("releases", "rollback", "--store", store, "--json"))["message"]
    assert Store.open(store).get_current() == current


def test_invalid_requests_have_an_error_code(store: Path, tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    for text, code in (("{", "bad_json"), ("[]", "bad_json"), ('{"k": 3}', "empty_query"), ('{"x": 1}', "invalid")):
        request.write_text(text)
        assert parse_error(invoke("recall", "--store", store, "--request", request, "--json"))["code"] == code


def test_unknown_config_key_is_named_by_its_path(tmp_path: Path) -> None:
    config = tmp_path / "vecall.toml"
    config.write_text((MOVIELENS_DIR / "vecall.toml").read_text() + "dimm = 3\n")
    error = parse_error(invoke("fit", config, "--run", tmp_path / "run", "--json"))
    assert "model.dimm" in error["message"]


@pytest.mark.parametrize(
    ("module", "arguments", "text"),
    [
        ("torch", ["fit", str(MOVIELENS_DIR / "vecall.toml"), "--run", "run"], "pip install 'vecall[train]'"),
        ("jinja2", ["serve", "--store", "store"], "pip install 'vecall[serve]'"),
        ("sqlite3", ["releases", "prune", "--keep", "1", "--store", "store"], "belongs to no extra of vecall"),
    ],
)
def test_missing_module_is_attributed_to_its_extra(
    tmp_path: Path, module: str, arguments: list[str], text: str
) -> None:
    code = f"import sys; sys.modules['{module}'] = None; from vecall.cli.app import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert f"requires {module}, which is not installed" in result.stderr
    assert text in result.stderr


def test_quickstart_prints_examples_metrics_and_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"model": 0.5, "popularity": 0.25}
    result = SimpleNamespace(
        release="first",
        evaluation=SimpleNamespace(
            results={
                name: SimpleNamespace(as_json=lambda recall=recall: {"seen_excluded": {"recall@10": recall}})
                for name, recall in models.items()
            },
            channels=None,
            ann_results=[SimpleNamespace(engine="hnsw", k=k, recall=0.99, p50_ms=0.1, p99_ms=0.2) for k in (100, 500)],
            route_summary="2 search the index",
        ),
        dssm=SimpleNamespace(seen_excluded={"recall@10": 0.125}),
        examples=[SimpleNamespace(user="user 1", history=("Alien", "Brazil"), final_list=("Metropolis",))],
        report_path=Path("out/report.html"),
        seconds_by_stage={"fit": 12.0},
    )
    monkeypatch.setattr(quickstart_module, "run_quickstart", lambda *_: result)
    printed = invoke("quickstart").stdout
    assert [" ".join(line.split()) for line in printed.splitlines()] == [
        "",
        "user 1",
        "watched, newest first final list",
        "Brazil Metropolis",
        "",
        "model recall over all items, seen items excluded",
        "recall @10",
        "model 0.500",
        "popularity 0.250",
        "dssm 0.125",
        "",
        "hnsw: ANN recall@100 0.9900, query latency 0.10 ms (p50), 0.20 ms (p99)",
        "2 search the index",
        "release first; report: out/report.html",
        "fit 12 s",
    ]


@pytest.mark.examples
def test_fit_publish_evaluate_recall(tmp_path: Path) -> None:
    """All steps on a small part of MovieLens, each command in a process of its own."""
    ratings, movies = read_subset(max_user_id=60)
    ratings.write_csv(tmp_path / "ratings.csv")
    movies.write_csv(tmp_path / "movies.csv")
    config, store = tmp_path / "vecall.toml", tmp_path / "store"
    example = (MOVIELENS_DIR / "vecall.toml").read_text().replace('preset = "auto"', 'preset = "pooled"')
    config.write_text(example + "[training]\nepochs = 2\n[index]\nengine = 'hnsw'\n")

    fitted = run_json("fit", config, "--run", tmp_path / "run")
    assert set(fitted) == {"run", "seconds", "metrics"}
    vectors = np.random.default_rng(0).standard_normal((2 * len(movies) + 1, 8))
    publish_vectors(store, list(range(len(vectors))), vectors, name="large")
    publish = ["publish", tmp_path / "run", "--store", store, "--name", "first"]
    error = parse_error(invoke(*publish, "--json"))
    assert error["code"] == "StoreError"
    assert "--allow-worse" in error["message"]
    published = run_json(*publish, "--allow-worse")
    assert (published["release"], published["items"], published["dim"]) == ("first", len(movies), 128)

    report = tmp_path / "report.html"
    evaluation = run_json("evaluate", "--store", store, "--config", config, "--report", report)
    assert {"protocol", "dropped", "model", "popularity", "ease", "index", "ann"} <= set(evaluation)
    for name in ("model", "popularity", "ease", "index"):
        assert evaluation["with_history"][name] == evaluation[name]  # with this split all test users have a history
    assert set(evaluation["ann"]["paths"]) == {"index", "scan", "all", "popular"}
    assert sum(evaluation["ann"]["paths"].values()) == evaluation["ann"]["queries"]
    release_metrics, run_metrics = evaluation["model"]["seen_excluded"], fitted["metrics"]["seen_excluded"]
    for name in release_metrics:
        assert release_metrics[name] == pytest.approx(run_metrics[name], abs=0.05)
    assert "<svg" in report.read_text()

    recalled = run_json("recall", "--store", store, "--user", 1, "-k", 10)
    seen_ids = set(ratings.filter(pl.col("user_id") == 1)["item_id"])
    assert len(recalled["ids"]) == 10
    assert not seen_ids & set(recalled["ids"])


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_only_the_first_of_several_processes_prints_an_error_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str, lines: int
) -> None:
    for name, value in {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    result = invoke("fit", tmp_path / "none.toml", "--run", tmp_path / "run", "--json")
    assert (result.exit_code, len(result.stdout.splitlines())) == (1, lines)
    assert lines or "none.toml" in result.stderr


def test_code_of_an_error_is_its_public_class(capsys: pytest.CaptureFixture[str]) -> None:
    class InternalError(TrainingError):
        pass

    output._print_error(InternalError("x"), as_json=True)
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "TrainingError"


def test_json_is_utf_8_whatever_the_terminal_s_encoding(tmp_path):
    store = tmp_path / "größe"
    command = [sys.executable, "-m", "vecall", "releases", "list", "--store", str(store), "--json"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (1, b"")
    assert "größe" in json.loads(result.stdout.decode())["error"]["message"]


def test_full_stdout_is_reported_on_stderr(tmp_path):
    command = [sys.executable, "-m", "vecall", "releases", "list", "--store", str(tmp_path), "--json"]
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("vecall: ")
    assert "Traceback" not in result.stderr
