"""Training of the ranker: crossings that recall knows nothing of are found, and on noise recall's order stays."""

from pathlib import Path

import numpy as np
import pytest

from vecall.pipeline.ranker_training import train_ranker
from vecall.ranking.features import select_features
from vecall.ranking.lightgbm_ranker import LightGbmRanker

pytest.importorskip("lightgbm")


@pytest.fixture
def make_lists(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from harness.ranking.planted import PlantedLists

    return PlantedLists


def train(lists):
    features = select_features(lists[0].columns.to_frame(), ("vector",), lists.attributes, lists.user_features)
    return train_ranker(lists, features)


def test_crossing_of_user_and_item_is_found(make_lists):
    lists = make_lists(400, 40, has_crossing=True)
    summary, trained = train(lists)
    assert summary.info.name == "lightgbm"
    assert summary.ranked_ndcg >= 1.5 * summary.recall_ndcg
    assert summary.gain_low > 0
    assert (summary.users, summary.training_lists) == (400, 400)
    assert 1 <= summary.trees <= 300
    assert {"user.group:category", "kind:category"} <= set(summary.importance)
    ranker = LightGbmRanker.from_text(trained.model_text, trained.spec)
    assert ranker(lists[0].columns.to_frame()).len() == 40


def test_recalls_order_stays_where_targets_are_random(make_lists):
    summary, trained = train(make_lists(300, 40, has_crossing=False))
    assert summary.info.name == "none"
    assert "not above noise" in summary.info.reason
    assert summary.gain_low <= 0
    assert trained is not None


def test_too_few_lists_teach_nothing(make_lists):
    summary, trained = train(make_lists(20, 40, has_crossing=True))
    assert trained is None
    assert (summary.info.name, summary.users) == ("none", 0)
    assert "too few" in summary.info.reason


def test_training_is_repeatable(make_lists):
    texts = [train(make_lists(200, 30, has_crossing=True))[1].model_text for _ in range(2)]
    assert texts[0] == texts[1]


def test_users_whose_target_was_not_recalled_count_as_zero(make_lists):
    planted = make_lists(200, 30, has_crossing=True)

    class Lists:
        attributes, user_features = planted.attributes, planted.user_features

        def __len__(self):
            return 400

        def __getitem__(self, index):
            candidates = planted[index // 2]
            if index % 2:
                object.__setattr__(candidates, "is_target", np.zeros(30, dtype=bool))
            return candidates

    summary, _ = train(Lists())
    complete, _ = train(planted)
    assert (summary.users, summary.training_lists) == (400, 200)
    assert summary.recall_ndcg == pytest.approx(complete.recall_ndcg / 2, rel=0.5)
