"""Choice of a preset by short trainings, judged on the validation users: `preset = "auto"`.

The rules, and what they rest on: docs/decisions/0016-auto-preset.md.
"""

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vecall import progress
from vecall.config import Config
from vecall.data.ragged import EvalCases
from vecall.data.split import Split
from vecall.errors import ConfigError, TrainingError
from vecall.evaluation.baselines import Popularity
from vecall.evaluation.cooccurrence import RecentCooccurrence
from vecall.evaluation.evaluator import evaluate_scorer
from vecall.evaluation.fallback import FallbackScorer
from vecall.evaluation.metrics import limit_depth
from vecall.pipeline.selection_record import (
    SELECTION_DIR,
    SelectionRecord,
    TrialRecord,
    read_selection,
    read_trial,
    write_selection,
    write_trial,
)
from vecall.pipeline.selection_trial import run_trial, sample_users
from vecall.training.data import TrainingData
from vecall.training.distributed import ProcessGroup, run_on_main
from vecall.training.scoring import Scorer

logger = logging.getLogger(__name__)

# Settings of the trials where the file leaves them out; a schedule of so few epochs comes to its end.
TRIAL_SETTINGS: Mapping[str, dict[str, dict[str, Any]]] = {
    "set": {"model": {"dim": 64, "ensemble_size": 1}, "training": {"epochs": 4}},
    "pooled": {"model": {"dim": 64, "ensemble_size": 1}, "training": {"epochs": 2}},
}
# The history encoders that make a preset what it is; `pooled` takes the others.
_DEFINING_ENCODERS = {"set": "set", "causal": "sequence"}
_UNTRIED = "sequence"  # begins to be better only after hours on large data: chosen by what the order is worth
_MIN_SEQUENCE_USERS = 10_000  # with fewer, `pooled` was better; docs/decisions/0010-sequence-preset.md
_MIN_ORDER_GAIN = 1.05  # score with the order of histories by that with shuffled ones
_ROWS_PER_MINUTE, _MAX_MINUTES = 200_000, 20.0
_INTERACTIONS_PER_SECOND = 2_000  # of a trial with all its epochs, on 2 slow cores
_MAX_VALIDATION_USERS = 5_000


def compute_default_minutes(n_interactions: int) -> float:
    """Return the minutes that choosing may take by default: a minute per 200,000 interactions, at most 20."""
    return min(_MAX_MINUTES, n_interactions / _ROWS_PER_MINUTE)


def select_preset(
    config: Config,
    data: TrainingData,
    split: Split,
    run_dir: Path,
    *,
    wrap_scorer: Callable[[Scorer], Scorer],
    group: ProcessGroup | None,
) -> Config:
    """Choose a preset and return the settings with it, or return what an interrupted run had chosen.

    Keys that the file gives hold for every preset; one that cannot take them is left out and named.

    Args:
        config: Settings with `preset = "auto"`.
        data: Training data.
        split: Its split; only the validation part is evaluated.
        run_dir: Takes `selection/`.
        wrap_scorer: Wraps a scorer as evaluation does.
        group: Processes that train together; None for a single process.

    Raises:
        ConfigError: No preset can take the settings.
        TrainingError: As `train`.
    """
    if (kept := run_on_main(group, partial(read_selection, run_dir))) is not None:
        return kept.parse_config()
    minutes = config.training.minutes or compute_default_minutes(len(data.histories.values))
    progress.announce(
        f'preset = "auto": choosing takes up to {_format_minutes(minutes)}; training the choice to its end comes after'
    )
    start = time.perf_counter()
    (run_dir / SELECTION_DIR).mkdir(parents=True, exist_ok=True)
    resolved, left_out = _resolve_presets(config)
    cases = _sample_validation_users(split.valid)
    trials: list[TrialRecord] = []
    for preset in TRIAL_SETTINGS:
        if preset not in resolved or len(resolved) == 1:
            continue
        trial = run_on_main(group, partial(read_trial, run_dir, preset))
        if trial is None:
            elapsed = run_on_main(group, lambda: time.perf_counter() - start)
            share = (60 * minutes - elapsed) / (len(TRIAL_SETTINGS) - len(trials))
            trial = run_trial(
                config.with_preset(preset, TRIAL_SETTINGS[preset]),
                sample_users(data, max(1, int(_INTERACTIONS_PER_SECOND * max(share, 1.0)))),
                cases,
                run_dir,
                wrap_scorer=wrap_scorer,
                group=group,
            )
            run_on_main(group, partial(write_trial, trial, run_dir))
        trials.append(trial)
    n_users = int((data.histories.lengths > 1).sum())
    preset, reason = choose_preset(trials, list(resolved), n_users)
    selection = SelectionRecord(
        preset=preset,
        reason=reason,
        budget_seconds=60 * minutes,
        seconds=round(time.perf_counter() - start, 1),
        recall_depth=limit_depth(data.n_items),
        validation_users=len(cases),
        trials=tuple(trials),
        left_out=left_out,
        baselines=run_on_main(group, partial(_evaluate_baselines, split, cases, data.n_items)),
        config=resolved[preset].as_json(),
    )
    run_on_main(group, partial(write_selection, selection, run_dir))
    for line in selection.describe():
        progress.announce(line)
    return resolved[preset]


