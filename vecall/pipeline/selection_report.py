"""The choice of a preset as a section of the evaluation report."""

import math
from pathlib import Path

from vecall.evaluation.report import SelectionRow, SelectionSection
from vecall.pipeline.selection_record import read_selection


def read_selection_section(run_dir: Path) -> SelectionSection | None:
    """Read what `preset = "auto"` tried and chose for a run; None if its preset was named.

    Raises:
        TrainingError: The record cannot be read.
    """
    record = read_selection(run_dir)
    if record is None:
        return None
    trials = [
        SelectionRow(
            name=f"{trial.preset}, 1 epoch" if trial.is_hopeless else trial.preset,
            recall=_drop_nan(trial.metrics["recall"]),
            ndcg=_drop_nan(trial.metrics["ndcg@10"]),
            shuffled_recall=_drop_nan(trial.metrics["shuffled_recall"]),
            shuffled_ndcg=_drop_nan(trial.metrics["shuffled_ndcg@10"]),
            users=trial.users,
            seconds=trial.seconds,
        )
        for trial in record.trials
    ]
    baselines = [SelectionRow(name, _drop_nan(recall)) for name, recall in record.baselines.items()]
    return SelectionSection(
        preset=record.preset,
        reason=record.reason,
        recall_key=f"recall@{record.recall_depth}",
        rows=(*trials, *baselines),
        left_out=tuple(record.left_out.items()),
    )


def _drop_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
