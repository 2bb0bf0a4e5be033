"""The record of a selection: what is written can be read, resumed and pinned."""

import math
import tomllib

import pytest
from support import synthetic

from vecall.config import parse_config
from vecall.errors import TrainingError
from vecall.pipeline.selection_record import (
    SELECTION_DIR,
    SelectionRecord,
    TrialRecord,
    read_selection,
    read_trial,
    write_selection,
    write_trial,
)
from vecall.pipeline.selection_report import read_selection_section

METRICS = {
    "score": 0.2,
    "recall": 0.4,
    "ndcg@10": 0.1,
    "shuffled_score": 0.1,
    "shuffled_recall": 0.3,
    "shuffled_ndcg@10": 0.05,
}
TRIAL = TrialRecord(
    preset="pooled", settings={}, users=9, interactions=99, metrics=METRICS, standard_error=0.01, seconds=3.2
)


def make_record(directory, preset="sequence", **changes):
    config = synthetic.make_config(directory, model={"preset": "auto", "init_std": 1e-5, "hidden": [8, 4]})
    return SelectionRecord(
        preset=preset,
        reason="planted",
        config=parse_config(config.as_json()).with_preset("pooled").as_json(),
        recall_depth=100,
        trials=(TRIAL,),
        left_out={"set": "hidden layers"},
        baselines={"popularity": 0.1},
        **changes,
    )


def test_written_selection_is_read_back(tmp_path):
    assert read_selection(tmp_path) is None
    record = make_record(tmp_path)
    write_selection(record, tmp_path)
    assert read_selection(tmp_path) == record


def test_toml_of_the_choice_has_its_model_and_training(tmp_path):
    record = make_record(tmp_path)
    write_selection(record, tmp_path)
    parsed = tomllib.loads((tmp_path / SELECTION_DIR / "chosen.toml").read_text(encoding="utf-8"))
    assert parsed == {name: record.config[name] for name in ("model", "training")}
    sections = {name: record.config[name] for name in ("data", "schema", "index", "evaluation")}
    assert parse_config(sections | parsed) == record.parse_config()


def test_written_trial_is_read_back(tmp_path):
    assert read_trial(tmp_path, "pooled") is None
    (tmp_path / SELECTION_DIR).mkdir()
    write_trial(TRIAL, tmp_path)
    assert read_trial(tmp_path, "pooled") == TRIAL


def test_undefined_metrics_are_read_back(tmp_path):
    """A single validation user has no standard error; targets that are all seen have no recall."""
    trial = TRIAL.model_copy(update={"standard_error": math.nan, "metrics": METRICS | {"recall": math.nan}})
    record = make_record(tmp_path).model_copy(update={"trials": (trial,)})
    write_selection(record, tmp_path)
    read = read_selection(tmp_path).trials[0]
    assert math.isnan(read.standard_error)
    assert math.isnan(read.metrics["recall"])
    write_trial(trial, tmp_path)
    assert math.isnan(read_trial(tmp_path, "pooled").standard_error)
    rows = read_selection_section(tmp_path).rows
    assert [(row.name, row.recall, row.ndcg) for row in rows] == [("pooled", None, 0.1), ("popularity", 0.1, None)]


def test_damaged_record_raises_and_says_what_to_delete(tmp_path):
    (tmp_path / SELECTION_DIR).mkdir()
    (tmp_path / SELECTION_DIR / "choice.json").write_text('{"preset": "set"')
    with pytest.raises(TrainingError, match=r"(?s)choice\.json: cannot be read.*delete it to repeat"):
        read_selection(tmp_path)


def test_description_names_all_that_was_tried(tmp_path):
    assert list(make_record(tmp_path).describe()) == [
        "  pooled: validation recall@100 0.400, ndcg@10 0.100; with shuffled histories 0.300, 0.050 (3 s)",
        "  set: left out: hidden layers",
        "  beside them, recall@100: popularity 0.100",
        "  chosen: sequence: planted",
    ]


def test_description_tells_a_trial_that_was_ended_and_the_time_beside_the_announced_one(tmp_path):
    trial = TRIAL.model_copy(update={"is_hopeless": True})
    record = make_record(tmp_path, announced_seconds=9.6, seconds=8.2).model_copy(update={"trials": (trial,)})
    lines = list(record.describe())
    assert lines[0].endswith("0.050 (3 s, ended after an epoch: less than half of the best score)")
    assert lines[-2] == "  choosing took 8 s; 10 s were announced"
    write_selection(record, tmp_path)
    assert read_selection_section(tmp_path).rows[0].name == "pooled, 1 epoch"
