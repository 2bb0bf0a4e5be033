"""Result of a batch of queries."""

from dataclasses import dataclass

from vecall.arrays import Rows, Scores


@dataclass(frozen=True)
class Hits:
    """Result of a batch of queries, best first: by descending score, then by ascending row.

    Attributes:
        rows: [B, k] rows of the index; -1 pads results of fewer than k rows.
        scores: [B, k] inner products with the stored vectors; -inf where the row is -1.
    """

    rows: Rows
    scores: Scores
