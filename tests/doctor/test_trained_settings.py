"""Settings that a release records stand for those of a file that leaves them to `preset = "auto"`."""

import pytest
from support import synthetic
from support.doctor import make_config

from vecall.doctor.examination import examine
from vecall.doctor.trained_settings import apply_trained_settings
from vecall.release.release import open_release
from vecall.release.store import Store


def record(config):
    """Return what a release records of the settings that it was trained with."""
    settings = config.as_json()
    return {section: settings[section] for section in ("model", "training")}


@pytest.fixture
def trained():
    return record(make_config(model={"preset": "set"}, training={"lr": 0.002, "logger": "mlflow"}))


@pytest.mark.parametrize("training", [{}, {"lr": 0.002}, {"minutes": 3.0, "devices": 2}])
def test_file_with_auto_takes_the_settings_of_the_release(trained, training):
    resolved, notes = apply_trained_settings(make_config(model={"preset": "auto"}, training=training), trained)
    assert (record(resolved), notes) == (trained, ())


def test_file_with_other_settings_is_told_which_ones(trained):
    config = make_config(
        model={"preset": "auto", "dim": 8, "history": {"length": 5}}, training={"lr": 0.1, "logger": "none"}
    )
    resolved, [note] = apply_trained_settings(config, trained)
    assert record(resolved) == trained
    assert "model.dim 8 → 512, model.history.length 5 → 500, training.lr 0.1 → 0.002" in note.en
    assert "model.dim 8 → 512" in note.zh
    _, [note] = apply_trained_settings(make_config(model={"preset": "pooled"}), trained)
    assert "model.preset 'pooled' → 'set'" in note.en


@pytest.mark.parametrize("recorded", [{}, {"model": {"unknown": 1}, "training": {}}])
def test_settings_that_were_not_recorded_are_those_of_the_file_or_unknown(recorded):
    config = make_config(model={"preset": "set"})
    assert apply_trained_settings(config, recorded) == (config, ())
    resolved, [note] = apply_trained_settings(make_config(model={"preset": "auto"}), recorded)
    assert resolved is None
    assert "publish its run again" in note.en


def test_doctor_of_a_store_finds_the_same_with_auto_as_with_the_chosen_settings(published):
    named = synthetic.make_config(published)
    manifest = open_release(Store.open(published / "store")).manifest
    assert manifest.trained_settings == record(named)
    auto = synthetic.make_config(published, model={"preset": "auto"}, training={"minutes": 1.0})
    expected = [finding.as_json() for finding in examine(store=published / "store", config=named)]
    assert [finding.as_json() for finding in examine(store=published / "store", config=auto)] == expected
