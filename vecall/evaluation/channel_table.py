"""What each channel gives, as a table for people."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vecall.evaluation.channel_metrics import ChannelEvaluation

_NONE = "–"


@dataclass(frozen=True)
class ChannelTable:
    """A row per channel, and one of their merge.

    Attributes:
        title: With the depth, and whether seen items were excluded.
        columns: Headings of the cells.
        rows: Name of the channel and its cells.
        note: How the channels were asked and are merged.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    note: str = ""


def build_channel_table(evaluation: ChannelEvaluation, recall_key: str) -> ChannelTable:
    """Return recall alone, what it adds to the vectors, overlap, latency and weight of each channel; last, the merge.

    Where seen items are excluded, `repeat` recalls nothing; its row is about seen items included, and says so.

    Args:
        evaluation: The channels.
        recall_key: Name of the recall that is listed, such as "recall@100".
    """
    k = recall_key.removeprefix("recall@")
    rows = []
    for name, result in evaluation.channels.items():
        is_other = name == "repeat" and evaluation.is_seen_excluded
        metrics = result.seen_included if is_other else evaluation.get_metrics(name)
        recall, added, overlap = (metrics[f"{metric}@{k}"] for metric in ("recall", "added", "overlap"))
        rows.append(
            (
                f"{name} (seen included)" if is_other else name,
                (
                    _format(recall),
                    _NONE if name == "vector" else _format(added),
                    _NONE if name == "vector" else _format(overlap),
                    f"{result.p50_ms:.2f}",
                    f"{result.p99_ms:.2f}",
                    _NONE if result.weight is None else f"{result.weight:g}",
                ),
            )
        )
    merged = evaluation.merged_excluded_or_included[recall_key]
    rows.append(("merged", (_format(merged), _NONE, _NONE, _NONE, _NONE, _NONE)))
    seen = "excluded" if evaluation.is_seen_excluded else "included"
    columns = (f"recall@{k}", "adds", "overlap", "p50 ms", "p99 ms", "weight")
    return ChannelTable(f"channels, seen items {seen}", columns, rows, evaluation.note)


def _format(value: float) -> str:
    return _NONE if math.isnan(value) else f"{value:.3f}"
