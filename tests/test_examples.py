"""The examples run as they stand."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import synthetic
from support.movielens import MOVIELENS_DIR, read_subset

ROOT = Path(__file__).parents[1]


def run_example(*command, directory):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.examples
def test_own_towers_are_trained_published_and_recalled(tmp_path):
    output = run_example(ROOT / "examples" / "own_towers.py", "--epochs", "1", directory=tmp_path)
    assert "epoch 1: loss" in output
    assert "for user 1:" in output
    assert len(list((tmp_path / "own_towers" / "store" / "releases").iterdir())) == 1


@pytest.mark.examples
def test_torch_ranker_is_trained_on_what_recall_returns(published, tmp_path):
    rows = ["user_id,item_id,timestamp"]
    for user, sequence in enumerate(synthetic.make_user_sequences()):
        rows += [f"{user},{synthetic.make_item_id(item)},{time}" for time, item in enumerate(sequence)]
    (tmp_path / "interactions.csv").write_text("\n".join(rows))
    options = ["--store", published / "store", "--interactions", tmp_path / "interactions.csv", "--epochs", "20"]
    columns = ["--columns", "score", "history.cosine_last"]
    output = run_example(ROOT / "examples" / "torch_ranker.py", *options, *columns, directory=tmp_path)
    losses = [float(line.rpartition(" ")[2]) for line in output.splitlines() if "loss" in line]
    assert losses[-1] < losses[0]
    assert "ranking_score" in output


@pytest.mark.examples
@pytest.mark.parametrize("options", [[], ["--url", "http://127.0.0.1:1/score"]], ids=["service", "no service"])
def test_http_ranker_orders_by_a_service_or_else_as_recall(published, tmp_path, options):
    arguments = ["--store", published / "store", "--user", "user-1", *options]
    output = run_example(ROOT / "examples" / "http_ranker.py", *arguments, directory=tmp_path)
    assert ("recall's order" in output) == bool(options)
    assert "rank" in output


NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


def read_cells(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    return notebook["cells"]


def test_there_are_four_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["map_of_items", "own_towers", "own_vectors", "quickstart"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_no_stored_outputs(path):
    for cell in read_cells(path):
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.fixture(scope="module")
def small_examples(tmp_path_factory):
    """A copy of examples/ with a part of MovieLens that is quick to train on."""
    directory = tmp_path_factory.mktemp("examples")
    shutil.copytree(ROOT / "examples" / "notebooks", directory / "notebooks")
    shutil.copytree(MOVIELENS_DIR, directory / "movielens")
    ratings, movies = read_subset(max_user_id=120)
    ratings.write_csv(directory / "movielens" / "ratings.csv")
    movies.write_csv(directory / "movielens" / "movies.csv")
    return directory


@pytest.mark.examples
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, small_examples, tmp_path, monkeypatch):
    """Its code cells run in their order, in their own directory; they write into the temporary directory only."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("MPLBACKEND", "agg")
    before = set(small_examples.rglob("*"))
    cells = ["".join(cell["source"]) for cell in read_cells(path) if cell["cell_type"] == "code"]
    code = "\n\n".join(f"# cell {number}\n{cell}" for number, cell in enumerate(cells, 1))
    (tmp_path / "notebook.py").write_text(code, encoding="utf-8")
    run_example(tmp_path / "notebook.py", directory=small_examples / "notebooks")
    assert set(small_examples.rglob("*")) == before
