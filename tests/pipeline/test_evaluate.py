"""Evaluation of a run with more users and items than can all be ranked."""

import json

import numpy as np
import pytest
from support import cli, synthetic

from vecall.config import parse_config
from vecall.errors import StoreError, TrainingError
from vecall.evaluation import sampling
from vecall.pipeline import fit as fit_module
from vecall.pipeline.evaluate import evaluate
from vecall.pipeline.fit import fit

SAMPLED = f"7 of {synthetic.USERS} users, a fixed random sample, evaluated"


@pytest.fixture
def evaluated_users(monkeypatch):
    """Users of each evaluation in `fit`; 7 of them are a sample."""
    monkeypatch.setattr(sampling, "MAX_FULL_PAIRS", synthetic.USERS * synthetic.ITEMS - 1)
    monkeypatch.setattr(sampling, "SAMPLE_SIZE", 7)
    users, evaluate_scorer = [], fit_module.evaluate_scorer

    def record(scorer, cases, *args, **kwargs):
        users.append(cases.users)
        return evaluate_scorer(scorer, cases, *args, **kwargs)

    monkeypatch.setattr(fit_module, "evaluate_scorer", record)
    return users


def test_settings_without_a_feature_that_the_model_reads_are_refused(published):
    config = synthetic.make_config(published).as_json()
    for section in ("items", "users"):
        config["schema"][section]["features"].popitem()
    without = parse_config(config, source="test")
    with pytest.raises(TrainingError, match=r"other features than the settings name: '\w+' of items is missing"):
        evaluate(run=published / "run", config=without)
    with pytest.raises(StoreError, match=r"other features than the settings name: '\w+' of users is missing"):
        evaluate(store=published / "store", config=without)


def test_large_data_are_validated_and_tested_on_a_fixed_sample_of_users(tmp_path, evaluated_users):
    synthetic.write_tables(tmp_path)
    run = fit(synthetic.make_config(tmp_path, training={"epochs": 2}), tmp_path / "run")
    assert [len(users) for users in evaluated_users] == [7, 7, 7]  # two validations and the test
    np.testing.assert_array_equal(evaluated_users[0], evaluated_users[1])
    assert f"; {SAMPLED}: standard error of recall@10 0." in run.summary.protocol
    result = evaluate(run=tmp_path / "run")
    assert f" {SAMPLED} over {synthetic.ITEMS} items (standard error of the model's recall@10: 0." in result["protocol"]
    assert result["model"]["seen_excluded"] == pytest.approx(run.summary.metrics["seen_excluded"])
    full = evaluate(run=tmp_path / "run", all_users=True)
    assert f" {synthetic.USERS} users evaluated over {synthetic.ITEMS} items" in full["protocol"]
    output = cli.invoke("evaluate", "--run", tmp_path / "run", "--all-users", "--json").stdout
    assert json.loads(output)["protocol"] == full["protocol"]


def test_merged_recall_stands_beside_that_of_the_model_only_of_the_same_users(tmp_path, evaluated_users):
    synthetic.write_tables(tmp_path)
    fit(synthetic.make_config(tmp_path, training={"epochs": 1}), tmp_path / "run")
    for options, is_beside in ((), True), (("--all-users",), False):
        output = cli.invoke("evaluate", "--run", tmp_path / "run", *options).stdout
        of_models, of_channels = output.split("channels, seen items", maxsplit=1)
        assert ("merged" in of_models, "merged" in of_channels) == (is_beside, True)
