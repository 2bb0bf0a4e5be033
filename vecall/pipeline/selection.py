"""Choice of a preset by short trainings, evaluated on the validation users: `preset = "auto"`.

`resolve_preset` finds the presets that can take the keys of the file, runs the trials that are not in `RUN/selection/`
yet (`selection_trial`), chooses by them (`selection_rules`) and records all of it (`selection_record`).
The rules, and what they rest on: docs/decisions/0016-auto-preset.md.
"""

import time
from collections.abc import Mapping
from functools import partial

from vecall import progress
from vecall.config import AUTO_PRESET, Config
from vecall.data.ragged import EvalCases
from vecall.data.split import Split
from vecall.errors import ConfigError, TrainingError
from vecall.evaluation.baseline_evaluation import build_baseline_factories, evaluate_models
from vecall.evaluation.baselines import Popularity
from vecall.evaluation.metrics import limit_depth
from vecall.pipeline.selection_costs import estimate_sequence_seconds
from vecall.pipeline.selection_length import compute_length_factor, count_later_targets, lengthen
from vecall.pipeline.selection_plan import TrialPlan, plan_trials
from vecall.pipeline.selection_record import (
    SelectionRecord,
    TrialRecord,
    format_seconds,
    read_selection,
    read_trial,
    write_selection,
)
from vecall.pipeline.selection_rules import UNTRIED_PRESET, SequenceCosts, choose_preset
from vecall.pipeline.selection_trial import TRIED_PRESETS, TrialRunner, delete_trial_dirs, shorten
from vecall.training.data import TooLittleDataError, TrainingData
from vecall.training.distributed import ProcessGroup, run_on_main
from vecall.training.fit import check_training_memory

# The history encoders that make a preset what it is; `pooled` takes the others.
_DEFINING_ENCODERS = {"set": "set", "causal": "sequence"}
RUN_BOUND_KEYS = frozenset({"devices", "precision", "minutes", "logger", "refit"})
"""Settings of `training` that belong to a machine or a run rather than to its model."""

_QUICK_BASELINES = ("popularity", "cooccurrence")
_START_SECONDS = 2.0  # of the first training, which loads what it needs
_SLOW_FACTOR = 1.5  # of the first trial's time over its estimate; above, the announced time is corrected


def resolve_preset(
    config: Config,
    data: TrainingData,
    split: Split,
    runner: TrialRunner,
    init_config: Config | None,
) -> Config:
    """Return the settings with a preset in place of "auto"; those with another preset are returned as they are.

    What an interrupted run had chosen holds. Keys that the file gives hold for every preset; one that cannot take them
    is left out and named.

    Args:
        config: Settings.
        data: Training data.
        split: Its split; only the validation part is evaluated.
        runner: Runs the trials in the run directory.
        init_config: Settings of the run that the weights come from, whose preset is taken; None without one.

    Raises:
        ConfigError: No preset can take the settings.
        TrainingError: As `train`, or a record in `selection/` cannot be read.
    """
    if config.model.preset != AUTO_PRESET:
        return config
    record = run_on_main(runner.group, partial(read_selection, runner.run_dir))
    if record is None:
        if init_config is None:
            record = _select_preset(config, data, split, runner)
        else:
            record = _adopt_preset(config, init_config)
        run_on_main(runner.group, partial(write_selection, record, runner.run_dir))
        for line in record.describe():
            progress.announce(line)
    run_on_main(runner.group, partial(delete_trial_dirs, runner.run_dir))
    return record.parse_config()


def _adopt_preset(config: Config, init_config: Config) -> SelectionRecord:
    """Take preset, towers and training of the run that the weights come from; keys that the file gives hold."""
    init_settings = init_config.as_json()
    training = {key: value for key, value in init_settings["training"].items() if key not in RUN_BOUND_KEYS}
    preset = init_config.model.preset
    resolved = config.with_preset(preset, {"model": init_settings["model"], "training": training})
    return SelectionRecord(
        preset=preset, reason="the preset of the run that the weights come from", config=resolved.as_json()
    )


def _select_preset(config: Config, data: TrainingData, split: Split, runner: TrialRunner) -> SelectionRecord:
    """Run the trials and choose."""
    start = time.perf_counter()
    group = runner.group
    candidates, left_out = find_candidates(config)
    too_large = run_on_main(group, partial(_find_too_large, candidates, data, group))
    if len(too_large) < len(candidates):  # else the training tells what would fit
        candidates = {preset: candidate for preset, candidate in candidates.items() if preset not in too_large}
        left_out |= too_large
    # What the file says of the length of a training holds.
    has_own_length = not {"epochs", "patience"}.isdisjoint(config.training.model_fields_set)
    factors = {
        preset: 1.0 if has_own_length else compute_length_factor(candidate, data)
        for preset, candidate in candidates.items()
    }
    candidates = {preset: lengthen(candidate, factors[preset]) for preset, candidate in candidates.items()}
    # A single candidate needs no trial, and without validation users a trial has no result.
    is_tried = len(candidates) > 1 and len(split.valid) > 0
    configs = {
        preset: shorten(candidates[preset], factors[preset])
        for preset in TRIED_PRESETS
        if preset in candidates and is_tried
    }
    plan = plan_trials(configs, data, split, config.training.minutes)
    if is_tried:
        progress.announce(
            f'preset = "auto": choosing takes about {format_seconds(plan.seconds)}; training the choice to its end '
            "comes after"
        )
    trials, failures = _run_trials(plan, runner)
    left_out |= failures
    presets = [preset for preset in candidates if preset not in failures]
    preset, reason = choose_preset(trials, presets, _estimate_sequence_costs(candidates, data))
    baselines = {}
    if plan.has_baselines:
        baselines = run_on_main(group, partial(_evaluate_baselines, split, plan.cases, data.n_items))
    return SelectionRecord(
        preset=preset,
        reason=reason,
        config=candidates[preset].as_json(),
        budget_seconds=round(plan.budget_seconds, 1),
        announced_seconds=round(plan.seconds, 1),
        seconds=round(time.perf_counter() - start, 1),
        recall_depth=limit_depth(data.n_items),
        validation_users=len(plan.cases),
        trials=tuple(trials),
        left_out=left_out,
        baselines=baselines,
    )


