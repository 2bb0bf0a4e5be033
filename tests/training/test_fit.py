import dataclasses
import functools
import json
import types

import numpy as np
import pytest
import torch
from support import synthetic

from vecall import progress
from vecall.data.feature_encoder import FeatureSpec
from vecall.data.ragged import RaggedArray
from vecall.data.split import LabeledNegatives
from vecall.errors import TrainingError
from vecall.evaluation.baselines import Popularity
from vecall.evaluation.metrics import rank_targets, recall_at_k
from vecall.training.data import take, to_tensors
from vecall.training.fit import train
from vecall.training.scoring import encode_all_items
from vecall.training.settings import NegativeSettings, TrainingSettings

LABELLED = LabeledNegatives(np.arange(20), (np.arange(20) + 1) % synthetic.ITEMS, np.full(20, 2))


def settings(**others):
    return TrainingSettings(**{"epochs": 3, "batch": 64, "lr": 0.03, "patience": 10} | others)


def weights(outcome):
    return {name: values.clone() for name, values in outcome.towers.state_dict().items()}


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one) and one.keys() == other.keys()


def recall(scorer, k=5):
    cases = synthetic.make_eval_cases()
    return recall_at_k(rank_targets(scorer(cases), cases.targets, cases.histories), cases.targets.offsets, k)


def validate(scorer):
    return {"valid_score": recall(scorer)}


def lines(folder):
    """metrics.jsonl without wall times."""
    parsed = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in parsed]


class Cut(BaseException):
    """The process dies."""


def cut_after(epochs):
    """Judges, until after so many epochs the process dies."""
    done = []

    def judge(scorer):
        if len(done) == epochs:
            raise Cut
        done.append(1)
        return validate(scorer)

    return judge


@pytest.mark.parametrize("loss", ["softmax", "sampled_softmax", "bce"])
def test_a_planted_pattern_is_learned(tmp_path, loss):
    negatives = NegativeSettings(uniform=16, in_batch=8 if loss == "sampled_softmax" else 0)
    fast = settings(loss=loss, negatives=negatives, epochs=20, temperature=0.2)
    problem = synthetic.make_training_data()
    outcome = train(problem, synthetic.make_model_settings(), fast, tmp_path, validate=validate)
    popular = recall(Popularity(problem.histories, problem.n_items))
    judged = lines(tmp_path)
    assert popular < 0.3
    assert judged[outcome.best_epoch]["valid_score"] > (0.6 if loss == "bce" else 0.9)
    assert judged[0]["loss"] > judged[-1]["loss"]


def test_training_follows_from_the_seed(tmp_path):
    def trained(seed, name):
        chosen = settings(seed=seed, epochs=1)
        return weights(
            train(synthetic.make_training_data(), synthetic.make_model_settings(dropout=0.2), chosen, tmp_path / name)
        )

    assert equal(trained(3, "a"), trained(3, "b"))
    assert not equal(trained(3, "c"), trained(4, "d"))


def variants():
    sampled = {"loss": "sampled_softmax", "negatives": NegativeSettings(uniform=8, in_batch=8)}
    return {
        "softmax": (synthetic.make_model_settings(), {}, {}),
        "dropout": (synthetic.make_model_settings(hidden=(8,), dropout=0.3, norm="batch"), {}, {"item_features": True}),
        "hidden ids, learned temperature": (
            synthetic.make_model_settings("attention", id_dropout=0.3),
            {"temperature": "learned"},
            {},
        ),
        "sampled": (synthetic.make_model_settings(), sampled, {}),
        "bce": (
            synthetic.make_model_settings(),
            {"loss": "bce", "negatives": NegativeSettings(uniform=3)},
            {"negatives": LABELLED},
        ),
        "causal, averaged": (
            synthetic.make_model_settings("causal", dropout=0.2),
            {"average": 0.9},
            {"user_features": True},
        ),
        "causal, sampled": (synthetic.make_model_settings("causal"), sampled, {}),
        "constant rate": (synthetic.make_model_settings("none"), {"schedule": "constant"}, {"user_features": True}),
    }


