import dataclasses
import functools
import json
import signal
import types

import numpy as np
import pytest
import torch
from support import synthetic

from vecall import progress
from vecall.data.feature_encoder import FeatureSpec
from vecall.data.ragged import RaggedArray
from vecall.data.split import HardNegatives
from vecall.errors import TrainingError
from vecall.evaluation.baselines import Popularity
from vecall.evaluation.evaluator import evaluate_scorer
from vecall.training import plan
from vecall.training.data import take, to_tensors
from vecall.training.fit import train
from vecall.training.scoring import encode_all_items
from vecall.training.settings import NegativeSettings, TrainingSettings

HARD_NEGATIVES = HardNegatives(np.arange(20), (np.arange(20) + 1) % synthetic.ITEMS, np.full(20, 2))


def make_settings(**others):
    return TrainingSettings(**{"epochs": 3, "batch": 64, "lr": 0.03, "patience": 10} | others)


def copy_weights(result):
    return {name: weight.clone() for name, weight in result.towers.state_dict().items()}


def are_equal(weights, others):
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def compute_recall(scorer, k=5):
    cases = synthetic.make_eval_cases()
    return evaluate_scorer(scorer, cases, synthetic.ITEMS, (k,)).seen_excluded[f"recall@{k}"]


def validate(scorer):
    return {"valid_score": compute_recall(scorer)}


