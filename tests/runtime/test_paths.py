"""Paths with unusual names, without permissions, or relative to a directory that the process has left."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from support import cli, synthetic

from vecall import open_recaller, publish_vectors
from vecall.config import load_config
from vecall.errors import ConfigError, DataError, StoreError, TrainingError, VecallError
from vecall.pipeline.evaluate import evaluate
from vecall.pipeline.fit import fit
from vecall.pipeline.publish import publish
from vecall.pipeline.run import Run, check_run_dir
from vecall.recall import recaller as recaller_module
from vecall.recall.query import Query
from vecall.release import store as store_module
from vecall.release.store import Store


def test_store_opened_by_a_relative_path_does_not_follow_the_working_directory(tmp_path, monkeypatch):
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


def test_paths_with_glob_characters_are_not_patterns(tmp_path):
    directory = tmp_path / "a [b] *"
    directory.mkdir()
    synthetic.write_tables(directory)
    config = synthetic.make_config(directory, training={"epochs": 1})
    run, store, out = directory / "run[1]", directory / "store[1]", directory / "out[1].parquet"
    report, users = directory / "report[1].html", directory / "users.jsonl"
    fit(config, run)
    publish(run, store)
    users.write_text(json.dumps({"user_id": "user-1"}) + "\n")
    result = cli.invoke("batch", "--store", store, "--users", users, "--out", out)
    assert result.exit_code == 0, result.output
    assert pl.read_parquet(out, glob=False).height == 1
    result = cli.invoke("evaluate", "--run", run, "--report", report, "--json")
    assert result.exit_code == 0, result.output
    assert report.exists()
    with open_recaller(store, writable=True, auto_compact=False) as recaller:
        recaller.upsert([{"id": synthetic.make_item_id(1), "fields": {"year": 3}}], partial=True)
    assert cli.invoke("compact", "--store", store).exit_code == 0
    assert config.as_json()["data"]["items"] == str(directory / "items.csv")


NON_UTF8_NAME = os.fsdecode(b"caf\xe9")


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
def test_path_that_is_not_utf8_raises(tmp_path, call):
    with pytest.raises(ConfigError, match=r"caf\\udce9.*not UTF-8"):
        call(tmp_path / NON_UTF8_NAME)


def test_table_whose_name_is_not_utf8_raises(tmp_path):
    synthetic.write_tables(tmp_path)
    path = tmp_path / f"{NON_UTF8_NAME}.csv"
    synthetic.make_config(tmp_path).data.interactions[0].rename(path)
    config = synthetic.make_config(tmp_path, data={"interactions": str(path)})
    with pytest.raises(DataError, match="cannot be read"):
        fit(config, tmp_path / "run")


def test_command_line_reports_a_path_that_is_not_utf8(tmp_path):
    command = [sys.executable, "-m", "vecall", "recall", "--store", str(tmp_path / NON_UTF8_NAME), "--user", "1"]
    for options in ((), ("--json",)):
        completed = subprocess.run([*command, *options], capture_output=True, check=False)
        assert completed.returncode == 1
        assert b"Traceback" not in completed.stderr
        assert b"not UTF-8" in completed.stdout + completed.stderr


@pytest.fixture
def inaccessible_dir(tmp_path):
    """A directory that the process must not access; a test run by root becomes another user."""
    directory = tmp_path / "closed"
    directory.mkdir()
    publish_vectors(directory / "store", [1], np.eye(1))
    (directory / "vecall.toml").write_text("[data]\n")
    (directory / "users.csv").write_text("user_id\n1\n")
    is_root = os.geteuid() == 0
    directory.chmod(0)
    if is_root:
        os.seteuid(65534)
    yield directory
    if is_root:
        os.seteuid(0)
    directory.chmod(0o700)


def test_missing_permissions_raise_the_error_of_each_part(inaccessible_dir):
    for error, call in (
        (StoreError, lambda: open_recaller(inaccessible_dir / "store")),
        (StoreError, lambda: publish_vectors(inaccessible_dir / "other", [1], np.eye(1))),
        (ConfigError, lambda: load_config(inaccessible_dir / "vecall.toml")),
        (TrainingError, lambda: Run.open(inaccessible_dir / "run")),
        (TrainingError, lambda: check_run_dir(inaccessible_dir / "run", None)),
    ):
        with pytest.raises(error, match=r"[Pp]ermission"):
            call()


def test_release_published_after_the_clock_went_back_is_the_newest(tmp_path, monkeypatch, caplog):
    """Otherwise `prune` would delete it."""

    def set_clock(hour):
        class FixedClock(datetime):
            @classmethod
            def now(cls, zone):
                assert zone is UTC
                return datetime(2030, 1, 1, hour, tzinfo=UTC)

        monkeypatch.setattr(store_module, "datetime", FixedClock)

    for hour, name in ((12, "first"), (13, "second"), (5, "third"), (6, "fourth")):
        set_clock(hour)
        publish_vectors(tmp_path, [1], np.eye(1), name=name, activate=name == "first")
    store = Store.open(tmp_path)
    assert [manifest.name for manifest in store.list_releases()] == ["fourth", "third", "second", "first"]
    assert "the clock is behind release second" in caplog.text
    assert store.prune(1) == ["third", "second"]
    assert [manifest.name for manifest in store.list_releases()] == ["fourth", "first"]


def test_os_error_is_reported_in_one_line(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(5, "Input/output error", "/dev/somewhere")

    monkeypatch.setattr(recaller_module, "open_recaller", fail)
    result = cli.invoke("recall", "--store", tmp_path, "--user", "1", "--json")
    assert result.exit_code == 1
    assert "Input/output error" in json.loads(result.stdout)["error"]["message"]
    assert issubclass(StoreError, VecallError)
