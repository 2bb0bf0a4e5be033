"""Measurement of a model: what it ranks beside the baselines, and what the order of histories is worth to it."""

from collections.abc import Callable

import numpy as np

from vecall.data.dataset import Dataset
from vecall.data.ragged import count_rows
from vecall.data.split import Split
from vecall.doctor.context import OrderFacts, RankingFacts, RecallGap
from vecall.doctor.recall_samples import choose_depth, draw_cases, sample_recalls, shuffle_histories
from vecall.errors import ConfigError
from vecall.evaluation.baselines import Ease, Popularity
from vecall.evaluation.cooccurrence import RecentCooccurrence
from vecall.evaluation.fallback import FallbackScorer
from vecall.evaluation.scorer import Scorer

_MIN_HISTORY = 3  # items, for an order to be worth shuffling

Report = Callable[[str], object]
"""Takes a line about what is being done."""


def measure_model(
    scorer: Scorer,
    dataset: Dataset,
    split: Split,
    report: Report,
    *,
    known_gaps: dict[str, RecallGap] | None = None,
) -> tuple[RankingFacts, OrderFacts | None]:
    """Rank all items for at most 2,000 test users and as many validation users.

    Args:
        scorer: Scores of the model.
        dataset: The tables.
        split: Baselines are fitted on its training part.
        report: Takes a line about each step.
        known_gaps: The model beside baselines, by name, where they have been measured on more users already.

    Returns:
        What the model ranks, and the worth of the order; None for the latter if no validation user has a history.
    """
    n_items, known_gaps = len(dataset.catalogue.items), known_gaps or {}
    item_counts = Popularity(split.train, n_items).item_counts
    cases = draw_cases(split.test)
    report(f"ranking {n_items:,} items for {len(cases):,} of {len(split.test):,} test users")
    model_sample = sample_recalls(scorer, cases, n_items)
    gaps: dict[str, RecallGap] = {}
    skipped: dict[str, str] = {}
    factories: dict[str, Callable[[], Scorer]] = {
        "popularity": lambda: Popularity(split.train, n_items),
        "ease": lambda: FallbackScorer(Ease(split.train, n_items), item_counts),
        "cooccurrence": lambda: FallbackScorer(RecentCooccurrence(split.train, n_items), item_counts),
    }
    probe: Scorer | None = None
    for name, build in factories.items():
        if name in known_gaps and name != "cooccurrence":  # which is the probe of the order, too
            continue
        report(f"fitting {name}")
        try:
            baseline = build()
        except ConfigError as error:  # the data are too large for it
            skipped[name] = str(error)
            continue
        if name == "cooccurrence":
            probe = baseline
        if name not in known_gaps:
            gaps[name] = model_sample.compare(sample_recalls(baseline, cases, n_items))
    ranking = RankingFacts(
        recall_key=f"recall@{choose_depth(n_items)}",
        user_count=len(cases),
        baseline_gaps=gaps | known_gaps,
        skipped_baselines={name: reason for name, reason in skipped.items() if name not in known_gaps},
        top_rows=model_sample.top_rows,
        item_counts=item_counts,
        target_rows=cases.targets.values,
    )
    return ranking, _measure_order(scorer, probe, split, n_items, report)


def _measure_order(
    scorer: Scorer, probe: Scorer | None, split: Split, n_items: int, report: Report
) -> OrderFacts | None:
    """Compare recall on validation histories with that on shuffled ones."""
    cases = draw_cases(split.valid, min_history=_MIN_HISTORY)
    if not len(cases):
        return None
    report(f"shuffling the histories of {len(cases):,} validation users")
    shuffled = shuffle_histories(cases)

    def compare(measured: Scorer) -> RecallGap:
        return sample_recalls(measured, cases, n_items).compare(sample_recalls(measured, shuffled, n_items))

    return OrderFacts(
        recall_key=f"recall@{choose_depth(n_items)}",
        user_count=len(cases),
        model=compare(scorer),
        probe=None if probe is None else compare(probe),
    )


def draw_trained_items(split: Split, n_items: int, max_items: int = 5_000) -> np.ndarray:
    """Return ascending rows of a random sample of the items that training has seen."""
    rows = np.flatnonzero(count_rows(split.train.values, n_items))
    if len(rows) > max_items:
        rows = np.sort(np.random.default_rng(0).choice(rows, max_items, replace=False))
    return rows
