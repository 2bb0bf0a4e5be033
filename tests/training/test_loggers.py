"""Experiment loggers: the metrics of every epoch, in the run's directory, without a change of the training."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import Logger
from support import synthetic

from vecall.errors import ConfigError, TrainingError
from vecall.pipeline.fit import fit
from vecall.training import loggers
from vecall.training.fit import train
from vecall.training.settings import TrainingSettings

METRICS = {"loss", "valid_score", "valid_ndcg@10", "seconds"}


def make_settings(**others):
    return TrainingSettings(**{"epochs": 3, "batch": 64, "lr": 0.03} | others)


def validate(scorer):
    scores = scorer(synthetic.make_eval_cases())(0, synthetic.ITEMS)
    return {"valid_score": float(scores.std()), "valid_ndcg@10": float(np.abs(scores).mean())}


def fit_towers(directory, **settings):
    training_data = synthetic.make_training_data()
    return train(
        training_data, synthetic.make_model_settings(), make_settings(**settings), directory, validate=validate
    )


def read_lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def assert_equal_weights(result, expected):
    weights, expected_weights = result.towers.state_dict(), expected.towers.state_dict()
    assert all(torch.equal(weights[name], expected_weights[name]) for name in expected_weights)


def read_tensorboard(directory):
    """Values by metric and step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in events.Tags()["scalars"]}


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs the extra tensorboard")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_has_the_metrics_of_every_epoch_and_training_is_unchanged(tmp_path):
    plain = fit_towers(tmp_path / "plain")
    assert {path.name for path in (tmp_path / "plain").iterdir()} >= {"metrics.jsonl", "last.ckpt"}
    assert not (tmp_path / "plain" / "tensorboard").exists()
    logged = fit_towers(tmp_path / "logged", logger="tensorboard")
    assert_equal_weights(logged, plain)
    lines = read_lines(tmp_path / "logged")
    assert [line["loss"] for line in lines] == [line["loss"] for line in read_lines(tmp_path / "plain")]
    values = read_tensorboard(tmp_path / "logged")
    assert values.keys() >= METRICS
    for name in METRICS:
        assert values[name] == {line["epoch"]: pytest.approx(line[name], rel=1e-5) for line in lines}


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mlflow", "sqlalchemy", "alembic")),
    reason="needs the extra mlflow",
)
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_the_metrics_of_every_epoch_in_one_run(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from mlflow.tracking import MlflowClient

    plain = fit_towers(tmp_path / "plain")
    logged = fit_towers(tmp_path / "logged", logger="mlflow")
    assert_equal_weights(logged, plain)
    fit_towers(tmp_path / "logged", logger="mlflow")  # resumed after its end: the same run, no further epoch
    client = MlflowClient(f"sqlite:///{tmp_path / 'logged' / 'mlflow' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("vecall").experiment_id])
    assert run.info.run_name == "logged"
    assert run.data.params["training/batch"] == "64"
    for line in read_lines(tmp_path / "logged"):
        for name in METRICS:
            history = client.get_metric_history(run.info.run_id, name.replace("@", "_at_"))
            values = {metric.step: metric.value for metric in history}
            assert values[line["epoch"]] == pytest.approx(line[name], rel=1e-5)


class BrokenLogger(Logger):
    """A logger of a server that stops answering at some method."""

    name = version = "broken"

    def __init__(self, method):
        self._method = method

    def _call(self, method):
        if method == self._method:
            raise ConnectionError("no route to host")

    def log_hyperparams(self, params, *args, **kwargs):
        self._call("log_hyperparams")

    def log_metrics(self, metrics, step=None):
        self._call("log_metrics")

    def finalize(self, status):
        self._call("finalize")


@pytest.mark.parametrize(("method", "count"), [("log_metrics", 3), ("finalize", 1)])
def test_a_logger_that_fails_is_a_warning_and_training_goes_on(tmp_path, monkeypatch, caplog, method, count):
    plain = fit_towers(tmp_path / "plain")
    monkeypatch.setattr(loggers, "check_logger_installed", lambda name: None)
    monkeypatch.setattr(loggers, "_build_lightning_logger", lambda *_: BrokenLogger(method))
    assert_equal_weights(fit_towers(tmp_path / "logged", logger="mlflow"), plain)
    assert caplog.text.count("no route to host; metrics.jsonl has all metrics") == count
    assert len(read_lines(tmp_path / "logged")) == 3


def test_a_logger_that_cannot_be_started_is_an_error_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "check_logger_installed", lambda name: None)
    monkeypatch.setattr(loggers, "_build_lightning_logger", lambda *_: BrokenLogger("log_hyperparams"))
    with pytest.raises(TrainingError, match=r"'mlflow' cannot be started: no route to host; check its server"):
        fit_towers(tmp_path, logger="mlflow")


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_missing_extra_is_an_error_before_tables_are_read(tmp_path, monkeypatch, name):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda module: None)
    config = synthetic.make_config(tmp_path, training={"logger": name})  # whose tables do not exist
    with pytest.raises(
        ConfigError, match=rf"training.logger: '{name}' requires {name}.*pip install 'vecall\[{name}\]'"
    ):
        fit(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.examples
def test_without_a_logger_no_package_of_loggers_is_loaded(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom tests.training.test_loggers import fit_towers\n"
        f"fit_towers(Path({str(tmp_path / 'run')!r}))\n"
        "sys.exit(bool({'tensorboard', 'mlflow'} & sys.modules.keys()))"
    )
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}
    completed = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, check=False, capture_output=True
    )
    assert completed.returncode == 0, completed.stderr
