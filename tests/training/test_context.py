"""Context of targets in training: each target is predicted with its own, and a share of the values is hidden."""

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch
from support import synthetic

from vecall.data.feature_encoder import FeatureEncoder
from vecall.data.ragged import EvalCases, RaggedArray
from vecall.data.split import HardNegatives
from vecall.schema import CategoryFeature, NumericFeature
from vecall.towers.two_tower import TwoTower
from vecall.training import loss_module
from vecall.training.data import TrainingData
from vecall.training.module import TwoTowerModule
from vecall.training.scoring import TowerScorer
from vecall.training.settings import NegativeSettings, TrainingSettings

NEGATIVES = HardNegatives(np.arange(5), np.arange(5), np.full(5, 2))


def make_data():
    """Training data in which the context of an interaction is its number, as a category and as a number."""
    data = synthetic.make_training_data()
    total = len(data.histories.values)
    numbers = pl.Series(range(total + len(NEGATIVES.users)))
    frame = pl.DataFrame({"hour": numbers.cast(pl.String), "price": numbers.cast(pl.Float64)})
    encoder = FeatureEncoder.fit({"hour": CategoryFeature(), "price": NumericFeature()}, frame)
    catalogue_rows = encoder.encode(pl.DataFrame({"hour": [None] * 60, "price": [None] * 60}, schema=frame.schema))
    return TrainingData(
        histories=data.histories,
        hard_negatives=dataclasses.replace(NEGATIVES, context=frame[total:]),
        n_items=data.n_items,
        item_features=data.item_features,
        user_features=catalogue_rows,
        item_specs={},
        user_specs=encoder.specs,
        context_features=encoder.encode(frame),
        context_encoder=encoder,
    )


def make_module(encoder, loss):
    data = make_data()
    torch.manual_seed(0)
    towers = TwoTower(synthetic.make_model_settings(encoder), {}, data.user_specs, data.n_items)
    settings = TrainingSettings(loss=loss, batch=400, negatives=NegativeSettings(uniform=5), temperature=1.0)
    module = TwoTowerModule(towers, data, settings)
    module.on_fit_start()
    return module


def read_numbers(features):
    """The number of the interaction, which its category tells: the values are sorted as text."""
    values = sorted(map(str, range(305)))
    return [int(values[row - 2]) for row in features["hour"].tolist()]


@pytest.mark.parametrize(("encoder", "loss"), [("mean", "softmax"), ("causal", "sampled_softmax"), ("mean", "bce")])
def test_each_target_is_predicted_with_its_own_context(encoder, loss):
    module = make_module(encoder, loss)
    module.eval()
    histories = module.data.histories
    seen = []
    for batch in module.train_dataloader():
        context = {name: values[batch.context_rows] for name, values in module._device_features["context"].items()}
        for row, number in enumerate(read_numbers(context)):
            user, item = int(batch.target_users[row]), int(batch.target_items[row])
            seen.append(number)
            if number >= len(histories.values):
                negative = number - len(histories.values)
                assert (user, item) == (NEGATIVES.users[negative], NEGATIVES.items[negative])
                continue
            assert item == histories.values[number]
            assert histories.offsets[user] <= number < histories.offsets[user + 1]
        items = module.towers.encode_items(torch.arange(synthetic.ITEMS), {})
        expected = module.towers.encode_users(items, batch.histories, batch.lengths, context)
        torch.testing.assert_close(module._encode_users(items, batch), expected)
    assert len(seen) == len(set(seen)) == len(histories.values) + (5 if loss == "bce" else 0)


def test_share_of_the_context_is_missing_in_training_alone(monkeypatch):
    monkeypatch.setattr(loss_module, "_HIDDEN_CONTEXT", 0.3)
    module = make_module("mean", "softmax")
    features = {"hour": torch.ones(4000, dtype=torch.int32), "price": torch.ones(4000, 2)}
    hidden = module._hide_context(features)
    assert hidden["hour"].float().mean().item() == pytest.approx(0.7, abs=0.03)
    assert set(hidden["price"].sum(1).tolist()) == {0, 2}
    assert hidden["hour"].dtype == torch.int32
    module.towers.eval()
    assert module._hide_context(features) is features


def test_scorer_reads_the_context_of_each_case():
    module = make_module("mean", "softmax")
    data = module.data
    frame = pl.DataFrame({"hour": ["7", None, "8"], "price": [7.0, None, None]})
    history = RaggedArray.from_lists([[1, 2]] * 3)
    cases = EvalCases(np.array([3, 3, 3]), history, RaggedArray.from_lists([[0]] * 3), frame)
    scorer = TowerScorer(module.towers, data)
    vectors = scorer.encode_users(cases)
    assert np.unique(vectors.round(5), axis=0).shape[0] == 3
    without = scorer.encode_users(dataclasses.replace(cases, context=None))
    np.testing.assert_allclose(without, np.repeat(vectors[1:2], 3, axis=0), rtol=1e-5, atol=1e-6)