@pytest.mark.parametrize("variant", variants())
def test_a_training_that_was_cut_short_goes_on_bit_equal(tmp_path, variant):
    model, others, features = variants()[variant]
    run = functools.partial(train, synthetic.make_training_data(**features), model, settings(**others))
    whole = run(tmp_path / "whole", validate=validate)
    with pytest.raises(Cut):
        run(tmp_path / "cut", validate=cut_after(2))
    assert len(lines(tmp_path / "cut")) == 2
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as half_a_line:
        half_a_line.write('{"epoch": 2, "lo')
    resumed = run(tmp_path / "cut", validate=validate)
    assert equal(weights(resumed), weights(whole))
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert (resumed.best_epoch, resumed.epochs) == (whole.best_epoch, whole.epochs) == (resumed.best_epoch, 3)


def test_an_average_of_the_weights_is_what_is_judged_and_kept(tmp_path):
    judged = []

    def judge_items(scorer):
        judged.append(scorer.item_vectors.clone())
        return validate(scorer)

    problem = synthetic.make_training_data()
    last = train(problem, synthetic.make_model_settings(), settings(), tmp_path / "last")
    kept = train(
        problem, synthetic.make_model_settings(), settings(average=0.99), tmp_path / "averaged", validate=judge_items
    )
    torch.testing.assert_close(encode_all_items(kept.towers, problem), judged[kept.best_epoch])
    # So slow a mean has hardly left the first weights, which the last ones have.
    fresh = train(problem, synthetic.make_model_settings(), settings(lr=1e-12), tmp_path / "fresh")
    far = (encode_all_items(last.towers, problem) - encode_all_items(fresh.towers, problem)).norm()
    near = (encode_all_items(kept.towers, problem) - encode_all_items(fresh.towers, problem)).norm()
    assert near < 0.5 * far


def test_what_was_cut_short_is_not_gone_on_with_on_other_tables(tmp_path):
    train(synthetic.make_training_data(), synthetic.make_model_settings(), settings(), tmp_path, max_epochs=1)
    grown = dataclasses.replace(synthetic.make_training_data(), n_items=synthetic.ITEMS + 1)
    with pytest.raises(TrainingError, match="other items"):
        train(grown, synthetic.make_model_settings(), settings(), tmp_path)


def test_without_judging_it_goes_on_likewise_and_the_last_epoch_counts(tmp_path):
    run = functools.partial(train, synthetic.make_training_data(), synthetic.make_model_settings(), settings())
    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", epochs=1)
    resumed = run(tmp_path / "parts")
    assert equal(weights(resumed), weights(whole))
    assert (resumed.best_epoch, resumed.epochs) == (2, 3)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    again = run(tmp_path / "parts")  # nothing is left to do
    assert equal(weights(again), weights(whole))
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")


def test_it_stops_early_keeps_the_best_epoch_and_stays_stopped(tmp_path):
    said = iter([0.1, 0.5, 0.4, 0.3, 0.9])
    kept = []

    def judge(scorer):
        kept.append({name: x.clone() for name, x in scorer._towers.state_dict().items()})
        return {"valid_score": next(said)}

    run = functools.partial(
        train, synthetic.make_training_data(), synthetic.make_model_settings(), settings(epochs=9, patience=2), tmp_path
    )
    outcome = run(validate=judge)
    assert (outcome.best_epoch, outcome.epochs, len(kept)) == (1, 4, 4)
    assert equal(weights(outcome), kept[1])
    # A break before the run's end must not let it train on.
    again = run(validate=judge)
    assert (again.best_epoch, again.epochs, len(kept)) == (1, 4, 4)
    assert equal(weights(again), kept[1])
    assert len(lines(tmp_path)) == 4


def test_checkpoints_hold_no_pickled_objects(tmp_path):
    train(
        synthetic.make_training_data(), synthetic.make_model_settings(), settings(epochs=1), tmp_path, validate=validate
    )
    for name in ("last.ckpt", "best.ckpt"):
        assert torch.load(tmp_path / name, weights_only=True)["epoch"] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "best.ckpt", "metrics.jsonl", "threads.json"}


