"""Measurement of a model: what it ranks beside the baselines, and what the order of histories is worth to it."""

import numpy as np

from vecall import progress
from vecall.arrays import Rows
from vecall.data.dataset import Dataset
from vecall.data.ragged import EvalCases, count_rows
from vecall.data.split import Split
from vecall.doctor.context import OrderFacts, RankingFacts, RecallGap
from vecall.doctor.known_gaps import KnownGaps
from vecall.doctor.recall_samples import RecallSample, draw_cases, sample_recalls
from vecall.errors import ConfigError
from vecall.evaluation.baseline_evaluation import build_baseline_factories
from vecall.evaluation.baselines import Popularity
from vecall.evaluation.fallback import FallbackScorer
from vecall.evaluation.metrics import limit_depth
from vecall.evaluation.sampling import shuffle_histories
from vecall.evaluation.scorer import Scorer

_MIN_HISTORY = 3  # items, for an order to be worth shuffling
_PROBE = "cooccurrence"  # reads the order of histories


def measure_model(
    scorer: FallbackScorer, dataset: Dataset, split: Split, known: KnownGaps | None = None
) -> tuple[RankingFacts, OrderFacts | None]:
    """Rank all items for at most 2,000 test users and as many validation users.

    Args:
        scorer: Scores of the model, and popular items for users of whom nothing is known; the lists of the latter are
            left out.
        dataset: The tables.
        split: Baselines are fitted on its training part.
        known: The model beside the baselines, where that is known already.

    Returns:
        What the model ranks, and the worth of the order; None for the latter if no validation user has a history.
    """
    n_items = len(dataset.catalogue.items)
    popularity = Popularity(split.counted_train, n_items)
    cases = draw_cases(split.test)
    progress.announce(f"ranking {n_items:,} items for {len(cases):,} of {len(split.test):,} test users")
    sample = sample_recalls(scorer, cases, n_items)
    known_users = np.flatnonzero(~scorer.get_unknown_user_mask(cases))
    gaps, skipped, probe = _fit_baselines(split, cases, popularity, None if known else sample)
    ranking = RankingFacts(
        recall_key=f"recall@{limit_depth(n_items)}" if known is None else known.recall_key,
        user_count=len(cases) if known is None else len(split.test),
        baseline_gaps=gaps if known is None else known.gaps,
        skipped_baselines=skipped,
        top_rows=sample.top_rows[known_users],
        item_counts=popularity.item_counts,
        target_rows=cases.take(known_users).targets.values,
    )
    return ranking, _measure_order(scorer, probe, split, n_items)


def _fit_baselines(
    split: Split, cases: EvalCases, popularity: Popularity, model_sample: RecallSample | None
) -> tuple[dict[str, RecallGap], dict[str, str], Scorer | None]:
    """Fit the baselines and compare the model with them; without a sample of the model fit the probe alone.

    Returns:
        The comparisons, the reasons why a baseline was skipped, and the probe of the order, None if it was skipped.
    """
    n_items = len(popularity.item_counts)
    gaps: dict[str, RecallGap] = {}
    skipped: dict[str, str] = {}
    probe: Scorer | None = None
    for name, build in build_baseline_factories(split, n_items, popularity).items():
        if model_sample is None and name != _PROBE:
            continue
        progress.announce(f"fitting {name}")
        try:
            baseline, _ = build()
        except ConfigError as error:  # the data are too large for it
            skipped[name] = str(error)
            continue
        if name == _PROBE:
            probe = baseline
        if model_sample is not None:
            gaps[name] = model_sample.compare(sample_recalls(baseline, cases, n_items))
    return gaps, skipped, probe


def _measure_order(scorer: Scorer, probe: Scorer | None, split: Split, n_items: int) -> OrderFacts | None:
    """Compare recall on validation histories with that on shuffled ones."""
    cases = draw_cases(split.valid, min_history=_MIN_HISTORY)
    if not len(cases):
        return None
    progress.announce(f"shuffling the histories of {len(cases):,} validation users")
    shuffled = shuffle_histories(cases)

    def compare(measured: Scorer) -> RecallGap:
        return sample_recalls(measured, cases, n_items).compare(sample_recalls(measured, shuffled, n_items))

    return OrderFacts(
        recall_key=f"recall@{limit_depth(n_items)}",
        user_count=len(cases),
        model=compare(scorer),
        probe=None if probe is None else compare(probe),
    )


def draw_trained_items(split: Split, n_items: int, max_items: int = 5_000) -> Rows:
    """Return ascending rows of a random sample of the items that training has seen."""
    rows: Rows = np.flatnonzero(count_rows(split.train.values, n_items))
    if len(rows) > max_items:
        rows = np.sort(np.random.default_rng(0).choice(rows, max_items, replace=False))
    return rows
