"""Rules by which `preset = "auto"` chooses, given the results of its trials.

The evidence for each constant: docs/decisions/0016-auto-preset.md.
"""

from collections.abc import Sequence
from typing import NamedTuple

from vecall.pipeline.selection_record import TrialRecord

# Begins to be better only after hours on large data, so a short trial says nothing: chosen by what the order is worth.
UNTRIED_PRESET = "sequence"

_MIN_SEQUENCE_USERS = 10_000  # with fewer, `pooled` was better; docs/decisions/0010-sequence-preset.md
_MIN_SEQUENCE_TARGETS = 80_000  # likewise; users with two or three items each say little of an order
_MAX_SEQUENCE_SECONDS = 12 * 3_600.0
_MIN_ORDER_GAIN = 1.05


class SequenceCosts(NamedTuple):
    """What decides, beside the trials, whether `sequence` is taken.

    Attributes:
        users: Users with two or more training positives.
        targets: Positives that come after another one of their user.
        seconds: Estimated time of its training; 0 where that is not known, as on a GPU.
    """

    users: int
    targets: int
    seconds: float


def choose_preset(trials: Sequence[TrialRecord], presets: Sequence[str], sequence: SequenceCosts) -> tuple[str, str]:
    """Choose a preset by the scores of the trials, by what the order of histories is worth, and by the users.

    Args:
        trials: Trials of `set` and `pooled`, or of those that can take the settings.
        presets: Presets that can take the settings, at least one.
        sequence: What `sequence` would learn from, and take.

    Returns:
        A preset, and a sentence about why.
    """
    if len(presets) == 1:
        return presets[0], "no other preset can take the settings"
    by_preset = {trial.preset: trial for trial in trials if trial.metrics["score"] > 0}  # undefined ones are NaN
    if not by_preset:
        default = "pooled" if "pooled" in presets else presets[0]
        return default, "no trial found an item of the validation part, by which presets could be compared"
    best = max(by_preset.values(), key=lambda trial: trial.metrics["score"])
    if best.preset == "set":
        return "set", _describe_win_of_set(by_preset)
    gain = _compute_order_gain(best)
    order = f"the order of histories is worth a factor of {gain:.2f}"
    if UNTRIED_PRESET not in presets:
        return best.preset, f"it finds the most; {order}"
    if gain < _MIN_ORDER_GAIN:
        return best.preset, f"it finds the most, and {order}: too little for `{UNTRIED_PRESET}`"
    if obstacle := _find_obstacle(sequence):
        return best.preset, f"{order}, but {obstacle}"
    return UNTRIED_PRESET, f"{order}, and {sequence.users:,} users are enough to learn it"


def _find_obstacle(sequence: SequenceCosts) -> str:
    """Return why `sequence` is not taken although there is an order; empty if it is."""
    for count, minimum, noun in (
        (sequence.users, _MIN_SEQUENCE_USERS, "users"),
        (sequence.targets, _MIN_SEQUENCE_TARGETS, "interactions after the first of each user"),
    ):
        if count < minimum:
            return f"{count:,} {noun} are too few for `{UNTRIED_PRESET}`, which needs about {minimum:,}"
    if sequence.seconds > _MAX_SEQUENCE_SECONDS:
        return (
            f"`{UNTRIED_PRESET}` would be trained for about {sequence.seconds / 3_600:,.0f} h: where that is worth "
            f"while, set model.preset = {UNTRIED_PRESET!r} and training.epochs"
        )
    return ""


def _describe_win_of_set(by_preset: dict[str, TrialRecord]) -> str:
    if "pooled" not in by_preset:
        return "it alone could be tried"
    ratio = by_preset["set"].metrics["score"] / by_preset["pooled"].metrics["score"]
    return f"histories say more as sets than by their order: its score is {ratio:.2f} times that of `pooled`"


def _compute_order_gain(trial: TrialRecord) -> float:
    """Return the trial's score with the order of histories, divided by that with shuffled histories."""
    return trial.metrics["score"] / max(trial.metrics["shuffled_score"], 1e-9)