def test_the_temperature_is_learned_where_asked(tmp_path):
    def log_temperature(name, temperature):
        train(
            synthetic.make_training_data(),
            synthetic.make_model_settings(),
            settings(temperature=temperature),
            tmp_path / name,
        )
        return torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"]["log_temperature"].item()

    assert log_temperature("given", 0.3) == pytest.approx(np.log(0.3))
    assert abs(log_temperature("learned", "learned") - np.log(0.1)) > 0.05


def test_a_loss_that_overflows_is_refused_at_the_epochs_end(tmp_path):
    huge = settings(temperature=1e-38, epochs=1)
    with pytest.raises(TrainingError, match="the loss became"):
        train(synthetic.make_training_data(), synthetic.make_model_settings(), huge, tmp_path)
    assert not (tmp_path / "last.ckpt").exists()


def test_hidden_ids_of_items_that_no_feature_describes_do_not_overflow(tmp_path):
    shapes, values = (
        {"tags": FeatureSpec("bag", 4)},
        {"tags": np.zeros((synthetic.ITEMS, 2), dtype=np.int64)},
    )  # empty lists
    problem = dataclasses.replace(synthetic.make_training_data(), item_shapes=shapes, item_features=values)
    train(problem, synthetic.make_model_settings(id_dropout=0.5), settings(epochs=2), tmp_path)
    assert np.isfinite([line["loss"] for line in lines(tmp_path)]).all()


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_what_no_one_took_is_known_by_its_features_alone(tmp_path, average):
    untaken = np.arange(synthetic.ITEMS - 5, synthetic.ITEMS)
    problem = synthetic.make_training_data(item_features=True, n_unobserved_items=len(untaken))
    outcome = train(
        problem,
        synthetic.make_model_settings(id_dropout=0.3),
        settings(average=average),
        tmp_path / "a",
        validate=validate,
    )
    towers, rows = outcome.towers, torch.from_numpy(untaken)
    features = take(to_tensors(problem.item_features, torch.device("cpu")), rows)
    with torch.no_grad():
        new = towers.encode_items(torch.full_like(rows, synthetic.ITEMS), features)
        torch.testing.assert_close(towers.encode_items(rows, features), new)
    known = dataclasses.replace(problem, learned_before=untaken)
    outcome = train(
        known,
        synthetic.make_model_settings(id_dropout=0.3),
        settings(average=average),
        tmp_path / "b",
        validate=validate,
    )
    with torch.no_grad():
        own = outcome.towers.encode_items(rows, features)
        new = outcome.towers.encode_items(torch.full_like(rows, synthetic.ITEMS), features)
    assert (own - new).norm(dim=1).min() > 0.01


def test_too_little_to_learn_from_is_refused(tmp_path):
    problem = types.SimpleNamespace(n_items=9, met=np.array([3]), train=RaggedArray.from_lists([[3]]))
    with pytest.raises(TrainingError, match="got 1 and 1 of 9"):
        train(problem, synthetic.make_model_settings(), settings(), tmp_path)


class Screen:
    """Counts what is begun and ended."""

    def __init__(self):
        self.open, self.steps = 0, 0

    def start_task(self, task, total):
        self.open += 1
        return self.advance

    def advance(self, steps=1, note=""):
        self.steps += steps

    def stop_task(self):
        self.open -= 1


def test_progress_is_shown_and_ends_with_a_training_that_breaks_off(tmp_path):
    screen = Screen()
    with progress.report_to(screen):
        train(synthetic.make_training_data(), synthetic.make_model_settings(), settings(epochs=2), tmp_path / "whole")
        assert (screen.open, screen.steps) == (0, 2 * (240 // 64))
        with pytest.raises(Cut):
            train(
                synthetic.make_training_data(),
                synthetic.make_model_settings(),
                settings(),
                tmp_path / "cut",
                validate=cut_after(0),
            )
    assert screen.open == 0
