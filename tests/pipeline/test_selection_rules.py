"""The choice of a preset by the results of trials."""

import math

import pytest

from vecall.pipeline.selection_record import TrialRecord
from vecall.pipeline.selection_rules import SequenceCosts, choose_preset

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
    result = choose_preset(trials, presets, SequenceCosts(n_users, targets=80_000, seconds=12 * 3_600))
    assert result[0] == chosen
    assert reason in result[1]


@pytest.mark.parametrize(
    ("targets", "hours", "reason"),
    [
        (79_999, 1, "79,999 interactions after the first of each user are too few for `sequence`, which needs"),
        (80_000, 13, "`sequence` would be trained for about 13 h: where that is worth while, set model.preset"),
    ],
)
def test_sequence_is_not_taken_for_short_histories_or_where_it_would_take_half_a_day(targets, hours, reason):
    trials = [make_trial("set", 0.1), make_trial("pooled", 0.2, 0.1)]
    preset, sentence = choose_preset(trials, ALL, SequenceCosts(50_000, targets, 3_600.0 * hours))
    assert preset == "pooled"
    assert f"2.00, but {reason}" in sentence
