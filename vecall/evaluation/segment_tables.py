"""Metrics by segment as tables for people."""

from collections.abc import Mapping
from dataclasses import dataclass

from vecall.evaluation.evaluator import TOP_LIST_K, EvaluationResult

_NDCG_KEY = f"ndcg@{TOP_LIST_K}"


@dataclass(frozen=True)
class SegmentTable:
    """Recall of the models in each bucket of a segment.

    Attributes:
        name: Name of the segment.
        columns: Headings of the values.
        rows: Bucket, users, and a value for each column but the users; None where no user has a new target.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, int, tuple[float | None, ...]], ...]


def build_segment_tables(results: Mapping[str, EvaluationResult]) -> list[SegmentTable]:
    """Return a table per segment: a row per bucket, with the recall of each model and the first one's NDCG@10.

    Args:
        results: By name; those that were evaluated without segments, and `index`, are left out.
    """
    first = next(iter(results.values()))
    models = {name: result for name, result in results.items() if name != "index" and result.segment_metrics}
    key = first.headline_key
    tables: dict[str, list[tuple[str, int, tuple[float | None, ...]]]] = {}
    for (name, bucket), segment in first.segment_metrics.items():
        values = [result.segment_metrics[name, bucket].as_json()[key] for result in models.values()]
        tables.setdefault(name, []).append((bucket, segment.user_count, (*values, segment.as_json()[_NDCG_KEY])))
    columns = (*(f"{key}, {name}" for name in models), f"{_NDCG_KEY}, {next(iter(results))}")
    return [SegmentTable(name, columns, tuple(rows)) for name, rows in tables.items()]
