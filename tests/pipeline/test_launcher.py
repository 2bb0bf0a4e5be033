"""`fit` with two processes: its result, and the end of all processes when something fails."""

import json
import logging
import os
import signal
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from support import synthetic

from vecall import progress
from vecall.errors import ConfigError, DataError, InvalidReleaseError, StoreError, TrainingError
from vecall.pipeline import launcher
from vecall.pipeline.fit import fit
from vecall.pipeline.launcher import launch_fit
from vecall.pipeline.run import METRICS_FILE, Run
from vecall.pipeline.worker_order import WorkerError
from vecall.training.data import TooLittleDataError
from vecall.training.distributed import LostProcessError

TRAINING = {"devices": 2, "epochs": 30, "patience": 30}

# In place of the real worker, which takes seconds to load torch. `act` comes after this.
STUB = """
import json, os, pathlib, signal, sys, threading, time
order = json.loads(sys.stdin.readline())
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
rank, run_dir = int(os.environ["RANK"]), pathlib.Path(order["run_dir"])
(run_dir / f"{rank}.pid").write_text(str(os.getpid()))

def fail(kind, message):
    pathlib.Path(order["error_path"]).write_text(json.dumps({"type": kind, "message": message}))
    sys.exit(1)

def send(*event):
    os.write(order["event_descriptor"], json.dumps(event).encode() + b"\\n")
"""


@pytest.fixture
def run_stub(monkeypatch, tmp_path):
    """Function that runs a source as each of two workers; it must leave no process and no output behind."""
    synthetic.write_tables(tmp_path)
    config = synthetic.make_config(tmp_path, training=TRAINING)
    log_dir = tmp_path / "logs"
    monkeypatch.setattr(launcher.tempfile, "mkdtemp", lambda **_: log_dir.mkdir() or str(log_dir))

    def run(source):
        command = (sys.executable, "-c", STUB + textwrap.dedent(source))
        monkeypatch.setattr(launcher, "_WORKER_COMMAND", command)
        launch_fit(config, tmp_path, None)

    return run


def is_alive(pid_path):
    try:
        os.kill(int(pid_path.read_text()), 0)
    except ProcessLookupError:
        return False
    return True


def test_workers_get_ranks_an_address_and_a_share_of_the_cores(run_stub, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(7))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")  # with which no process would open the store
    run_stub("(run_dir / f'{rank}.json').write_text(json.dumps(dict(os.environ)))")
    variables = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [own["RANK"] for own in variables] == [own["LOCAL_RANK"] for own in variables] == ["0", "1"]
    assert {own["WORLD_SIZE"] for own in variables} == {own["LOCAL_WORLD_SIZE"] for own in variables} == {"2"}
    assert len({(own["MASTER_ADDR"], own["MASTER_PORT"]) for own in variables}) == 1
    assert {own["OMP_NUM_THREADS"] for own in variables} == {"3"}
    assert not any(name.startswith("TORCHELASTIC_") for own in variables for name in own)
    assert not (tmp_path / "logs").exists()


def test_progress_and_log_of_the_first_worker_are_reported_here(run_stub, caplog):
    events = []

    class Listener:
        def start_task(self, task, total):
            events.append((task, total))
            return lambda steps=1, note="": events.append((steps, note))

        def stop_task(self):
            events.append("stop")

        def write_line(self, text):
            events.append(text)

    with progress.report_to(Listener()), caplog.at_level(logging.INFO, logger="vecall"):
        run_stub(
            """
            if rank == 0:
                send("start", "epoch 1", 8); send("advance", 3, "fast"); send("log", "vecall.x", 20, "50 % done")
                send("stop"); send("line", "9 items"); send("start", "epoch 2", 8)
            """
        )
    assert events == [("epoch 1", 8), (3, "fast"), "stop", "9 items", ("epoch 2", 8), "stop"]
    assert [(record.name, record.message) for record in caplog.records] == [("vecall.x", "50 % done")]


