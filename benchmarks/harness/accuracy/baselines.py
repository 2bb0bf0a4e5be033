"""Baselines of a public data set, EASE with its best l2 on the validation."""

from typing import Any

from vecall.config import Config
from vecall.data.dataset import read_dataset
from vecall.data.split import Split
from vecall.evaluation.baseline_evaluation import build_baseline_factories, evaluate_models
from vecall.evaluation.baselines import Popularity
from vecall.evaluation.ease_tuning import tune_ease
from vecall.evaluation.fallback import FallbackScorer
from vecall.evaluation.sampling import select_test_cases
from vecall.evaluation.scorer import Scorer

# Of min(users, items). `vecall evaluate` tunes EASE up to 10,000; Beauty and Sports have 12,101 and 18,357. Each of the
# five inversions of Sports takes minutes on two cores, and the matrices some 5 GiB.
_MAX_TUNED_DIM = 20_000


def measure_baselines(config: Config) -> dict[str, Any]:
    """Return the metrics of the baselines on the test, by name, as `vecall evaluate` does, and `notes` about them."""
    dataset = read_dataset(config.data, config.schema_)
    split = dataset.split(config.data)
    n_items = len(dataset.catalogue.items)
    popularity = Popularity(split.counted_train, n_items)
    factories = build_baseline_factories(split, n_items, popularity)
    factories["ease"] = lambda: _fit_ease(split, n_items, popularity)
    evaluated = evaluate_models(factories, select_test_cases(split.test, n_items), n_items, config.evaluation.ks)
    return {"notes": evaluated.notes} | {name: result.as_json() for name, result in evaluated.results.items()}


def _fit_ease(split: Split, n_items: int, popularity: Popularity) -> tuple[Scorer, str]:
    ease = tune_ease(split.counted_train, split.valid, n_items, max_tuned_dim=_MAX_TUNED_DIM)
    return FallbackScorer(ease.scorer, popularity.item_counts), ease.description
