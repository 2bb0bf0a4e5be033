"""`fit` with two processes: its result, and the end of all processes when something fails."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from support import synthetic

from vecall.errors import ConfigError, DataError, TrainingError
from vecall.pipeline.fit import fit
from vecall.pipeline.run import METRICS_FILE, Run

TRAINING = {"devices": 2, "epochs": 30, "patience": 30}


def list_workers(run_dir):
    """Process ids by rank of the workers of a fit, from the environments in /proc."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
            variables = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"vecall.pipeline.fit_worker" in command and f"TEST_RUN={run_dir}".encode() in variables:
            ranks = [variable for variable in variables if variable.startswith(b"RANK=")]
            found[int(ranks[0].removeprefix(b"RANK="))] = int(process.name)
    return found


def wait_until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def tables_dir(tmp_path, monkeypatch):
    synthetic.write_tables(tmp_path)
    monkeypatch.setenv("TEST_RUN", str(tmp_path / "run"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def test_killed_process_ends_the_others_with_one_error_and_the_same_fit_resumes(tables_dir):
    run_dir = tables_dir / "run"
    config = synthetic.make_config(tables_dir, training=TRAINING)
    metrics_path = run_dir / METRICS_FILE

    def kill_after_an_epoch():
        wait_until(lambda: metrics_path.exists() and metrics_path.read_text().count("\n") >= 2)
        os.kill(list_workers(run_dir)[1], signal.SIGKILL)

    killer = threading.Thread(target=kill_after_an_epoch)
    killer.start()
    with pytest.raises(TrainingError, match=r"(?s)process 1 of 2 .* killed by SIGKILL .*same command resumes"):
        fit(config, run_dir)
    killer.join()
    assert not list_workers(run_dir)

    with pytest.raises(TrainingError, match="unfinished"):
        Run.open(run_dir)
    run = fit(config, run_dir)
    assert run.summary.epochs == 30
    alone = fit(synthetic.make_config(tables_dir, training=TRAINING | {"devices": 1}), tables_dir / "alone")
    losses, losses_alone = ([epoch["loss"] for epoch in r.read_epoch_metrics()] for r in (run, alone))
    assert losses[:3] == pytest.approx(losses_alone[:3], abs=1e-4)
    assert run.summary.metrics["seen_excluded"]["recall@10"] > 0.9


def test_error_of_a_process_is_raised_as_by_a_single_one(tables_dir):
    (tables_dir / "taken.csv").write_text("user,item,time\n")
    with pytest.raises(DataError, match=r"taken\.csv"):
        fit(synthetic.make_config(tables_dir, training=TRAINING), tables_dir / "run")
    assert not list_workers(tables_dir / "run")


def test_devices_that_contradict_torchrun_are_an_error(tables_dir, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"training\.devices"):
        fit(synthetic.make_config(tables_dir, training=TRAINING | {"devices": 3}), tables_dir / "run")
