"""Choice of EASE's regularization on the validation cases: a baseline with a poor one would flatter the model."""

from dataclasses import dataclass

from vecall.data.ragged import EvalCases, RaggedArray
from vecall.evaluation.baselines import DEFAULT_EASE_L2, Ease, EaseGram
from vecall.evaluation.evaluator import evaluate_scorer
from vecall.evaluation.metrics import limit_depth
from vecall.evaluation.sampling import sample_cases

EASE_L2_GRID = (20.0, 100.0, 300.0, 1000.0, 3000.0)

MAX_TUNED_DIM = 10_000
"""Largest min(users, items) for which all of `EASE_L2_GRID` are tried, each by an inversion: a minute in all here."""

_MIN_CASES, _MAX_CASES = 500, 5_000  # validation cases that choose
_MAX_PAIRS = 10**9  # of cases and items that each l2 ranks


@dataclass(frozen=True)
class TunedEase:
    """EASE with the regularization that it was fitted with, and a sentence about how that was chosen."""

    scorer: Ease
    l2: float
    description: str


def tune_ease(train: RaggedArray, valid: EvalCases, n_items: int, *, max_tuned_dim: int = MAX_TUNED_DIM) -> TunedEase:
    """Fit EASE with the l2 of `EASE_L2_GRID` that has the highest recall on validation cases.

    The recall is that at 100, or at a tenth of fewer than 1,000 items; of equal ones the smallest l2 is taken. The
    matrix is counted once and inverted for each l2.

    Args:
        train: A list of item rows per user.
        valid: Validation cases; at most 5,000 of them are ranked, of large catalogues fewer.
        n_items: N.
        max_tuned_dim: Largest min(users, items) for which several l2 are tried; above it the default is taken.

    Raises:
        ConfigError: As for `Ease`.
    """
    gram = EaseGram(train, n_items)
    if gram.dim > max_tuned_dim:
        return TunedEase(
            Ease(train, n_items, DEFAULT_EASE_L2, gram),
            DEFAULT_EASE_L2,
            f"EASE has l2 = {DEFAULT_EASE_L2:g}, which was not chosen on the validation: each try would invert a "
            f"matrix of {gram.dim:,} squared.",
        )
    cases, k = sample_cases(valid, min(_MAX_CASES, max(_MIN_CASES, _MAX_PAIRS // n_items))), limit_depth(n_items)
    best, best_l2, best_recall = None, DEFAULT_EASE_L2, -1.0
    for l2 in EASE_L2_GRID:
        candidate = Ease(train, n_items, l2, gram)
        result = evaluate_scorer(candidate, cases, n_items, (k,), max_sample_users=0)
        recall = result.seen_excluded_or_included[f"recall@{k}"]
        if best is None or recall > best_recall:
            best, best_l2, best_recall = candidate, l2, recall
        del candidate  # of three matrices none is left over for the next
    assert best is not None  # noqa: S101 - for mypy
    grid = ", ".join(f"{l2:g}" for l2 in EASE_L2_GRID)
    return TunedEase(
        best,
        best_l2,
        f"EASE has l2 = {best_l2:g}, of {grid} the best by recall@{k} of {len(cases):,} validation users.",
    )
