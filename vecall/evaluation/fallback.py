"""What is served to users of whom nothing is known: they are judged by that, not by a tower's answer to nothing."""

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Scores
from vecall.data.ragged import EvalCases
from vecall.evaluation.evaluator import Scorer


class FallbackScorer:
    """A scorer, and what is popular for users of whom it knows nothing, as `recall` answers them.

    Args:
        scorer: reads histories and, perhaps, features.
        popularity: [N] how many users took each item.
        reads_history: whether it reads histories.
        has_features: [U] users of whom it reads some feature; None: it reads none.
    """

    def __init__(
        self,
        scorer: Scorer,
        popularity: Scores,
        *,
        reads_history: bool = True,
        has_features: NDArray[np.bool_] | None = None,
    ) -> None:
        self._scorer = scorer
        self._popularity: Scores = popularity / (popularity.max(initial=0.0) + 1)  # among cosines, for plots
        self._reads_history, self._has_features = reads_history, has_features

    def __call__(self, cases: EvalCases) -> Scores:
        """[B, N] scores."""
        scores = self._scorer(cases)
        unknown = self.is_unknown(cases)
        return np.where(unknown[:, None], self._popularity, scores) if unknown.any() else scores

    def is_unknown(self, cases: EvalCases) -> NDArray[np.bool_]:
        """[B] cases whose user has neither a history nor a feature that is read."""
        unknown = cases.histories.lengths == 0 if self._reads_history else np.ones(len(cases), dtype=np.bool_)
        return unknown if self._has_features is None else unknown & ~self._has_features[cases.users]