def read_metrics(directory):
    """Lines of metrics.jsonl without the seconds."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


class ProcessKilledError(BaseException):
    """Simulates the end of the process."""


def make_killing_validator(epochs):
    """Validator that raises `ProcessKilledError` after so many epochs."""
    n_calls = 0

    def validate_or_kill(scorer):
        nonlocal n_calls
        if n_calls == epochs:
            raise ProcessKilledError
        n_calls += 1
        return validate(scorer)

    return validate_or_kill


@pytest.mark.parametrize(
    ("loss", "encoder"),
    [("softmax", "mean"), ("sampled_softmax", "mean"), ("bce", "mean"), ("softmax", "set"), ("sampled_softmax", "set")],
)
def test_each_loss_learns_the_groups_of_items(tmp_path, loss, encoder):
    negatives = NegativeSettings(uniform=16, in_batch=8 if loss == "sampled_softmax" else 0)
    settings = make_settings(loss=loss, negatives=negatives, epochs=20, temperature=0.2)
    if encoder == "set":
        settings = settings.model_copy(update={"batch": 12})  # users
    data = synthetic.make_training_data()
    result = train(data, synthetic.make_model_settings(encoder), settings, tmp_path, validate=validate)
    metrics = read_metrics(tmp_path)
    assert compute_recall(Popularity(data.histories, data.n_items)) < 0.3
    assert metrics[result.best_epoch]["valid_score"] > (0.6 if loss == "bce" else 0.9)
    assert metrics[0]["loss"] > metrics[-1]["loss"]


def test_weights_depend_on_the_seed_only(tmp_path):
    def train_with_seed(seed, name):
        settings = make_settings(seed=seed, epochs=1)
        model = synthetic.make_model_settings(dropout=0.2)
        return copy_weights(train(synthetic.make_training_data(), model, settings, tmp_path / name))

    assert are_equal(train_with_seed(3, "a"), train_with_seed(3, "b"))
    assert not are_equal(train_with_seed(3, "c"), train_with_seed(4, "d"))


def make_variants():
    """Model settings, training settings and arguments of the training data, by name."""
    sampled = {"loss": "sampled_softmax", "negatives": NegativeSettings(uniform=8, in_batch=8)}
    return {
        "softmax": (synthetic.make_model_settings(), {}, {}),
        "dropout": (synthetic.make_model_settings(hidden=(8,), dropout=0.3, norm="batch"), {}, {"item_features": True}),
        "id dropout, learned temperature": (
            synthetic.make_model_settings("attention", id_dropout=0.3),
            {"temperature": "learned"},
            {},
        ),
        "sampled": (synthetic.make_model_settings(), sampled, {}),
        "bce": (
            synthetic.make_model_settings(),
            {"loss": "bce", "negatives": NegativeSettings(uniform=3)},
            {"negatives": HARD_NEGATIVES},
        ),
        "causal, averaged": (
            synthetic.make_model_settings("causal", dropout=0.2),
            {"ema_decay": 0.9},
            {"user_features": True},
        ),
        "causal, sampled": (synthetic.make_model_settings("causal"), sampled, {}),
        "set, spectral": (
            synthetic.make_model_settings("set", dropout=0.2, item_init="spectral", max_trained_dim=6),
            {"ema_decay": 0.9},
            {},
        ),
        "set, sampled": (synthetic.make_model_settings("set"), sampled | {"batch": 16}, {"negatives": HARD_NEGATIVES}),
        "constant rate": (synthetic.make_model_settings("none"), {"lr_schedule": "constant"}, {"user_features": True}),
    }


@pytest.mark.parametrize("variant", make_variants())
def test_resumed_training_equals_an_uninterrupted_one(tmp_path, variant):
    model, settings, data = make_variants()[variant]
    run = functools.partial(train, synthetic.make_training_data(**data), model, make_settings(**settings))
    uninterrupted = run(tmp_path / "uninterrupted", validate=validate)
    with pytest.raises(ProcessKilledError):
        run(tmp_path / "killed", validate=make_killing_validator(2))
    assert len(read_metrics(tmp_path / "killed")) == 2
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "lo')  # a line that was cut off
    resumed = run(tmp_path / "killed", validate=validate)
    assert are_equal(copy_weights(resumed), copy_weights(uninterrupted))
    assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "uninterrupted")
    assert (resumed.best_epoch, resumed.epochs) == (uninterrupted.best_epoch, uninterrupted.epochs)
    assert resumed.epochs == 3


def make_row_table_settings(monkeypatch, *, row_moments, **settings):
    """Settings of a training whose tables are all updated row by row, with or without moments."""
    monkeypatch.setattr(plan, "MIN_ROWS_OF_ROW_TABLE", 1)
    monkeypatch.setattr(plan, "total_memory_bytes", lambda: 2**40 if row_moments else 0)
    return make_settings(loss="sampled_softmax", negatives=NegativeSettings(uniform=16), **settings)


def make_features_data():
    return synthetic.make_training_data(item_features=True, user_features=True)


@pytest.mark.parametrize(("encoder", "ema_decay"), [("mean", 0.0), ("mean", 0.9), ("set", 0.9)])
def test_row_by_row_training_equals_that_of_whole_tables(tmp_path, monkeypatch, encoder, ema_decay):
    settings = make_settings(loss="sampled_softmax", negatives=NegativeSettings(uniform=16), ema_decay=ema_decay)
    data, model = make_features_data(), synthetic.make_model_settings(encoder)
    whole = copy_weights(train(data, model, settings, tmp_path / "whole", validate=validate))
    settings = make_row_table_settings(monkeypatch, row_moments=True, ema_decay=ema_decay)
    by_rows = train(data, model, settings, tmp_path / "rows", validate=validate)
    for name, weight in by_rows.towers.state_dict().items():
        torch.testing.assert_close(weight, whole[name], rtol=0, atol=1e-3)
    whole_metrics, metrics = read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "rows")
    assert [epoch["loss"] for epoch in metrics] == pytest.approx([epoch["loss"] for epoch in whole_metrics], abs=1e-3)
    assert by_rows.towers.item_id_embedding.row_reader is None


@pytest.mark.parametrize(("row_moments", "ema_decay"), [(True, 0.9), (False, 0.0), (False, 0.9)])
def test_resumed_training_by_rows_equals_an_uninterrupted_one(tmp_path, monkeypatch, row_moments, ema_decay):
    settings = make_row_table_settings(monkeypatch, row_moments=row_moments, ema_decay=ema_decay)
    run = functools.partial(train, make_features_data(), synthetic.make_model_settings(), settings)
    uninterrupted = run(tmp_path / "uninterrupted", validate=validate)
    with pytest.raises(ProcessKilledError):
        run(tmp_path / "killed", validate=make_killing_validator(2))
    resumed = run(tmp_path / "killed", validate=validate)
    assert are_equal(copy_weights(resumed), copy_weights(uninterrupted))
    assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "uninterrupted")


@pytest.mark.parametrize(("loss", "encoder"), [("softmax", "mean"), ("sampled_softmax", "mean"), ("softmax", "set")])
def test_bfloat16_learns_like_32_bits(tmp_path, loss, encoder):
    losses = {}
    for precision in ("32", "bf16"):
        settings = make_settings(loss=loss, negatives=NegativeSettings(uniform=16), precision=precision)
        train(synthetic.make_training_data(), synthetic.make_model_settings(encoder), settings, tmp_path / precision)
        losses[precision] = [epoch["loss"] for epoch in read_metrics(tmp_path / precision)]
    assert losses["bf16"] != losses["32"]
    assert losses["bf16"] == pytest.approx(losses["32"], rel=0.03)


def test_moving_average_of_the_weights_is_evaluated_and_returned(tmp_path):
    item_vectors_by_epoch = []

    def record_item_vectors(scorer):
        item_vectors_by_epoch.append(scorer.item_vectors.clone())
        return validate(scorer)

    data, model = synthetic.make_training_data(), synthetic.make_model_settings()
    last = train(data, model, make_settings(), tmp_path / "last")
    averaged = train(data, model, make_settings(ema_decay=0.99), tmp_path / "averaged", validate=record_item_vectors)
    torch.testing.assert_close(encode_all_items(averaged.towers, data), item_vectors_by_epoch[averaged.best_epoch])
    # With such a slow decay, the average is still near the initial weights, and the last weights are not.
    initial = train(data, model, make_settings(lr=1e-12), tmp_path / "initial")
    last_distance = (encode_all_items(last.towers, data) - encode_all_items(initial.towers, data)).norm()
    averaged_distance = (encode_all_items(averaged.towers, data) - encode_all_items(initial.towers, data)).norm()
    assert averaged_distance < 0.5 * last_distance


def test_checkpoint_of_other_tables_is_refused(tmp_path):
    train(synthetic.make_training_data(), synthetic.make_model_settings(), make_settings(), tmp_path, max_epochs=1)
    more_items = dataclasses.replace(synthetic.make_training_data(), n_items=synthetic.ITEMS + 1)
    with pytest.raises(TrainingError, match="other items"):
        train(more_items, synthetic.make_model_settings(), make_settings(), tmp_path)


def test_training_without_validation_resumes_and_returns_the_last_epoch(tmp_path):
    run = functools.partial(train, synthetic.make_training_data(), synthetic.make_model_settings(), make_settings())
    uninterrupted = run(tmp_path / "uninterrupted")
    run(tmp_path / "resumed", max_epochs=1)
    resumed = run(tmp_path / "resumed")
    assert are_equal(copy_weights(resumed), copy_weights(uninterrupted))
    assert (resumed.best_epoch, resumed.epochs) == (2, 3)
    assert read_metrics(tmp_path / "resumed") == read_metrics(tmp_path / "uninterrupted")
    repeated = run(tmp_path / "resumed")  # all epochs are done
    assert are_equal(copy_weights(repeated), copy_weights(uninterrupted))
    assert read_metrics(tmp_path / "resumed") == read_metrics(tmp_path / "uninterrupted")


def test_training_stops_early_returns_the_best_epoch_and_stays_stopped(tmp_path):
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.9])
    weights_by_epoch = []

    def record_weights(scorer):
        weights_by_epoch.append({name: weight.clone() for name, weight in scorer._towers.state_dict().items()})
        return {"valid_score": next(scores)}

    settings = make_settings(epochs=9, patience=2)
    run = functools.partial(train, synthetic.make_training_data(), synthetic.make_model_settings(), settings, tmp_path)
    result = run(validate=record_weights)
    assert (result.best_epoch, result.epochs, len(weights_by_epoch)) == (1, 4, 4)
    assert are_equal(copy_weights(result), weights_by_epoch[1])
    # After an interruption before the end of the run, the training must not go on.
    resumed = run(validate=record_weights)
    assert (resumed.best_epoch, resumed.epochs, len(weights_by_epoch)) == (1, 4, 4)
    assert are_equal(copy_weights(resumed), weights_by_epoch[1])
    assert len(read_metrics(tmp_path)) == 4


def test_checkpoints_contain_no_pickled_objects(tmp_path):
    settings = make_settings(epochs=1)
    train(synthetic.make_training_data(), synthetic.make_model_settings(), settings, tmp_path, validate=validate)
    for name in ("last.ckpt", "best.ckpt"):
        assert torch.load(tmp_path / name, weights_only=True)["epoch"] == 0
    files = {"last.ckpt", "best.ckpt", "metrics.jsonl", "plan.json", "threads.json"}
    assert {path.name for path in tmp_path.iterdir()} == files


def test_temperature_is_learned_only_with_that_setting(tmp_path):
    def train_log_temperature(name, temperature):
        settings = make_settings(temperature=temperature)
        train(synthetic.make_training_data(), synthetic.make_model_settings(), settings, tmp_path / name)
        return torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"]["log_temperature"].item()

    assert train_log_temperature("fixed", 0.3) == pytest.approx(np.log(0.3))
    assert abs(train_log_temperature("learned", "learned") - np.log(0.1)) > 0.05


def test_overflowing_loss_is_refused_before_a_checkpoint_is_written(tmp_path):
    settings = make_settings(temperature=1e-38, epochs=1)
    with pytest.raises(TrainingError, match="the loss became"):
        train(synthetic.make_training_data(), synthetic.make_model_settings(), settings, tmp_path)
    assert not (tmp_path / "last.ckpt").exists()


def test_id_dropout_of_items_with_empty_features_does_not_overflow(tmp_path):
    data = dataclasses.replace(
        synthetic.make_training_data(),
        item_specs={"tags": FeatureSpec("multi_value", 4)},
        item_features={"tags": np.zeros((synthetic.ITEMS, 2), dtype=np.int64)},  # empty lists
    )
    train(data, synthetic.make_model_settings(id_dropout=0.5), make_settings(epochs=2), tmp_path)
    assert np.isfinite([line["loss"] for line in read_metrics(tmp_path)]).all()


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_unobserved_items_are_encoded_from_their_features_only(tmp_path, ema_decay):
    unobserved = np.arange(synthetic.ITEMS - 5, synthetic.ITEMS)
    data = synthetic.make_training_data(item_features=True, n_unobserved_items=len(unobserved))
    model, settings = synthetic.make_model_settings(id_dropout=0.3), make_settings(ema_decay=ema_decay)
    rows = torch.from_numpy(unobserved)
    features = take(to_tensors(data.item_features, torch.device("cpu")), rows)

    def encode_with_and_without_id(towers):
        with torch.no_grad():
            unknown_rows = torch.full_like(rows, synthetic.ITEMS)
            return towers.encode_items(rows, features), towers.encode_items(unknown_rows, features)

    result = train(data, model, settings, tmp_path / "new", validate=validate)
    torch.testing.assert_close(*encode_with_and_without_id(result.towers))
    warm_started = dataclasses.replace(data, warm_started_items=unobserved)
    result = train(warm_started, model, settings, tmp_path / "warm_started", validate=validate)
    with_id, without_id = encode_with_and_without_id(result.towers)
    assert (with_id - without_id).norm(dim=1).min() > 0.01


def test_too_little_data_is_refused(tmp_path):
    data = types.SimpleNamespace(n_items=9, observed_items=np.array([3]), histories=RaggedArray.from_lists([[3]]))
    with pytest.raises(TrainingError, match="got 1 and 1 of 9"):
        train(data, synthetic.make_model_settings(), make_settings(), tmp_path)


class CountingListener:
    """Counts open tasks and reported steps."""

    def __init__(self):
        self.open_tasks, self.steps = 0, 0

    def start_task(self, task, total):
        self.open_tasks += 1
        return self.advance

    def advance(self, steps=1, note=""):
        self.steps += steps

    def stop_task(self):
        self.open_tasks -= 1


def test_progress_is_reported_and_ends_with_an_interrupted_training(tmp_path):
    listener = CountingListener()
    data, model = synthetic.make_training_data(), synthetic.make_model_settings()
    with progress.report_to(listener):
        train(data, model, make_settings(epochs=2), tmp_path / "complete")
        assert (listener.open_tasks, listener.steps) == (0, 2 * (240 // 64))
        with pytest.raises(ProcessKilledError):
            train(data, model, make_settings(), tmp_path / "killed", validate=make_killing_validator(0))
    assert listener.open_tasks == 0


def test_sigterm_keeps_its_handler_during_a_training(tmp_path):
    before, during = signal.getsignal(signal.SIGTERM), []

    def record_handler(scorer):
        during.append(signal.getsignal(signal.SIGTERM))
        return validate(scorer)

    train(
        synthetic.make_training_data(),
        synthetic.make_model_settings("mean"),
        make_settings(epochs=1),
        tmp_path,
        validate=record_handler,
    )
    assert during == [before]
    assert signal.getsignal(signal.SIGTERM) is before