def adopt_preset(config: Config, init_config: Config, run_dir: Path, group: ProcessGroup | None) -> Config:
    """Return the settings with preset, towers and training of the run that the weights come from, and record them.

    Keys that the file gives hold.
    """
    init_settings = init_config.as_json()
    preset = init_config.model.preset
    resolved = config.with_preset(preset, {section: init_settings[section] for section in ("model", "training")})
    selection = SelectionRecord(
        preset=preset, reason="the preset of the run that the weights come from", config=resolved.as_json()
    )
    run_on_main(group, partial(write_selection, selection, run_dir))
    return resolved


def _format_minutes(minutes: float) -> str:
    return f"{60 * minutes:.0f} s" if minutes < 1 else f"{minutes:.0f} min"


def _resolve_presets(config: Config) -> tuple[dict[str, Config], dict[str, str]]:
    """Return the settings by preset, and the presets that cannot take the file's keys with the reason.

    Raises:
        ConfigError: None can.
    """
    resolved, left_out = {}, {}
    for preset in (*TRIAL_SETTINGS, _UNTRIED):
        try:
            candidate = config.with_preset(preset)
        except ConfigError as error:
            left_out[preset] = str(error).replace("\n", "; ")
            continue
        encoder = candidate.model.history.encoder
        if _DEFINING_ENCODERS.get(encoder, "pooled") == preset:
            resolved[preset] = candidate
        else:
            left_out[preset] = f"model.history.encoder = {encoder!r} is given"
    if not resolved:
        problems = "\n".join(f"{preset}: {problem}" for preset, problem in left_out.items())
        raise ConfigError(f'no preset that model.preset = "auto" tries can take these settings:\n{problems}')
    return resolved, left_out


def _sample_validation_users(cases: EvalCases) -> EvalCases:
    if len(cases) <= _MAX_VALIDATION_USERS:
        return cases
    drawn = np.random.default_rng(0).choice(len(cases), size=_MAX_VALIDATION_USERS, replace=False)
    return cases.take(np.sort(drawn))


def choose_preset(trials: list[TrialRecord], presets: list[str], n_users: int) -> tuple[str, str]:
    """Choose by the trials.

    Args:
        trials: Trials of `set` and `pooled`, or of those that can take the settings.
        presets: Presets that can take the settings, one or more.
        n_users: Users with two or more training positives.

    Returns:
        A preset, and a sentence about why.

    Raises:
        TrainingError: A trial has no score.
    """
    if not trials:
        return presets[0], "no other preset can take the settings"
    by_preset = {trial.preset: trial for trial in trials}
    best = max(trials, key=lambda trial: trial.metrics["score"])
    if not np.isfinite(best.metrics["score"]):
        raise TrainingError("no trial has a score: the validation part has no target that can be ranked")
    if best.preset == "set" or "pooled" not in by_preset:
        return best.preset, "a history is read best as a set: the order of its items carries less than the set does"
    order_gain = _compute_order_gain(by_preset["pooled"])
    if "sequence" not in presets or order_gain < _MIN_ORDER_GAIN:
        return "pooled", f"the order of histories is worth a factor of {order_gain:.2f}"
    if n_users < _MIN_SEQUENCE_USERS:
        return "pooled", (
            f"the order of histories is worth a factor of {order_gain:.2f}, but {n_users:,} users are too few for "
            f"`sequence`, which needs about {_MIN_SEQUENCE_USERS:,}"
        )
    return "sequence", (
        f"the order of histories is worth a factor of {order_gain:.2f}, and {n_users:,} users are enough to learn it"
    )


def _compute_order_gain(trial: TrialRecord) -> float:
    """Return the trial's score with the order of histories, divided by that with shuffled histories."""
    return trial.metrics["score"] / max(trial.metrics["shuffled_score"], 1e-9)


def _evaluate_baselines(split: Split, cases: EvalCases, n_items: int) -> dict[str, float]:
    """Return recall of popularity and co-occurrence; those that do not fit in memory are left out."""
    k = limit_depth(n_items)
    popularity = Popularity(split.train, n_items)
    recalls = {"popularity": _compute_recall(popularity, cases, n_items, k)}
    try:
        cooccurrence = FallbackScorer(RecentCooccurrence(split.train, n_items), popularity.item_counts)
    except ConfigError as error:
        logger.warning("skipped baseline cooccurrence: %s", error)
        return recalls
    return recalls | {"cooccurrence": _compute_recall(cooccurrence, cases, n_items, k)}


def _compute_recall(scorer: Scorer, cases: EvalCases, n_items: int, k: int) -> float:
    result = evaluate_scorer(scorer, cases, n_items, (k,), max_sample_users=0)
    return result.seen_excluded_or_included[f"recall@{k}"]
