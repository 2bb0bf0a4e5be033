"""Kinds of weight 0 are read in histories; baselines, channels and popularity do not count them. Worked out by hand."""

import numpy as np
import pytest
from support.doctor import make_config, make_dataset

from vecall.channels.settings import ChannelsSettings
from vecall.data.ragged import EvalCases, RaggedArray
from vecall.data.split import TRAIN
from vecall.evaluation.baseline_evaluation import build_baseline_factories
from vecall.evaluation.baselines import Ease, Popularity
from vecall.pipeline.channel_building import build_channel_tables

A, B, X = 0, 1, 2  # rows of items "a", "b" and "x", of which x is only ever viewed
LOG = [
    ("u1", "x", 0, "view"),
    ("u1", "a", 1, "buy"),
    ("u1", "b", 2, "buy"),
    ("u2", "a", 0, "view"),
    ("u2", "x", 1, "view"),
    ("u2", "a", 2, "buy"),
    ("u3", "x", 0, "view"),
    ("u3", "a", 1, "view"),
    ("u3", "b", 2, "buy"),
]
VALID = [("u1", "a", 8, "buy")]
TEST = [(user, item, 9, "buy") for user in ("u1", "u2", "u3") for item in "ab"]


@pytest.fixture(scope="module")
def dataset():
    interactions = {"user": "user", "item": "item", "time": "time", "event": "kind", "weights": {"view": 0, "buy": 2}}
    config = make_config(
        data={"items": None, "users": None, "split": "global_time", "valid_from": 8, "test_from": 9},
        schema={
            "interactions": interactions,
            "items": {"id": "id", "id_type": "string"},
            "users": {"id": "id", "id_type": "string"},
        },
    )
    dataset = make_dataset(config, LOG + VALID + TEST, columns=("user", "item", "time", "kind"))
    return dataset, dataset.split(config.data)


def score(scorer, history):
    cases = EvalCases(np.array([0]), RaggedArray.from_lists([history]), RaggedArray.from_lists([[A]]))
    return np.asarray(scorer(cases)(0, 3))[0].tolist()


def test_popularity_counts_purchases_alone(dataset):
    tables, split = dataset
    assert split.train.lengths.tolist() == [3, 3, 3]  # histories have the views
    assert Popularity(split.counted_train, 3).item_counts.tolist() == [2, 2, 0]
    assert tables.popularity.tolist() == [6, 5, 0]


def test_ease_learns_from_purchases_alone(dataset):
    """(XᵀX + I) of a and b is [[3, 1], [1, 3]], its inverse [[3, -1], [-1, 3]] / 8: each weighs 1/3 for the other."""
    _, split = dataset
    ease = Ease(split.counted_train, 3, l2=1.0)
    assert score(ease, [A]) == pytest.approx([0, 1 / 3, 0])
    assert score(ease, [X, B]) == pytest.approx([1 / 3, 0, 0])


def test_baselines_of_an_evaluation_learn_from_purchases_alone(dataset):
    """In the one history with both, a and b stand side by side; each has two users: 1 / √(2 · 2)."""
    _, split = dataset
    factories = build_baseline_factories(split, 3, Popularity(split.counted_train, 3))
    assert score(factories["cooccurrence"]()[0], [X, A]) == pytest.approx([0, 0.5, 0])
    assert score(factories["ease"]()[0], [X]) == [0, 0, 0]


def test_channels_are_built_from_purchases_alone(dataset):
    tables, split = dataset
    positives = tables.interactions.positives
    channels = build_channel_tables(ChannelsSettings(), tables, positives.filter(split.positive_parts == TRAIN))
    assert channels.popular.counts.tolist() == [0.5 + 1, 1 + 1, 0]  # u1 buys b after a
    assert [channels.similar.get_neighbors(row)[0].tolist() for row in (A, B, X)] == [[B], [A], []]
    assert channels.facts.repeat_share == 0.0  # u2 views a and then buys it