def _estimate_sequence_costs(candidates: Mapping[str, Config], data: TrainingData) -> SequenceCosts:
    n_users = int((data.histories.lengths > 1).sum())
    if (config := candidates.get(UNTRIED_PRESET)) is None:
        return SequenceCosts(n_users, 0, 0.0)
    return SequenceCosts(n_users, count_later_targets(data), estimate_sequence_seconds(config, data))


def _run_trials(plan: TrialPlan, runner: TrialRunner) -> tuple[list[TrialRecord], dict[str, str]]:
    """Run the trials that have no record yet; return the records, and why the other presets cannot be trained.

    Raises:
        TrainingError: None can be trained; or one of several processes has failed, of whose state the others know
            nothing.
    """
    trials: list[TrialRecord] = []
    failures: dict[str, str] = {}
    for preset, config in plan.configs.items():
        trial = run_on_main(runner.group, partial(read_trial, runner.run_dir, preset))
        scores = [ended.metrics["score"] for ended in trials]
        best_score = max((score for score in scores if score > 0), default=0.0)  # undefined ones are NaN
        try:
            trials.append(trial or runner.run(config, plan.sample, plan.cases, best_score))
        except TrainingError as error:  # such as too few items by user for this preset
            is_common = runner.group is None or isinstance(error, TooLittleDataError)  # to all processes
            if not is_common or len(failures) == len(plan.configs) - 1:
                raise
            failures[preset] = str(error)
            continue
        if trial is None and len(trials) + len(failures) == 1:
            _announce_delay(trials[0], plan)
    return trials, failures


def _announce_delay(first: TrialRecord, plan: TrialPlan) -> None:
    """Correct the announced time if the first trial shows that the machine is slower than was assumed."""
    expected = plan.trial_seconds[first.preset]
    factor = first.seconds / (expected + _START_SECONDS)
    if factor > _SLOW_FACTOR:
        rest = factor * (plan.seconds - expected)
        progress.announce(
            f"  this machine is {factor:.1f} times slower than was assumed, or busy: choosing takes about "
            f"{format_seconds(rest)} more"
        )


def find_candidates(config: Config) -> tuple[Mapping[str, Config], dict[str, str]]:
    """Return the settings by preset, and the presets that cannot take the keys of the file with the reason.

    Raises:
        ConfigError: None can.
    """
    candidates: dict[str, Config] = {}
    left_out: dict[str, str] = {}
    for preset in (*TRIED_PRESETS, UNTRIED_PRESET):
        try:
            candidate = config.with_preset(preset)
        except ConfigError as error:
            left_out[preset] = str(error).replace("\n", "; ")
            continue
        encoder = candidate.model.history.encoder
        if _DEFINING_ENCODERS.get(encoder, "pooled") == preset:
            candidates[preset] = candidate
        else:
            left_out[preset] = f"model.history.encoder = {encoder!r} is given"
    if not candidates:
        problems = "\n".join(f"{preset}: {problem}" for preset, problem in left_out.items())
        raise ConfigError(f'no preset that model.preset = "auto" tries can take these settings:\n{problems}')
    return candidates, left_out


def _find_too_large(candidates: Mapping[str, Config], data: TrainingData, group: ProcessGroup | None) -> dict[str, str]:
    """Return the presets whose training at full size does not fit in memory, with the reason."""
    too_large = {}
    for preset, candidate in candidates.items():
        try:
            check_training_memory(data, candidate.model, candidate.training, validates=True, group=group)
        except TrainingError as error:
            too_large[preset] = str(error)
    return too_large


def _evaluate_baselines(split: Split, cases: EvalCases, n_items: int) -> dict[str, float]:
    """Return recall of popularity and co-occurrence; those that do not fit in memory are left out."""
    k = limit_depth(n_items)
    factories = build_baseline_factories(split, n_items, Popularity(split.counted_train, n_items))
    evaluated = evaluate_models({name: factories[name] for name in _QUICK_BASELINES}, cases, n_items, (k,))
    return {name: result.seen_excluded_or_included[f"recall@{k}"] for name, result in evaluated.results.items()}
