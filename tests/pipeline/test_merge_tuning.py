"""Search of merge plans on planted rankings: what helps is found, and what does not is not kept."""

from types import SimpleNamespace

import numpy as np
import pytest

from vecall.channels.merge_plan import VECTORS_ALONE, MergePlan
from vecall.channels.settings import ChannelsSettings
from vecall.data.ragged import EvalCases, RaggedArray
from vecall.pipeline import merge_tuning
from vecall.pipeline.channel_recall import ChannelRankings
from vecall.pipeline.merge_tuning import _use_configured_weights, find_plan, tune_merge

N_ITEMS, N_CASES, K = 400, 300, 20
KS = (10, K)


class PlantedRecaller:
    """Recalls random items, and the target of some cases at a random rank."""

    def __init__(self, shares, *, targets, seed=0):
        self.channels = tuple(shares)
        self.snapshot = SimpleNamespace(release=SimpleNamespace(vectors=SimpleNamespace(size=N_ITEMS)))
        self.asked = []
        rng = np.random.default_rng(seed)
        self._rows = {}
        for name, (first, last) in shares.items():  # the cases whose target the channel finds
            rows = np.array([rng.permutation(np.arange(1, N_ITEMS))[:K] for _ in range(N_CASES)])
            rows[rows == targets[:, None]] = 0  # which is never a target
            found = np.arange(int(first * N_CASES), int(last * N_CASES))
            rows[found, rng.integers(0, 5, len(found))] = targets[found]
            self._rows[name] = rows

    def rank(self, cases, k, *, exclude_seen, channels=None):
        self.asked.append((len(cases), k, exclude_seen))
        rows = {name: rows[cases.users, :k] for name, rows in self._rows.items()}
        return ChannelRankings(rows, {}, np.ones(len(cases), dtype=bool))


TARGETS = np.random.default_rng(1).integers(1, N_ITEMS, N_CASES)


def make_cases(histories=None):
    histories = [[] for _ in range(N_CASES)] if histories is None else histories
    lists = RaggedArray.from_lists(histories), RaggedArray.from_lists(TARGETS[:, None])
    return EvalCases(np.arange(N_CASES), *lists)


def test_channel_that_finds_other_targets_is_merged():
    recaller = PlantedRecaller({"vector": (0, 0.3), "similar": (0.3, 0.6)}, targets=TARGETS)
    plan = find_plan(recaller, make_cases(), KS)
    assert plan.channels == ("vector", "similar")
    assert recaller.asked == [(N_CASES, K, True)]
    assert "of 300 validation users recall@10 0.3000 → 0.6000, recall@20 0.3000 → 0.6000" in plan.reason
    assert plan.depth == K


def test_channel_of_random_items_is_not_merged():
    recaller = PlantedRecaller({"vector": (0, 0.3), "similar": (0, 0), "popular": (0, 0)}, targets=TARGETS)
    plan = find_plan(recaller, make_cases(), KS)
    assert plan.channels == ("vector",)
    assert plan.reason.startswith("no merge")


def test_gain_that_two_standard_errors_could_be_is_not_merged():
    """Similar finds the targets of three users, and is otherwise as the vectors."""
    recaller = PlantedRecaller({"vector": (0, 0.3), "similar": (0, 0)}, targets=TARGETS)
    recaller._rows["similar"] = recaller._rows["vector"].copy()
    recaller._rows["similar"][100:103, 0] = TARGETS[100:103]
    plan = find_plan(recaller, make_cases(), KS)
    forced = find_plan(recaller, make_cases(), KS, "rrf")
    assert (forced.method, forced.channels) == ("rrf", ("vector", "similar"))
    assert plan.channels == ("vector",)
    assert "no merge gains more than noise" in plan.reason


def test_gain_of_few_users_is_not_believed():
    recaller = PlantedRecaller({"vector": (0, 0.3), "similar": (0.3, 0.6)}, targets=TARGETS)
    cases = make_cases().take(np.arange(85, 125))
    plan = find_plan(recaller, cases, KS)
    assert plan.channels == ("vector",)
    assert "40 validation users are too few" in plan.reason
    assert find_plan(recaller, cases, KS, "rrf").channels == ("vector", "similar")


@pytest.mark.parametrize("method", ["rrf", "quota"])
def test_named_method_is_kept(method):
    recaller = PlantedRecaller({"vector": (0, 0.3), "similar": (0.3, 0.6)}, targets=TARGETS)
    assert find_plan(recaller, make_cases(), KS, method).method == method


def test_plan_that_loses_at_a_wanted_depth_is_not_merged():
    """Similar finds few targets, all at the top; merging it loses more than these at the largest k."""
    recaller = PlantedRecaller({"vector": (0, 0), "similar": (0, 0)}, targets=TARGETS)
    recaller._rows["vector"][:200, K - 1] = TARGETS[:200]
    recaller._rows["similar"][200:240, 0] = TARGETS[200:240]
    assert find_plan(recaller, make_cases(), KS, "rrf").channels == ("vector", "similar")
    assert find_plan(recaller, make_cases(), KS).channels == ("vector",)


def test_repeats_are_weighed_with_seen_items_included():
    histories = [[target] if case < 100 else [] for case, target in enumerate(TARGETS)]
    recaller = PlantedRecaller({"vector": (0.5, 0.8), "repeat": (0, 0.33)}, targets=TARGETS)
    plan = find_plan(recaller, make_cases(histories), KS)
    assert plan.channels == ("vector", "repeat")
    assert recaller.asked == [(N_CASES, K, False)]


def test_given_weights_are_taken_without_channels_that_are_missing():
    settings = ChannelsSettings(merge="quota", weights={"vector": 0.8, "similar": 0.1, "popular": 0.1})
    plan = _use_configured_weights(settings, ("vector", "similar"))
    assert (plan.method, plan.weights) == ("quota", {"vector": 0.8, "similar": 0.1})
    assert "without popular" in plan.reason
    settings = ChannelsSettings(merge="rrf", weights={"similar": 1, "vector": 1})
    assert _use_configured_weights(settings, ("vector",)).channels == ("vector",)
    assert _use_configured_weights(settings, ("vector", "similar")).channels == ("vector", "similar")


def test_vectors_too_large_to_copy_are_not_searched(monkeypatch):
    def fail():
        raise AssertionError("the vectors were copied")

    monkeypatch.setattr(merge_tuning, "MAX_COPIED_BYTES", 2 * N_ITEMS * 8 - 1)
    config = SimpleNamespace(channels=ChannelsSettings(), model=SimpleNamespace(dim=8))
    dataset = SimpleNamespace(catalogue=SimpleNamespace(items=range(N_ITEMS)))
    plan = tune_merge(config, dataset, None, fail)
    assert plan.channels == ("vector",)
    assert "more than 2 GiB" in plan.reason
    config.channels = ChannelsSettings(merge="rrf", weights={"vector": 1, "similar": 0.5})
    assert tune_merge(config, dataset, None, fail).weights == {"vector": 1, "similar": 0.5}


def test_plan_is_restricted_to_the_channels_of_a_release():
    plan = MergePlan(weights={"vector": 1.0, "similar": 0.5}, reason="found")
    assert plan.restrict(("vector", "popular")).weights == {"vector": 1.0}
    assert plan.restrict(()) == VECTORS_ALONE
    assert (str(plan), str(VECTORS_ALONE)) == ("rrf of vector 1, similar 0.5", "vector alone")
