"""Run directories: created, resumed, opened, and refused when damaged."""

import json
import shutil
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from support import synthetic

from vecall.errors import LockedError, TrainingError
from vecall.pipeline import run as run_module
from vecall.pipeline.run import (
    CONFIG_FILE,
    METRICS_FILE,
    SUMMARY_FILE,
    Run,
    TrainedModel,
    delete_checkpoints,
    enter_run_dir,
    read_run_config,
)

ID_TABLE = "item_id_embedding.weight"


@pytest.fixture
def run_dir(published, tmp_path):
    """A copy of a finished run, to be changed."""
    return shutil.copytree(published / "run", tmp_path / "run")


def test_finished_run_opens(run_dir, published):
    run = Run.open(str(run_dir))
    assert run.config == synthetic.make_config(published)
    assert (run.summary.refit, run.summary.epochs) == (False, 4)
    assert [metrics["epoch"] for metrics in run.read_epoch_metrics()] == [0, 1, 2, 3]
    assert not list(run_dir.rglob("*.ckpt"))
    assert not list(run_dir.rglob("*.pkl"))


def test_saved_model_loads_equal(run_dir, tmp_path):
    model = Run.open(run_dir).load_evaluated_model()
    assert not model.towers.training
    model.save(tmp_path / "saved")
    loaded = TrainedModel.load(tmp_path / "saved", model.towers.settings)
    assert all(torch.equal(x, loaded.state_dict()[name]) for name, x in model.state_dict().items())
    all_rows = np.arange(synthetic.ITEMS)
    assert loaded.vocabulary.item_id_map.to_ids(all_rows) == model.vocabulary.item_id_map.to_ids(all_rows)
    assert loaded.vocabulary.item_encoder.state == model.vocabulary.item_encoder.state
    assert loaded.vocabulary.user_encoder.state == model.vocabulary.user_encoder.state


def load_id_table(model):
    return model.state_dict()[ID_TABLE]


def test_final_model_is_the_refitted_one_if_there_is_one(run_dir):
    run = Run.open(run_dir)
    assert torch.equal(load_id_table(run.load_final_model()), load_id_table(run.load_evaluated_model()))
    refitted = run.load_evaluated_model()
    with torch.no_grad():
        refitted.towers.item_id_embedding.weight += 1
    refitted.save(run_dir / "refit")
    summary = run.summary.model_copy(update={"refit": True})
    (run_dir / SUMMARY_FILE).write_text(summary.model_dump_json())
    reopened = Run.open(run_dir)
    assert torch.equal(load_id_table(reopened.load_final_model()), load_id_table(refitted))
    assert not torch.equal(load_id_table(reopened.load_final_model()), load_id_table(reopened.load_evaluated_model()))


@pytest.mark.parametrize("file", ["weights.safetensors", "encoders.json", "ids.bytes.npy", "ids.offsets.npy"])
@pytest.mark.parametrize("content", [None, b"", b"{}"])
def test_damaged_model_raises(run_dir, file, content):
    (run_dir / "model" / file).unlink()
    if content is not None:
        (run_dir / "model" / file).write_bytes(content)
    with pytest.raises(TrainingError, match=r"(?s)cannot be read .*fit it again"):
        Run.open(run_dir).load_evaluated_model()


def test_weights_of_other_settings_raise(run_dir):
    with pytest.raises(TrainingError, match="cannot be read"):
        TrainedModel.load(run_dir / "model", synthetic.make_model_settings(dim=4))


def test_missing_damaged_and_unfinished_runs_raise(run_dir, tmp_path):
    with pytest.raises(TrainingError, match="no run here; create one with: vecall fit"):
        Run.open(tmp_path)
    (run_dir / SUMMARY_FILE).write_text("{}")
    with pytest.raises(TrainingError, match=r"summary\.json: is damaged"):
        Run.open(run_dir)
    (run_dir / SUMMARY_FILE).unlink()
    with pytest.raises(TrainingError, match="is unfinished; repeat its `vecall fit`"):
        Run.open(run_dir)
    (run_dir / CONFIG_FILE).write_text("{")
    with pytest.raises(TrainingError, match=r"config\.json: cannot be read"):
        read_run_config(run_dir)


