"""Folders whose names are odd, that may not be read, or that the process has left."""

import json
import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from support import synthetic
from typer.testing import CliRunner

from vecall import open_recaller, publish_vectors
from vecall.cli.app import app
from vecall.config import load_config
from vecall.errors import ConfigError, DataError, StoreError, TrainingError, VecallError
from vecall.pipeline.evaluate import evaluate
from vecall.pipeline.fit import fit
from vecall.pipeline.publish import publish
from vecall.pipeline.run import Run, create_or_resume_run
from vecall.recall.query import Query
from vecall.release.store import Store

QUERY = Query(vector=[1.0, 0.0, 0.0], k=2)


def vecall(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_a_store_that_was_opened_by_a_relative_path_stays_where_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    publish_vectors("store", [1, 2, 3], np.eye(3), name="one")
    publish_vectors("store", [1, 2, 3], np.eye(3), name="two", activate=False)
    with open_recaller("store", writable=True, auto_compact=False) as recaller:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        recaller.upsert([{"id": 4, "vector": [1, 1, 1]}])
        recaller.activate("two")
        assert 4 in recaller.recall(Query(vector=[1.0, 1.0, 1.0])).ids
    assert not list((tmp_path / "elsewhere").iterdir())


def test_brackets_and_stars_in_names_are_no_patterns(tmp_path):
    """Of every folder that a command reads or writes."""
    folder = tmp_path / "a [b] *"
    folder.mkdir()
    synthetic.write_tables(folder)
    settings = synthetic.make_config(folder, training={"epochs": 1}).as_json()
    run, store = folder / "run[1]", folder / "store[1]"
    fit(synthetic.make_config(folder, training={"epochs": 1}), run)
    publish(run, store)
    (folder / "users.jsonl").write_text(json.dumps({"user_id": "user-1"}) + "\n")
    done = vecall("batch", "--store", store, "--users", folder / "users.jsonl", "--out", folder / "out[1].parquet")
    assert done.exit_code == 0, done.output
    assert pl.read_parquet(folder / "out[1].parquet", glob=False).height == 1
    done = vecall("evaluate", "--run", run, "--report", folder / "report[1].html", "--json")
    assert done.exit_code == 0, done.output
    assert (folder / "report[1].html").exists()
    with open_recaller(store, writable=True, auto_compact=False) as recaller:
        recaller.upsert([{"id": synthetic.make_item_id(1), "fields": {"year": 3}}], partial=True)
    assert vecall("compact", "--store", store).exit_code == 0
    assert settings["data"]["items"] == str(folder / "items.csv")


ODD = os.fsdecode(b"caf\xe9")  # no UTF-8


@pytest.mark.parametrize(
    "call",
    [
        lambda path: publish_vectors(path, [1], np.eye(1)),
        lambda path: open_recaller(path),
        lambda path: load_config(path / "vecall.toml"),
        lambda path: fit(synthetic.make_config(path.parent), path),
        lambda path: evaluate(run=path),
        lambda path: publish(path, path.parent / "store"),
    ],
)
def test_paths_that_are_no_utf8_are_told(tmp_path, call):
    with pytest.raises(ConfigError, match=r"caf\\udce9.*not UTF-8"):
        call(tmp_path / ODD)


def test_a_table_that_is_not_utf8_by_name_is_told(tmp_path):
    synthetic.write_tables(tmp_path)
    (tmp_path / "taken.csv").rename(tmp_path / f"{ODD}.csv")
    config = synthetic.make_config(tmp_path, data={"interactions": str(tmp_path / f"{ODD}.csv")})
    with pytest.raises(DataError, match="cannot be read"):
        fit(config, tmp_path / "run")


def test_the_command_line_says_it_in_a_line(tmp_path):
    command = [sys.executable, "-m", "vecall", "recall", "--store", str(tmp_path / ODD), "--user", "1"]
    for options in ((), ("--json",)):
        done = subprocess.run([*command, *options], capture_output=True, check=False)
        assert done.returncode == 1
        assert b"Traceback" not in done.stderr
        assert b"not UTF-8" in done.stdout + done.stderr


@pytest.fixture
def nobody(tmp_path):
    """The rest of the test runs without the right to look into `tmp_path/closed`."""
    closed = tmp_path / "closed"
    closed.mkdir()
    publish_vectors(closed / "store", [1], np.eye(1))
    (closed / "vecall.toml").write_text("[data]\n")
    (closed / "users.csv").write_text("user_id\n1\n")
    root = os.geteuid() == 0
    closed.chmod(0)
    if root:
        os.seteuid(65534)
    yield closed
    if root:
        os.seteuid(0)
    closed.chmod(0o700)


def test_what_may_not_be_read_or_written_is_told(nobody):
    for error, call in (
        (StoreError, lambda: open_recaller(nobody / "store")),
        (StoreError, lambda: publish_vectors(nobody / "other", [1], np.eye(1))),
        (ConfigError, lambda: load_config(nobody / "vecall.toml")),
        (TrainingError, lambda: Run.open(nobody / "run")),
        (TrainingError, lambda: create_or_resume_run(nobody / "run", None)),
    ):
        with pytest.raises(error, match=r"[Pp]ermission"):
            call()


def test_a_clock_that_went_back_leaves_the_newest_release_the_newest(tmp_path, monkeypatch, caplog):
    """Else `prune` would delete it."""
    from datetime import UTC, datetime

    from vecall.release import store as stores

    def at(hour):
        class Clock(datetime):
            @classmethod
            def now(cls, zone):
                assert zone is UTC
                return datetime(2030, 1, 1, hour, tzinfo=UTC)

        monkeypatch.setattr(stores, "datetime", Clock)

    for hour, name in ((12, "first"), (13, "second"), (5, "third"), (6, "fourth")):
        at(hour)
        publish_vectors(tmp_path, [1], np.eye(1), name=name, activate=name == "first")
    store = Store.open(tmp_path)
    assert [one.name for one in store.list_releases()] == ["fourth", "third", "second", "first"]
    assert "the clock is behind release second" in caplog.text
    assert store.prune(1) == ["third", "second"]
    assert [one.name for one in store.list_releases()] == ["fourth", "first"]


def test_an_error_of_the_system_is_a_line_too(tmp_path, monkeypatch):
    from vecall.recall import recaller

    def fail(*_, **__):
        raise OSError(5, "Input/output error", "/dev/somewhere")

    monkeypatch.setattr(recaller, "open_recaller", fail)
    done = vecall("recall", "--store", tmp_path, "--user", "1", "--json")
    assert done.exit_code == 1
    assert "Input/output error" in json.loads(done.stdout)["error"]["message"]
    assert issubclass(StoreError, VecallError)
