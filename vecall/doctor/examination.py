"""Examine a run or a store: every check on one context, the most serious and most likely findings first."""

from collections.abc import Callable
from pathlib import Path

from vecall.config import Config, check_config
from vecall.doctor.checks import (
    all_positive_labels,
    ann_recall_low,
    answers_eaten,
    batch_collisions,
    below_baselines,
    collapsed_vectors,
    dropped_rows,
    duplicates_over_splits,
    events_swamp_histories,
    hubs,
    index_tuned_elsewhere,
    learning_rate_off,
    malformed_ids,
    missing_logq,
    order_unused,
    overfitting,
    own_protocol,
    popularity_bias,
    repeats_hidden,
    repeats_swamp_histories,
    served_vectors_differ,
    targets_in_features,
    targets_in_histories,
    temperature_off,
    tied_times,
    too_few_epochs,
    trained_on_test,
    unexamined,
    unknown_values,
    untrained_items,
)
from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import LEVELS, Finding
from vecall.doctor.known_gaps import KnownGaps
from vecall.doctor.run_context import build_run_context
from vecall.doctor.store_context import build_store_context
from vecall.errors import ConfigError
from vecall.evaluation.compare import EvaluationReport
from vecall.pipeline.run import Run
from vecall.release.release import open_release
from vecall.release.store import Store
from vecall.runtime.fork_safety import check_not_forked

CHECKS: tuple[Callable[[DoctorContext], list[Finding]], ...] = (  # by how often each is the cause
    below_baselines.check,
    order_unused.check,
    all_positive_labels.check,
    repeats_swamp_histories.check,
    events_swamp_histories.check,
    too_few_epochs.check,
    learning_rate_off.check,
    temperature_off.check,
    overfitting.check,
    untrained_items.check,
    unknown_values.check,
    dropped_rows.check,
    malformed_ids.check,
    duplicates_over_splits.check,
    targets_in_histories.check,
    targets_in_features.check,
    trained_on_test.check,
    tied_times.check,
    popularity_bias.check,
    collapsed_vectors.check,
    hubs.check,
    missing_logq.check,
    batch_collisions.check,
    ann_recall_low.check,
    index_tuned_elsewhere.check,
    served_vectors_differ.check,
    answers_eaten.check,
    repeats_hidden.check,
    own_protocol.check,
    unexamined.check,
)


def examine(
    *,
    run: str | Path | None = None,
    store: str | Path | None = None,
    config: Config | None = None,
    evaluation: EvaluationReport | None = None,
) -> list[Finding]:
    """Say why the recall of a run or a store may be low.

    At most 2,000 test users and as many validation users are ranked, so it takes seconds beside reading the tables and
    fitting the baselines, which are left out where memory is too small.

    Args:
        run: Directory of a finished run.
        store: Directory of a store, whose current release is examined; exactly one of `run` and `store` is given.
        config: Settings that name the tables. A run has its own; a store without them is examined alone.
        evaluation: Result of `evaluate` of the same, whose baselines need not be fitted again.

    Returns:
        Findings: errors, then warnings, then infos; within a level by how often they are the cause.

    Raises:
        ConfigError: Neither or both of `run` and `store` are given, or the settings are invalid.
        DataError: A table does not match the schema.
        TrainingError: The run cannot be read.
        StoreError: The store or its release cannot be read.
    """
    check_not_forked()
    config = None if config is None else check_config(config)
    if (run is None) == (store is None):
        raise ConfigError(f"doctor needs either a run or a store, got {'neither' if run is None else 'both'}")
    known = None if evaluation is None else KnownGaps.from_evaluation(evaluation)
    if run is not None:
        context = build_run_context(Run.open(run), config, known)
    else:
        context = build_store_context(open_release(Store.open(Path(str(store)))), config, known)
    return diagnose(context)


def diagnose(context: DoctorContext) -> list[Finding]:
    """Run all checks on a context and order what they find."""
    findings = [finding for check in CHECKS for finding in check(context)]
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))