def enter(run_dir, config):
    with ExitStack() as resources:
        enter_run_dir(run_dir, config, resources)


def test_run_directory_is_created_once_and_resumed(tmp_path, run_dir):
    config = synthetic.make_config(tmp_path)
    new_dir = tmp_path / "deep" / "run"
    enter(new_dir, config)
    assert {path.name for path in new_dir.iterdir()} == {CONFIG_FILE, "fit.lock"}
    assert read_run_config(new_dir) == config
    (new_dir / METRICS_FILE).write_text("")
    enter(new_dir, config)
    assert (new_dir / METRICS_FILE).exists()
    other = synthetic.make_config(tmp_path, training={"seed": 1})
    with pytest.raises(
        TrainingError, match=r"other settings \(training\.seed: 0 there, 1 here\); restore them to resume"
    ):
        enter(new_dir, other)
    with pytest.raises(TrainingError, match="holds a finished run"):
        enter(run_dir, config)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "thesis.md").write_text("do not touch")
    (tmp_path / "file").write_text("do not touch")
    for path in (tmp_path / "docs", tmp_path / "file"):
        with pytest.raises(TrainingError, match="is neither empty nor a run"):
            enter(path, config)
    (tmp_path / "empty").mkdir()
    enter(tmp_path / "empty", config)


def test_run_directory_of_a_fit_that_trained_nothing_is_new(tmp_path):
    enter(tmp_path / "run", synthetic.make_config(tmp_path, training={"seed": 1}))
    for name in ("data.json", "trained_interactions.npy", "plan.json", "threads.json"):  # of other data and settings
        (tmp_path / "run" / name).write_text("{}")
    config = synthetic.make_config(tmp_path)
    enter(tmp_path / "run", config)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {CONFIG_FILE, "fit.lock"}
    assert read_run_config(tmp_path / "run") == config


def test_run_directory_excludes_other_fits(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "_LOCK_TIMEOUT_SECONDS", 0.0)
    config = synthetic.make_config(tmp_path)
    with ExitStack() as resources:
        enter_run_dir(tmp_path / "run", config, resources)
        with ExitStack() as others, pytest.raises(LockedError, match=r"fit\.lock is held by process \d+"):
            enter_run_dir(tmp_path / "run", config, others)
    with ExitStack() as resources:  # an interrupted run, which is resumed
        enter_run_dir(tmp_path / "run", config, resources)


@pytest.mark.parametrize(
    "data",
    [
        {"split": "global_time", "valid_from": "2018-01-01", "test_from": "2018-06-01T12:00:00+02:00"},
        {"split": "global_time", "valid_from": 3, "test_from": 4.5},
    ],
)
def test_run_config_round_trips(tmp_path, data):
    config = synthetic.make_config(tmp_path, data=data, training={"temperature": "learned"}, model={"hidden": [16]})
    enter(tmp_path / "run", config)
    assert read_run_config(tmp_path / "run") == config
    assert json.loads((tmp_path / "run" / CONFIG_FILE).read_text())["schema"]["items"]["id_type"] == "string"


def test_delete_checkpoints_keeps_other_files(tmp_path):
    for name in ("last.ckpt", "best.ckpt", METRICS_FILE):
        (tmp_path / name).write_bytes(b"")
    delete_checkpoints(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [METRICS_FILE]


def test_leftovers_of_interrupted_checkpoints_are_deleted(tmp_path):
    (tmp_path / "best.ckpt.tmp").write_bytes(b"half")
    delete_checkpoints(tmp_path)
    assert not list(tmp_path.iterdir())


def test_model_that_cannot_be_written_raises(run_dir, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TrainingError, match=r"the model cannot be written .* free disk space"):
        Run.open(run_dir).load_evaluated_model().save(tmp_path / "file" / "model")
