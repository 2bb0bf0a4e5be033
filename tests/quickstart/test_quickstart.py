"""The quickstart: on a few users for its shape, and in `make slow` in whole, with the figures it must reach."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from vecall.config import load_config, parse_config
from vecall.errors import ConfigError
from vecall.quickstart.movielens import build_settings, find_data_dir
from vecall.quickstart.run import run_quickstart

MOVIELENS = Path(__file__).parents[2] / "examples" / "movielens"
METRICS = ["recall@10", "recall@50", "recall@100", "recall@200", "recall@500", "ndcg@10", "coverage@10"]


def vecall(*arguments: object) -> dict[str, Any]:
    command = [
        sys.executable,
        "-c",
        "from vecall.cli.app import main; main()",
        "quickstart",
        *map(str, arguments),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    parsed = json.loads(done.stdout)
    assert isinstance(parsed, dict)
    return parsed


def test_it_tells_the_whole_story(tmp_path: Path) -> None:
    """On 40 users, with the column names that MovieLens itself uses."""
    data = tmp_path / "data"
    data.mkdir()
    ratings = pl.read_csv(MOVIELENS / "ratings.csv").filter(pl.col("user_id") <= 40)
    movies = pl.read_csv(MOVIELENS / "movies.csv").filter(pl.col("item_id").is_in(ratings["item_id"].implode()))
    ratings.rename({"user_id": "userId", "item_id": "movieId"}).write_csv(data / "ratings.csv")
    movies.rename({"item_id": "movieId"}).write_csv(data / "movies.csv")
    told = vecall("--out", tmp_path / "out", "--data", data)
    assert {"release", "model", "popularity", "ease", "founding_bce", "ann", "paths", "report"} <= set(told)
    for name in ("model", "popularity", "ease", "founding_bce"):
        assert list(told[name]) == METRICS
    assert set(told["ann"]) == {"k", "recall", "p50_ms", "p99_ms", "engine"}
    assert sum(told["paths"].values()) == 40
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"run", "store", "founding", "report.html"}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 5
    assert "founding_bce" in page


def test_it_deletes_nothing_of_others(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        run_quickstart(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_data_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--data"):
        find_data_dir(tmp_path)


def test_its_settings_are_those_of_the_example() -> None:
    assert parse_config(build_settings(MOVIELENS)) == load_config(MOVIELENS / "vecall.toml")


@pytest.mark.slow
def test_the_figures_that_it_must_reach(tmp_path: Path) -> None:
    told = vecall("--out", tmp_path / "out")
    recall = {name: told[name]["recall@100"] for name in ("model", "popularity", "ease", "founding_bce")}
    assert recall["model"] >= 0.43
    assert recall["model"] > max(recall["popularity"], recall["ease"], recall["founding_bce"])
    assert told["ann"]["engine"] in ("hnsw", "cells")  # whichever is quicker here
    assert told["ann"]["k"] == 100
    assert told["ann"]["recall"] >= 0.98