def test_killed_worker_is_named_and_ends_the_others(run_stub, tmp_path):
    with pytest.raises(TrainingError, match=r"(?s)process 1 of 2 .* SIGKILL .*same command resumes.*\nout of cheese$"):
        run_stub(
            """
            if rank == 1:
                print("out of cheese", flush=True)
                time.sleep(.3)
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
            """
        )
    assert not is_alive(tmp_path / "0.pid")
    assert (tmp_path / "logs" / "1.log").read_text() == "out of cheese\n"


def test_error_of_a_worker_is_raised_and_not_the_lost_connections_of_the_others(run_stub, tmp_path):
    with pytest.raises(DataError, match=r"^taken\.csv: no$"):
        run_stub(
            """
            if rank == 1:
                time.sleep(.5)
                fail("DataError", "taken.csv: no")
            fail("LostProcessError", "another process has ended")
            """
        )
    assert not (tmp_path / "logs").exists()


def test_error_of_a_worker_keeps_its_class_or_the_nearest_known_one():
    for error, kept in ((TooLittleDataError("x"), TrainingError), (LostProcessError("x"), LostProcessError)):
        assert type(WorkerError.from_exception(error).to_exception()) is kept
    assert type(WorkerError.from_exception(InvalidReleaseError("x", file="y")).to_exception()) is StoreError


def test_interrupt_ends_all_workers(run_stub, tmp_path, monkeypatch):
    def interrupt_when_both_run(*_):
        paths = [tmp_path / f"{rank}.pid" for rank in range(2)]
        if all(path.exists() and path.read_text() for path in paths):  # a file exists before it is written
            raise KeyboardInterrupt

    monkeypatch.setattr(launcher.EventReceiver, "receive", interrupt_when_both_run)
    with pytest.raises(KeyboardInterrupt):
        run_stub("time.sleep(60)")
    assert not any(is_alive(tmp_path / f"{rank}.pid") for rank in range(2))


def test_sigterm_ends_all_workers_and_leaves_no_logs(run_stub, tmp_path, monkeypatch):
    def terminate_when_both_run(*_):
        paths = [tmp_path / f"{rank}.pid" for rank in range(2)]
        if all(path.exists() and path.read_text() for path in paths):
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(launcher.EventReceiver, "receive", terminate_when_both_run)
    with pytest.raises(SystemExit) as caught:
        run_stub("time.sleep(60)")
    assert caught.value.code == 143
    assert not any(is_alive(tmp_path / f"{rank}.pid") for rank in range(2))
    assert not (tmp_path / "logs").exists()


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


@pytest.mark.examples
def test_killed_fit_of_two_processes_resumes_and_has_the_losses_of_one(tmp_path, monkeypatch):
    synthetic.write_tables(tmp_path)
    run_dir = tmp_path / "run"
    monkeypatch.setattr(launcher.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TEST_RUN", str(run_dir))
    config = synthetic.make_config(tmp_path, training=TRAINING)
    metrics_path = run_dir / METRICS_FILE

    def kill_after_two_epochs():
        wait_until(lambda: metrics_path.exists() and metrics_path.read_text().count("\n") >= 2)
        os.kill(list_workers(run_dir)[1], signal.SIGKILL)

    killer = threading.Thread(target=kill_after_two_epochs)
    killer.start()
    with pytest.raises(TrainingError, match=r"process 1 of 2 .* killed by SIGKILL"):
        fit(config, run_dir)
    killer.join()
    assert not list_workers(run_dir)
    with pytest.raises(TrainingError, match="unfinished"):
        Run.open(run_dir)

    run = fit(config, run_dir)
    alone = fit(synthetic.make_config(tmp_path, training=TRAINING | {"devices": 1}), tmp_path / "alone")
    losses, losses_alone = ([epoch["loss"] for epoch in one.read_epoch_metrics()] for one in (run, alone))
    assert len(losses) == 30
    assert losses[:3] == pytest.approx(losses_alone[:3], abs=1e-4)
    assert run.summary.metrics["seen_excluded"]["recall@10"] > 0.9


def test_devices_that_contradict_the_started_processes_are_an_error(tmp_path, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    synthetic.write_tables(tmp_path)
    with pytest.raises(ConfigError, match=r"training\.devices"):
        fit(synthetic.make_config(tmp_path, training=TRAINING | {"devices": 3}), tmp_path / "run")
