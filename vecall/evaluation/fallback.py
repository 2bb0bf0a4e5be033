"""Popularity fallback: users of whom nothing is known are evaluated on the popular items that recall serves them."""

import numpy as np

from vecall.arrays import Mask, Scores
from vecall.data.ragged import EvalCases
from vecall.evaluation.evaluator import Scorer


class FallbackScorer:
    """Scorer that replaces the scores of unknown users by popularity, as `recall` does.

    Args:
        scorer: Scores of all other users, from histories and perhaps features.
        popularity: [N] number of users of each item.
        reads_history: Whether `scorer` reads histories.
        has_features: [U] whether a user has a feature that `scorer` reads; None if it reads none.
    """

    def __init__(
        self,
        scorer: Scorer,
        popularity: Scores,
        *,
        reads_history: bool = True,
        has_features: Mask | None = None,
    ) -> None:
        self._scorer = scorer
        self._popularity: Scores = popularity / (
            popularity.max(initial=0.0) + 1
        )  # in [0, 1), to share plots with cosines
        self._reads_history, self._has_features = reads_history, has_features

    def __call__(self, cases: EvalCases) -> Scores:
        """Return [B, N] scores."""
        scores = self._scorer(cases)
        is_unknown = self.is_unknown(cases)
        return np.where(is_unknown[:, None], self._popularity, scores) if is_unknown.any() else scores

    def is_unknown(self, cases: EvalCases) -> Mask:
        """Return [B] whether the user of each case has neither a history nor a feature that the scorer reads."""
        return is_unknown_user(cases, reads_history=self._reads_history, has_features=self._has_features)


def is_unknown_user(cases: EvalCases, *, reads_history: bool, has_features: Mask | None) -> Mask:
    """Return [B] whether a model knows nothing of the user of each case.

    Args:
        cases: B cases.
        reads_history: Whether the model reads histories.
        has_features: [U] whether a user has a feature that the model reads; None if it reads none.
    """
    is_unknown = cases.histories.lengths == 0 if reads_history else np.ones(len(cases), dtype=np.bool_)
    return is_unknown if has_features is None else is_unknown & ~has_features[cases.users]
