"""Users of the trials of `preset = "auto"`, as many as can be trained on and evaluated in the time.

No clock is asked, so that a choice can be repeated on a machine of any speed: see `selection_costs`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from vecall.config import Config
from vecall.data.ragged import EvalCases
from vecall.data.split import Split
from vecall.evaluation.sampling import sample_cases
from vecall.pipeline.selection_costs import (
    compute_max_ranked_pairs,
    estimate_baseline_seconds,
    estimate_evaluation_seconds,
    estimate_training_seconds,
)
from vecall.pipeline.selection_trial import sample_users
from vecall.training.data import TrainingData

_TARGET_SHARE = 0.6  # of the interactions, in trials whose time was not given
_MIN_SECONDS, _MAX_SECONDS = 20.0, 1_200.0
_SMALL_ROWS, _MAX_SMALL_SECONDS = 200_000, 60.0
_ROWS_PER_MINUTE = 50_000  # beyond
_EVALUATION_SHARE = 0.25  # of the time; of huge catalogues fewer users are ranked
_BASELINE_SHARE = 0.25  # of the time, at most; the baselines are told and never chosen
_MIN_VALIDATION_USERS, _MAX_VALIDATION_USERS = 500, 5_000
_MIN_SAMPLE = 2_000


@dataclass(frozen=True)
class TrialPlan:
    """What the trials are trained on and evaluated with, and what they are expected to take.

    Attributes:
        configs: Settings of each trial by preset, in their order.
        sample: Training data of the users that all of them get.
        cases: Validation users.
        trial_seconds: Expected time of each trial.
        seconds: Expected time of all phases: trials and baselines.
        budget_seconds: Time that the users were chosen for.
        has_baselines: Whether popularity and co-occurrence are evaluated beside them: not where counting them would
            take the time of the trials.
    """

    configs: Mapping[str, Config]
    sample: TrainingData
    cases: EvalCases
    trial_seconds: Mapping[str, float]
    seconds: float
    budget_seconds: float
    has_baselines: bool


def plan_trials(configs: Mapping[str, Config], data: TrainingData, split: Split, minutes: float) -> TrialPlan:
    """Give all trials the same users, as many as the time allows beside the evaluations and the baselines.

    Args:
        configs: Settings of each trial by preset; without any there is nothing to plan.
        data: Training data.
        split: Its split.
        minutes: Time that is given; 0 for `compute_default_seconds`.
    """
    if not configs:
        return TrialPlan(configs, data, split.valid, {}, 0.0, 0.0, has_baselines=False)
    n_rows, n_interactions = len(split.positive_parts), len(data.histories.values)
    max_seconds = 60 * minutes or _limit_seconds(n_rows)
    n_users = compute_max_ranked_pairs(_EVALUATION_SHARE * max_seconds) // data.n_items
    cases = sample_cases(split.valid, min(_MAX_VALIDATION_USERS, max(_MIN_VALIDATION_USERS, n_users)))
    evaluation_seconds = estimate_evaluation_seconds(len(cases), data.n_items)
    counting_seconds = estimate_baseline_seconds(n_interactions)
    has_baselines = counting_seconds <= _BASELINE_SHARE * max_seconds
    baseline_seconds = counting_seconds + evaluation_seconds if has_baselines else 0.0
    evaluation_by_preset = dict.fromkeys(configs, 2 * evaluation_seconds)  # after the first epoch and after the last
    evaluation_by_preset[next(iter(configs))] = evaluation_seconds  # with no other to compare with
    measuring_seconds = sum(evaluation_by_preset.values()) + baseline_seconds
    training_seconds = sum(estimate_training_seconds(config, data) for config in configs.values())
    budget_seconds = 60 * minutes or compute_default_seconds(
        measuring_seconds + _TARGET_SHARE * training_seconds, n_rows
    )
    share = min(1.0, max(0.0, budget_seconds - measuring_seconds) / training_seconds)
    sample = sample_users(data, max(_MIN_SAMPLE, int(share * n_interactions)))
    trial_seconds = {
        preset: estimate_training_seconds(config, sample) + evaluation_by_preset[preset]
        for preset, config in configs.items()
    }
    seconds = sum(trial_seconds.values()) + baseline_seconds
    return TrialPlan(configs, sample, cases, trial_seconds, seconds, budget_seconds, has_baselines)


def compute_default_seconds(target_seconds: float, n_rows: int) -> float:
    """Return what choosing may take by default.

    Args:
        target_seconds: What it would take with 60 % of the interactions.
        n_rows: Positive interactions of the tables.

    Returns:
        `target_seconds`, or 20 s if that is more, so that small data are tried as a whole; at most a minute below
        200,000 rows, and a minute for every 50,000 rows, up to 20, beyond.
    """
    return min(max(target_seconds, _MIN_SECONDS), _limit_seconds(n_rows))


def _limit_seconds(n_rows: int) -> float:
    if n_rows < _SMALL_ROWS:
        return _MAX_SMALL_SECONDS
    return min(_MAX_SECONDS, 60 * n_rows / _ROWS_PER_MINUTE)
