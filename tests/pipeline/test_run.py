import json
import shutil

import numpy as np
import pytest
import torch
from support import synthetic

from vecall.errors import TrainingError
from vecall.pipeline.run import (
    CONFIG_FILE,
    METRICS_FILE,
    SUMMARY_FILE,
    Run,
    TrainedModel,
    create_or_resume_run,
    delete_checkpoints,
    read_run_config,
)


@pytest.fixture
def run(published, tmp_path):
    """A copy of a finished run, to be spoilt."""
    return shutil.copytree(published / "run", tmp_path / "run")


def test_a_finished_run_opens(run, published):
    opened = Run.open(str(run))
    assert opened.config == synthetic.make_config(published)
    assert (opened.summary.refit, opened.summary.epochs) == (False, 4)
    assert [line["epoch"] for line in opened.read_epoch_metrics()] == [0, 1, 2, 3]
    assert not list(run.rglob("*.ckpt"))
    assert not list(run.rglob("*.pkl"))


def test_a_model_comes_back_as_it_was(run, tmp_path):
    model = Run.open(run).load_evaluated_model()
    assert not model.towers.training
    model.save(tmp_path / "again")
    again = TrainedModel.load(tmp_path / "again", model.towers.settings)
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in model.state_dict().items())
    everything = np.arange(synthetic.ITEMS)
    assert again.vocabulary.item_id_map.to_ids(everything) == model.vocabulary.item_id_map.to_ids(everything)
    assert again.vocabulary.item_encoder.state == model.vocabulary.item_encoder.state
    assert again.vocabulary.user_encoder.state == model.vocabulary.user_encoder.state


def test_with_a_refit_another_model_is_live_than_was_judged(run):
    opened = Run.open(run)
    assert torch.equal(
        opened.load_final_model().state_dict()["item_ids.weight"],
        opened.load_evaluated_model().state_dict()["item_ids.weight"],
    )
    refitted = opened.load_evaluated_model()
    with torch.no_grad():
        refitted.towers.item_id_embedding.weight += 1
    refitted.save(run / "refit")
    summary = opened.summary.model_copy(update={"refit": True})
    (run / SUMMARY_FILE).write_text(summary.model_dump_json())
    again = Run.open(run)
    assert torch.equal(
        again.load_final_model().state_dict()["item_ids.weight"], refitted.state_dict()["item_ids.weight"]
    )
    assert not torch.equal(
        again.load_final_model().state_dict()["item_ids.weight"],
        again.load_evaluated_model().state_dict()["item_ids.weight"],
    )


@pytest.mark.parametrize("file", ["weights.safetensors", "encoders.json", "ids.bytes.npy", "ids.offsets.npy"])
@pytest.mark.parametrize("content", [None, b"", b"{}"])
def test_a_damaged_model_is_refused(run, file, content):
    (run / "model" / file).unlink()
    if content is not None:
        (run / "model" / file).write_bytes(content)
    with pytest.raises(TrainingError, match=r"(?s)cannot be read .*fit it again"):
        Run.open(run).load_evaluated_model()


def test_weights_of_other_settings_are_refused(run):
    with pytest.raises(TrainingError, match="cannot be read"):
        TrainedModel.load(run / "model", synthetic.make_model_settings(dim=4))


def test_what_is_no_finished_run_is_said_to_be_none(run, tmp_path):
    with pytest.raises(TrainingError, match="no run here; make one: vecall fit"):
        Run.open(tmp_path)
    (run / SUMMARY_FILE).write_text("{}")
    with pytest.raises(TrainingError, match=r"summary\.json: damaged"):
        Run.open(run)
    (run / SUMMARY_FILE).unlink()
    with pytest.raises(TrainingError, match="was cut short"):
        Run.open(run)
    (run / CONFIG_FILE).write_text("{")
    with pytest.raises(TrainingError, match=r"config\.json: cannot be read"):
        read_run_config(run)


def test_a_folder_is_begun_once_and_gone_on_with(tmp_path, run):
    config = synthetic.make_config(tmp_path)
    fresh = tmp_path / "deep" / "run"
    create_or_resume_run(fresh, config)
    assert [path.name for path in fresh.iterdir()] == [CONFIG_FILE]
    assert read_run_config(fresh) == config
    (fresh / METRICS_FILE).write_text("")
    create_or_resume_run(fresh, config)
    with pytest.raises(TrainingError, match="other settings"):
        create_or_resume_run(fresh, synthetic.make_config(tmp_path, training={"seed": 1}))
    with pytest.raises(TrainingError, match="holds a finished run"):
        create_or_resume_run(run, config)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "thesis.md").write_text("do not touch")
    with pytest.raises(TrainingError, match="is not empty and not a run"):
        create_or_resume_run(tmp_path / "docs", config)
    (tmp_path / "empty").mkdir()
    create_or_resume_run(tmp_path / "empty", config)


@pytest.mark.parametrize(
    "data",
    [
        {"split": "global_time", "valid_from": "2018-01-01", "test_from": "2018-06-01T12:00:00+02:00"},
        {"split": "global_time", "valid_from": 3, "test_from": 4.5},
    ],
)
def test_settings_come_back_equal(tmp_path, data):
    config = synthetic.make_config(tmp_path, data=data, training={"temperature": "learned"}, model={"hidden": [16]})
    create_or_resume_run(tmp_path / "run", config)
    assert read_run_config(tmp_path / "run") == config
    assert json.loads((tmp_path / "run" / CONFIG_FILE).read_text())["schema"]["items"]["id_type"] == "string"


def test_checkpoints_are_forgotten(tmp_path):
    for name in ("last.ckpt", "best.ckpt", METRICS_FILE):
        (tmp_path / name).write_bytes(b"")
    delete_checkpoints(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [METRICS_FILE]
