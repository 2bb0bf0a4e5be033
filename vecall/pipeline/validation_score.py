"""The score by which epochs, and the presets that are tried, are compared on the validation users."""

import math
from typing import NamedTuple, Self

from vecall.evaluation.evaluator import EvaluationResult


class ValidationScore(NamedTuple):
    """Score of an evaluation, and its parts.

    Attributes:
        score: Geometric mean of the parts: a relative gain of 1 % in NDCG@10 counts as much as one in recall@k.
        recall: recall@k.
        ndcg: NDCG@10.
    """

    score: float
    recall: float
    ndcg: float

    @classmethod
    def compute(cls, result: EvaluationResult, k: int) -> Self:
        """Compute the score from the result of an evaluation at depth k."""
        metrics = result.seen_excluded_or_included
        recall, ndcg = metrics[f"recall@{k}"], metrics["ndcg@10"]
        return cls(math.sqrt(recall * ndcg), recall, ndcg)
