"""Evaluation of several scorers on the same cases, and the baselines that stand beside a model."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vecall import progress
from vecall.arrays import Mask, Scores
from vecall.data.ragged import EvalCases
from vecall.data.split import Split
from vecall.errors import ConfigError
from vecall.evaluation.baselines import Popularity
from vecall.evaluation.cooccurrence import RecentCooccurrence
from vecall.evaluation.ease_tuning import tune_ease
from vecall.evaluation.evaluator import EvaluationResult, evaluate_scorer
from vecall.evaluation.fallback import FallbackScorer
from vecall.evaluation.scorer import Scorer
from vecall.evaluation.segments import Segment

logger = logging.getLogger(__name__)

BASELINES = ("ease", "cooccurrence", "popularity")  # in the order of tables

ScorerFactory = Callable[[], tuple[Scorer, str]]
"""Builds a scorer, and a sentence about it for the protocol, which may be empty."""


@dataclass(frozen=True)
class ModelResults:
    """Results of several scorers on the same cases.

    Attributes:
        results: Metrics by name, without the baselines that were skipped.
        notes: Sentences for the protocol: how a baseline was fitted, or why it was skipped.
    """

    results: Mapping[str, EvaluationResult]
    notes: tuple[str, ...]


def build_baseline_factories(split: Split, n_items: int, popularity: Popularity) -> dict[str, ScorerFactory]:
    """Return factories of the baselines by name, in the order of `BASELINES`.

    Each is fitted on the training part alone, on positives of a weight above 0, and EASE's l2 is chosen on
    `split.valid`. Users without a history are scored by popularity, whatever their context.
    """
    train = split.counted_train

    def with_fallback(scorer: Scorer) -> Scorer:
        return FallbackScorer(scorer, item_counts, reads_context=False)

    def fit_ease() -> tuple[Scorer, str]:
        ease = tune_ease(train, split.valid, n_items)
        return with_fallback(ease.scorer), ease.description

    item_counts: Scores = popularity.item_counts
    return {
        "ease": fit_ease,
        "cooccurrence": lambda: (with_fallback(RecentCooccurrence(train, n_items)), ""),
        "popularity": lambda: (popularity, ""),
    }


def evaluate_models(
    factories: Mapping[str, ScorerFactory],
    cases: EvalCases,
    n_items: int,
    ks: Sequence[int],
    *,
    group_masks: Mapping[str, Mask] | None = None,
    segments: Sequence[Segment] = (),
) -> ModelResults:
    """Build and evaluate one scorer after the other; a baseline that is too large for the memory is skipped.

    Args:
        factories: Builders of the scorers by name; a `ConfigError` of one skips it.
        cases: As in `evaluate_scorer`, like the following.
        n_items: N.
        ks: Depths of recall.
        group_masks: Masks [cases] by name.
        segments: Parts of the targets.
    """
    results, notes = {}, []

    def evaluate(build_scorer: ScorerFactory) -> tuple[EvaluationResult, str]:
        scorer, note = build_scorer()  # freed on return: only one is in memory
        return evaluate_scorer(scorer, cases, n_items, ks, group_masks=group_masks, segments=segments), note

    with progress.track("evaluating", len(factories)) as advance:
        for name, build_scorer in factories.items():
            try:
                results[name], note = evaluate(build_scorer)
            except ConfigError as error:  # the data are too large for a baseline
                logger.warning("skipped baseline %s: %s", name, error)
                note = f"{name} was skipped: {error}."
            notes.append(note)
            advance(1, note=name)
    return ModelResults(results, tuple(filter(None, notes)))
