"""A model beside the baselines as `fit` or `evaluate` has measured it: not to be measured again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vecall.doctor.context import RecallGap
from vecall.evaluation.compare import EvaluationReport
from vecall.evaluation.metrics import compute_standard_error
from vecall.pipeline.run import RunSummary


@dataclass(frozen=True)
class KnownGaps:
    """Recall of a model beside that of baselines.

    Attributes:
        recall_key: Such as "recall@100".
        gaps: By name of the baseline.
    """

    recall_key: str
    gaps: Mapping[str, RecallGap]

    @classmethod
    def from_summary(cls, summary: RunSummary) -> "KnownGaps | None":
        """Read them from a run; None if `fit` evaluated no baselines.

        The error of the strongest baseline's difference, which is recorded, stands for those of the others.
        """
        comparison = summary.comparison
        if comparison is None:
            return None
        key, models = comparison.metric, {"model": summary.metrics, **summary.baselines}
        recalls = {name: _read_recall(metrics, key) for name, metrics in models.items()}
        error = comparison.standard_error
        return cls(key, {name: RecallGap(recalls["model"], recalls[name], error) for name in summary.baselines})

    @classmethod
    def from_evaluation(cls, report: EvaluationReport) -> "KnownGaps":
        """Compare the results of an evaluation, paired over the users."""
        model = report.results["model"]
        gaps = {}
        for name, result in report.results.items():
            if name in ("model", "index"):
                continue
            error = compute_standard_error(model.recall_by_user - result.recall_by_user)
            means = float(model.recall_by_user.mean()), float(result.recall_by_user.mean())
            gaps[name] = RecallGap(*means, 0.0 if len(model.recall_by_user) < 2 else error)
        return cls(model.comparison_key, gaps)


def _read_recall(metrics: Mapping[str, Any], key: str) -> float:
    """Return the recall with seen items excluded, or included where no user has a new target."""
    excluded: float | None = metrics["seen_excluded"][key]
    included: float = metrics["seen_included"][key]
    return included if excluded is None else excluded
