"""The choice of a preset by the results of trials."""

import math

import pytest

from vecall.pipeline.selection_record import TrialRecord
from vecall.pipeline.selection_rules import choose_preset

ALL = ["set", "pooled", "sequence"]


def make_trial(preset, score, shuffled_score=None):
    shuffled_score = score if shuffled_score is None else shuffled_score
    return TrialRecord(
        preset=preset,
        settings={},
        users=10,
        interactions=100,
        metrics={"score": score, "shuffled_score": shuffled_score},
        standard_error=0.01,
        seconds=1.0,
    )


@pytest.mark.parametrize(
    ("set_score", "pooled_scores", "presets", "n_users", "chosen", "reason"),
    [
        (0.3, (0.2, 0.1), ALL, 50_000, "set", "1.50 times that of `pooled`"),
        (0.2, (0.2, 0.1), ALL, 10, "set", "1.00 times"),  # of equals, the cheaper
        (0.1, (0.2, 0.1), ALL, 9_999, "pooled", "2.00, but 9,999 users are too few for `sequence`"),
        (0.1, (0.2, 0.1), ALL, 10_000, "sequence", "2.00, and 10,000 users are enough"),
        (0.1, (0.211, 0.2), ALL, 10_000, "sequence", "1.05"),
        (0.1, (0.209, 0.2), ALL, 10_000, "pooled", "too little for `sequence`"),
        (0.1, (0.2, 0.3), ALL, 10_000, "pooled", "0.67: too little"),
        (0.1, (0.2, 0.1), ["set", "pooled"], 10_000, "pooled", "it finds the most; the order of histories is worth"),
        (None, (0.2, 0.1), ["pooled", "sequence"], 10_000, "sequence", "enough"),
        (None, (0.2, 0.1), ["pooled", "sequence"], 9, "pooled", "too few"),
        (0.2, None, ["set", "sequence"], 10_000, "set", "it alone could be tried"),
        (0.0, (0.0, 0.0), ALL, 10_000, "pooled", "no trial found an item"),
        (math.nan, (0.2, 0.1), ALL, 9, "pooled", "too few"),
        (math.nan, (math.nan, math.nan), ALL, 10_000, "pooled", "no trial found an item"),
        (None, None, ALL, 10_000, "pooled", "no trial found an item"),
        (None, None, ["set", "sequence"], 10_000, "set", "no trial found an item"),
        (None, None, ["sequence"], 9, "sequence", "no other preset can take the settings"),
    ],
)
def test_choice_follows_scores_order_and_users(set_score, pooled_scores, presets, n_users, chosen, reason):
    trials = [] if set_score is None else [make_trial("set", set_score)]
    trials += [] if pooled_scores is None else [make_trial("pooled", *pooled_scores)]
    assert choose_preset(trials, presets, n_users)[0] == chosen
    assert reason in choose_preset(trials, presets, n_users)[1]
