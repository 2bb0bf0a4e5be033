"""The accuracy benchmarks: conversions, kept results, peers' lists, and whole runs on tiny tables (`make examples`)."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecall.config import parse_config
from vecall.data.dataset import read_dataset
from vecall.evaluation.evaluator import evaluate_scorer

BENCHMARKS_DIR = Path(__file__).parents[1] / "benchmarks"
N_USERS, N_ITEMS = 40, 60

pytestmark = [pytest.mark.examples, pytest.mark.usefixtures("benchmarks_path")]


@pytest.fixture
def benchmarks_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the package `harness` importable."""
    monkeypatch.syspath_prepend(BENCHMARKS_DIR)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steam, Book-Crossing and citeulike-a in their own formats, of 40 users and 60 items each."""
    directory = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lists = [rng.permutation(N_ITEMS)[:12] + 1 for _ in range(N_USERS)]
    pairs = [(user, item) for user, items in enumerate(lists) for item in items]
    rows = "".join(f"{user}\t{item}\t1.0\n" for user, item in [*pairs, pairs[0]])  # a purchase listed twice
    titles = "".join(f'{item}\tThe "{item}\n' for item in range(1, N_ITEMS + 1))  # an open quotation mark
    books = "".join(f'{item}\tISBN\tThe "{item}\tAuthor\t1999\tPublisher\n' for item in range(1, N_ITEMS + 1))
    files = {
        "steam/game_purchase.dat": f"User_ID\tGame_ID\tPurchase\n{rows}",
        "steam/item_info.dat": f"Game_ID\tGame Name\n{titles}",
        "book-crossing/book_history.dat": f"user\titem\taccessed\n{rows.removesuffix(rows.splitlines()[-1] + chr(10))}",
        "book-crossing/items_info.dat": f"Book_ID\tISBN\tBook-Title\tBook-Author\tYear\tPublisher\n{books}",
        "citeulike-a/users.dat": "".join(f"12 {' '.join(map(str, items - 1))}\n" for items in lists),
        "citeulike-a/item-tag.dat": "0\n" + "2 7 8\n" * (N_ITEMS - 1),
    }
    for name, text in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8")
    return directory


def run_command(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(BENCHMARKS_DIR / name), run_name="__main__")


@pytest.mark.parametrize("name", ["steam", "book-crossing", "citeulike-a"])
def test_set_is_converted_whole_and_split_at_random(name: str, data_dir: Path, tmp_path: Path) -> None:
    from harness.accuracy.datasets import DATASETS

    config = parse_config(DATASETS[name].build_settings(data_dir / DATASETS[name].directory, tmp_path))
    dataset = read_dataset(config.data, config.schema_)
    assert len(dataset.interactions.users) == N_USERS * 12
    assert len(dataset.catalogue.items) == N_ITEMS
    split = dataset.split(config.data)
    assert (len(split.test.targets.values), len(split.valid.targets.values)) == (N_USERS, N_USERS)
    assert len(split.train.values) == N_USERS * 10
    assert (split.test.histories.values == split.train.values).all()
    if "title" in dataset.catalogue.item_attributes.columns:
        assert dataset.catalogue.item_attributes["title"][1] == 'The "2'


def test_kept_result_is_that_of_present_settings_unless_a_key_of_the_model_differs() -> None:
    from harness.kept_results import is_same_model

    present = {
        "model": {"preset": "pooled", "dim": 64, "history": {"length": 50}},
        "training": {"lr": 0.1, "hidden_share": 0.5, "devices": 2, "precision": "bf16", "logger": "mlflow"},
    }
    kept = {"model": present["model"], "training": {"lr": 0.1}}  # before `hidden_share`, whose default is 0.5
    assert is_same_model(kept, present)
    assert not is_same_model(kept, present | {"training": {"lr": 0.1, "hidden_share": 0.3}})
    assert not is_same_model(kept, present | {"training": {"lr": 0.2}})
    assert not is_same_model(kept, present | {"model": {"preset": "pooled", "dim": 64, "history": {"length": 9}}})
    assert not is_same_model(kept | {"training": {"lr": 0.1, "former_key": 1}}, present)
    for loss in ("auto", "sampled_softmax"):  # the former has no negatives for the data sets of the benchmarks
        few, many = ({"model": {}, "training": {"loss": loss, "negatives": {"uniform": n}}} for n in (8, 9))
        assert is_same_model(few, many) == (loss == "auto")


def test_kept_results_of_the_repository_have_the_settings_of_their_preset() -> None:
    from harness.environment import extract_model_settings
    from harness.kept_results import is_same_model

    schema: dict[str, Any] = {
        "interactions": {"user": "u", "item": "i"},
        "items": {"id": "i", "id_type": "integer"},
        "users": {"id": "u", "id_type": "integer"},
    }
    kept = json.loads((BENCHMARKS_DIR / "results" / "accuracy" / "beauty-sequence-1.json").read_text(encoding="utf-8"))
    config = parse_config(
        {"data": {"interactions": "i", "items": "t"}, "schema": schema, "model": {"preset": "sequence"}}
    )
    present = extract_model_settings(config)
    present["training"]["seed"] = 1
    assert is_same_model(kept["settings"], present)


def test_goal_is_relative_to_the_best_of_its_baselines() -> None:
    from harness.accuracy.goals import Goal
    from harness.accuracy.metric_tables import format_goal

    results = [{"model": {"seen_excluded": {"recall@100": value}}} for value in (0.5, 0.7)]
    names = {"ease": 0.4, "popularity": 0.8}
    baselines = {name: {"seen_excluded": {"recall@100": value}} for name, value in names.items()}
    by_ease, by_best = (Goal("recall@100", 1.0, 1.05, relative_to) for relative_to in (("ease",), tuple(names)))
    assert format_goal(by_ease, results, baselines)[1:] == ["1.500", "1.000", "reached", "1.050"]
    assert format_goal(by_best, results, baselines)[1:4] == ["0.750", "1.000", "missed"]
    assert format_goal(Goal("recall@100", 0.6), results, baselines)[1:] == ["0.6000", "0.6000", "reached", ""]


def test_accuracy_measures_each_set_beside_its_baselines_and_keeps_the_results(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", data_dir, "--sets", "steam", "beauty", "--seeds", 0, 1, "--out", tmp_path]
    run_command(monkeypatch, "accuracy.py", *options)
    output = capsys.readouterr().out
    assert "steam, auto, seed 1" in output
    assert "beauty is left out" in output
    assert "steam, model by baseline" in output
    results = [json.loads((tmp_path / f"steam-auto-{seed}.json").read_text()) for seed in (0, 1)]
    assert [result["settings"]["training"]["seed"] for result in results] == [0, 1]
    assert ["index" in result for result in results] == [True, False]
    assert all(result["fit_seconds"] >= result["seconds"] for result in results)
    presets = [result["chosen_preset"] for result in results]
    assert [result["selection"]["preset"] for result in results] == presets
    assert f"Presets: {', '.join(presets)}." in output
    baselines = json.loads((tmp_path / "steam-baselines.json").read_text())
    assert {"ease", "cooccurrence", "popularity", "notes", "facts"} <= baselines.keys()
    run_command(monkeypatch, "accuracy.py", *options)
    assert "steam, auto, seed" not in capsys.readouterr().out  # everything is kept


def test_lists_of_a_peer_have_the_recall_of_their_scores(data_dir: Path, tmp_path: Path) -> None:
    from harness.accuracy.datasets import DATASETS
    from harness.accuracy.peer_process import evaluate_lists, write_split
    from harness.accuracy.peers.cases import PeerCases, TimedSearch, compute_recall, pad_left, rank_unseen

    config = parse_config(DATASETS["steam"].build_settings(data_dir / "steam", tmp_path))
    dataset = read_dataset(config.data, config.schema_)
    split = dataset.split(config.data)
    write_split(split, N_ITEMS, tmp_path / "split.npz")
    cases = PeerCases.load(tmp_path / "split.npz")
    assert (cases.train.owners == split.train.segment_ids).all()
    assert pad_left(cases.train, 3)[0].tolist() == (split.train[0][-3:] + 1).tolist()

    scores = np.random.default_rng(0).permuted(np.tile(np.arange(N_ITEMS, dtype=np.float32), (N_USERS, 1)), axis=1)
    rows = rank_unseen(scores.copy(), cases.test_histories, 20)
    expected = evaluate_scorer(
        lambda batch: lambda start, stop: scores[batch.users, start:stop], split.test, N_ITEMS, (5, 20)
    )
    actual = evaluate_lists(rows, dataset, split, (5, 20))
    assert actual == pytest.approx(dict(expected.seen_excluded))
    assert compute_recall(rows, split.test.targets) == pytest.approx(expected.seen_excluded["recall@20"])

    search = TimedSearch(cases, seconds=0)
    assert search.has_time()  # for the first
    search.consider("random", lambda histories, users, k: rank_unseen(scores[users], histories, k))
    assert not search.has_time()
    search.consider("none", lambda histories, users, k: np.full((len(users), k), -1))
    search.save(tmp_path / "lists.npz")
    with np.load(tmp_path / "lists.npz") as arrays:
        assert (arrays["rows"][:, :20] == rows).all()
        assert [tried["tried"] for tried in json.loads(str(arrays["tried"]))] == ["random", "none"]


def test_peer_that_cannot_be_installed_is_left_out(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.accuracy import peer_process

    def fail(peer: peer_process.Peer, venv_dir: Path) -> Path:
        raise peer_process.PeerError(f"pip could not install {peer.packages[0]}")

    monkeypatch.setattr(peer_process, "install_peer", fail)
    options = ["--data", data_dir, "--sets", "steam", "--peers", "als", "--seconds", 1, "--out", tmp_path / "out"]
    run_command(monkeypatch, "accuracy_peers.py", "--venv", tmp_path / "venv", *options)
    assert "implicit, ALS is left out: pip could not install implicit" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_ranking_measures_planted_data_and_a_set_and_keeps_the_results(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", data_dir, "--sets", "steam", "beauty", "--planted-users", 400, "--out", tmp_path]
    run_command(monkeypatch, "ranking.py", *options)
    output = capsys.readouterr().out
    assert "beauty is left out" in output
    assert "steam, pooled, seed 0: NDCG@10 of 500 recalled" in output
    planted = json.loads((tmp_path / "planted.json").read_text())
    assert planted["crossing"]["ranked_ndcg"] >= 1.5 * planted["crossing"]["recall_ndcg"]
    assert planted["noise"]["info"]["name"] == "none"
    result = json.loads((tmp_path / "steam-pooled-0.json").read_text())
    assert ("test" in result) == (result["validation"]["info"]["name"] == "lightgbm")
    run_command(monkeypatch, "ranking.py", *options)
    assert "seed 0\n" not in capsys.readouterr().out  # everything is kept
