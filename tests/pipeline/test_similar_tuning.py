"""Whether neighbours of neighbours count, by planted rankings of the channel `similar`."""

import numpy as np
import pytest
from support.doctor import make_config, make_dataset

from vecall.channels.similar_plan import SimilarPlan
from vecall.data.ragged import EvalCases, RaggedArray
from vecall.data.split import Split
from vecall.pipeline import merge_tuning, similar_tuning
from vecall.pipeline.channel_recall import ChannelRankings
from vecall.pipeline.similar_tuning import TRIED_WEIGHT, tune_similar

N_ITEMS, N_CASES = 1_000, 200


class PlantedRecaller:
    """Recalls the target of a share of the cases at a random rank below 50."""

    def __init__(self, share, channels=("vector", "similar")):
        self.channels, self._share, self.asked = channels, share, []

    @property
    def snapshot(self):
        return self

    @property
    def release(self):
        return self

    @property
    def vectors(self):
        return self

    size = N_ITEMS

    def rank(self, cases, k, *, exclude_seen, channels=None):
        self.asked.append((exclude_seen, channels))
        rng = np.random.default_rng(0)
        rows = np.tile(np.arange(100, 100 + k), (len(cases), 1))
        found = np.flatnonzero(rng.random(len(cases)) < self._share)
        rows[found, rng.integers(0, 50, len(found))] = cases.targets.values[found]
        return ChannelRankings({"similar": rows}, {}, np.ones(len(cases), dtype=bool))


def tune(shares, n_cases=N_CASES, **channels):
    """Return the plan and the recallers by weight."""
    config = make_config(channels=channels, index={"ks": [10, 100]})
    dataset = make_dataset(config, [("u", f"i{item:04}", item) for item in range(N_ITEMS)])
    histories = RaggedArray.from_lists([[]] * n_cases)
    targets = RaggedArray.from_lists(np.random.default_rng(1).integers(0, 99, (n_cases, 1)))
    split = dataset.split(config.data)
    split = Split(**(vars(split) | {"valid": EvalCases(np.arange(n_cases), histories, targets)}))
    recallers = {}

    def build_recaller(weight):
        return recallers.setdefault(weight, PlantedRecaller(shares[weight]))

    return tune_similar(config, dataset, split, build_recaller), recallers


def test_gain_beyond_noise_is_taken():
    plan, recallers = tune({0.0: 0.3, TRIED_WEIGHT: 0.6})
    assert plan.second_order == TRIED_WEIGHT
    assert plan.reason.startswith("with neighbours of neighbours, which take the channel alone from recall@10 0.")
    assert [recaller.asked for recaller in recallers.values()] == [[(True, ["similar"])]] * 2


@pytest.mark.parametrize("share", [0.3, 0.2, 0.305])
def test_loss_or_noise_is_not_taken(share):
    plan, _ = tune({0.0: 0.3, TRIED_WEIGHT: share})
    assert plan.second_order == 0
    assert plan.reason.startswith("without")


def test_few_users_do_not_decide():
    plan, _ = tune({0.0: 0.0, TRIED_WEIGHT: 1.0}, n_cases=49)
    assert (plan.second_order, plan.reason[:19]) == (0, "49 validation users")


@pytest.mark.parametrize("weight", [0, 0.5])
def test_configured_weight_is_taken_as_it_is(weight):
    plan, recallers = tune({}, similar={"second_order": weight})
    assert (plan.second_order, recallers) == (weight, {})
    assert plan.reason


def test_nothing_is_measured_without_the_channel():
    assert tune({}, similar=False) == (SimilarPlan(), {})


@pytest.mark.parametrize("limit", [(merge_tuning, "MAX_COPIED_BYTES"), (similar_tuning, "MAX_TRIED_ITEMS")])
def test_large_catalogue_is_not_measured(limit, monkeypatch):
    monkeypatch.setattr(*limit, 0)
    plan, recallers = tune({0.0: 0.0, TRIED_WEIGHT: 1.0})
    assert (plan.second_order, recallers) == (0, {})
    assert "were not tried" in plan.reason
