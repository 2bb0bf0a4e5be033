"""The baselines beside a model that `fit` has trained, on the same test cases."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vecall import progress
from vecall.data.split import Split
from vecall.evaluation.baseline_comparison import BaselineComparison, compare_with_baselines
from vecall.evaluation.baseline_evaluation import build_baseline_factories, evaluate_models
from vecall.evaluation.baselines import Popularity
from vecall.evaluation.evaluator import EvaluationResult
from vecall.evaluation.sampling import describe_users, select_test_cases

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitBaselines:
    """Baselines of a fit.

    Attributes:
        metrics: `EvaluationResult.as_json` by name, without those that were skipped.
        notes: Sentences on how a baseline was fitted, or why it was skipped.
        comparison: The model beside them.
    """

    metrics: dict[str, dict[str, Any]]
    notes: tuple[str, ...]
    comparison: BaselineComparison | None


def evaluate_baselines(
    split: Split, popularity: Popularity, ks: Sequence[int], model_result: EvaluationResult
) -> FitBaselines:
    """Evaluate the baselines on the test cases of the model, and warn if the model is below one of them.

    What would not fit into memory is skipped with a warning. Of more than 10^10 pairs of users and items the fixed
    sample of 10,000 users is ranked, as for the model.
    """
    n_items = len(popularity.item_counts)
    cases = select_test_cases(split.test, n_items)
    users = describe_users(len(cases), len(split.test)).removesuffix(",")
    progress.announce(
        f"baselines: popularity, EASE and co-occurrence of {len(split.counted_train.values):,} positives, on {users}; "
        "[evaluation] baselines = false leaves them out"
    )
    factories = build_baseline_factories(split, n_items, popularity)
    evaluated = evaluate_models(factories, cases, n_items, ks)
    comparison = compare_with_baselines(model_result, evaluated.results)
    if comparison is not None and comparison.level == "below":
        logger.warning("%s %s", comparison.message, comparison.advice)
    metrics = {name: result.as_json() for name, result in evaluated.results.items()}
    return FitBaselines(metrics, evaluated.notes, comparison)
