"""Popularity fallback: users without history and features are scored by popularity, since recall serves them that."""

import numpy as np

from vecall.arrays import Mask, Scores
from vecall.data.frames import is_empty_row
from vecall.data.ragged import EvalCases
from vecall.evaluation.scorer import BlockScorer, Scorer


class FallbackScorer:
    """Scorer that replaces the scores of unknown users by popularity, as `recall` does.

    Args:
        scorer: Scores of all other users, from histories and perhaps features.
        popularity: [N] number of users of each item.
        reads_history: Whether `scorer` reads histories.
        reads_context: Whether `scorer` reads the context of a case.
        has_features_by_user: [U] whether each stored user has a feature that `scorer` reads; None if it reads none.
    """

    def __init__(
        self,
        scorer: Scorer,
        popularity: Scores,
        *,
        reads_history: bool = True,
        reads_context: bool = True,
        has_features_by_user: Mask | None = None,
    ) -> None:
        self._scorer = scorer
        # Scaled to [0, 1): the scores share plots with cosines.
        self._popularity: Scores = popularity / (popularity.max(initial=0.0) + 1)
        self._reads_history, self._reads_context = reads_history, reads_context
        self._has_features_by_user = has_features_by_user

    def __call__(self, cases: EvalCases) -> BlockScorer:
        """Return the scorer of blocks of items for B cases."""
        score_known_users = self._scorer(cases)
        is_unknown = self.get_unknown_user_mask(cases)[:, None]
        if not is_unknown.any():
            return score_known_users

        def score_block(start: int, stop: int) -> Scores:
            return np.where(is_unknown, self._popularity[start:stop], score_known_users(start, stop))

        return score_block

    def get_unknown_user_mask(self, cases: EvalCases) -> Mask:
        """Return [B] whether the user of each case has nothing that the scorer reads."""
        return compute_unknown_user_mask(
            cases,
            reads_history=self._reads_history,
            reads_context=self._reads_context,
            has_features_by_user=self._has_features_by_user,
        )


def compute_unknown_user_mask(
    cases: EvalCases, *, reads_history: bool, reads_context: bool = True, has_features_by_user: Mask | None
) -> Mask:
    """Return [B] whether a model knows nothing of the user of each case.

    Args:
        cases: B cases.
        reads_history: Whether the model reads histories.
        reads_context: Whether it reads the context of a case.
        has_features_by_user: [U] whether each stored user has a feature that the model reads, indexed by
            `cases.users`; None if it reads none.
    """
    is_unknown = cases.histories.lengths == 0 if reads_history else np.ones(len(cases), dtype=np.bool_)
    if reads_context and cases.context is not None:
        is_unknown = is_unknown & is_empty_row(cases.context)
    return is_unknown if has_features_by_user is None else is_unknown & ~has_features_by_user[cases.users]
