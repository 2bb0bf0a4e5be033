"""The quickstart: its output on a few users, and in `make slow` its metrics on all of them."""

from pathlib import Path

import pytest
from support.cli import run_json
from support.movielens import MOVIELENS_DIR, read_subset

from vecall.config import load_config, parse_config
from vecall.errors import ConfigError
from vecall.quickstart.movielens import build_settings, find_data_dir
from vecall.quickstart.run import _clear_output_dir, run_quickstart

METRICS = ["recall@10", "recall@50", "recall@100", "recall@200", "recall@500", "ndcg@10", "coverage@10"]


@pytest.mark.examples
def test_quickstart_writes_run_store_and_report(tmp_path: Path) -> None:
    """On 40 users, with the column names of MovieLens itself."""
    data_dir, output_dir = tmp_path / "data", tmp_path / "out"
    data_dir.mkdir()
    ratings, movies = read_subset(max_user_id=40)
    ratings.rename({"user_id": "userId", "item_id": "movieId"}).write_csv(data_dir / "ratings.csv")
    movies.rename({"item_id": "movieId"}).write_csv(data_dir / "movies.csv")
    result = run_json("quickstart", "--out", output_dir, "--data", data_dir)
    assert {"release", "model", "merged", "popularity", "ease", "dssm", "ann", "paths", "report"} <= set(result)
    for name in ("model", "merged", "popularity", "ease", "dssm"):
        assert list(result[name]) == METRICS
    assert set(result["ann"]) == {"k", "recall", "p50_ms", "p99_ms", "engine"}
    assert sum(result["paths"].values()) == 40
    assert {path.name for path in output_dir.iterdir()} == {"run", "store", "dssm", "report.html"}
    page = (output_dir / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 6
    assert "dssm" in page
    assert "<h2>Choice of the preset" in page


def test_output_directory_with_other_files_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        run_quickstart(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_runs_and_stores_of_others_are_not_deleted(tmp_path: Path) -> None:
    for name in ("run", "store"):
        (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=r"holds \['run', 'store'\]"):
        run_quickstart(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "store"}


def test_output_of_an_earlier_quickstart_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run", "store", "dssm"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").write_text("")
    (tmp_path / "report.html").write_text("")
    _clear_output_dir(Path())  # `--out .`
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*")] == [Path("dssm")]


def test_output_path_of_a_file_raises(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(ConfigError, match="is a file; choose another --out"):
        run_quickstart(path)
    assert path.exists()


def test_missing_data_raise(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--data"):
        find_data_dir(tmp_path)


def test_settings_equal_those_of_the_example() -> None:
    assert parse_config(build_settings(MOVIELENS_DIR)) == load_config(MOVIELENS_DIR / "vecall.toml")


@pytest.mark.slow
def test_model_beats_the_baselines_and_index_reaches_its_target(tmp_path: Path) -> None:
    result = run_json("quickstart", "--out", tmp_path / "out")
    recall = {name: result[name]["recall@100"] for name in ("model", "popularity", "ease", "dssm")}
    assert recall["model"] >= 0.43
    assert recall["model"] > max(recall["popularity"], recall["ease"], recall["dssm"])
    assert result["ann"]["engine"] in ("hnsw", "ivf")  # whichever is faster on this machine
    assert result["ann"]["k"] == 100
    assert result["ann"]["recall"] >= 0.98
