"""Whether a model is above, equal to or below the baselines, in one sentence, and what to try where it is not above."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vecall.evaluation.evaluator import EvaluationResult
from vecall.evaluation.metrics import compute_standard_error

_Z95 = 1.96  # half-width of a 95 % confidence interval in standard errors

WHAT_TO_TRY = (
    'Try model.preset = "auto" if it has not chosen this preset, more training.epochs, another training.lr or '
    "training.temperature; vecall doctor --run RUN looks for the cause."
)


@dataclass(frozen=True)
class BaselineComparison:
    """A model beside the baselines on the same users.

    Attributes:
        level: "above": the model is above all baselines by more than noise; "below": it is below one of them by more
            than noise; else "equal".
        metric: Name of the compared metric, such as "recall@100".
        model: Its value for the model.
        baseline: Name of the baseline with the highest value, of those that make the level.
        difference: Value of the model minus that of this baseline.
        ci95: Half-width of the 95 % confidence interval of `difference`, paired over users; None for a single user.
        message: The result in one sentence.
    """

    level: Literal["above", "equal", "below"]
    metric: str
    model: float
    baseline: str
    difference: float
    ci95: float | None
    message: str

    @property
    def standard_error(self) -> float:
        """Standard error of `difference`; 0 for a single user."""
        return (self.ci95 or 0.0) / _Z95

    @property
    def advice(self) -> str:
        """What to try; empty where the model is above all baselines."""
        return "" if self.level == "above" else WHAT_TO_TRY


@dataclass(frozen=True)
class _Difference:
    """Mean difference between the model and a baseline, and the half-width of its interval."""

    name: str
    mean: float
    half_width: float  # infinite for a single user

    @property
    def level(self) -> Literal["above", "equal", "below"]:
        if abs(self.mean) <= self.half_width:
            return "equal"
        return "above" if self.mean > 0 else "below"

    def __str__(self) -> str:
        sign = "+" if self.mean > 0 else "−" if self.mean < 0 else ""
        noise = "of a single user" if np.isinf(self.half_width) else f"± {self.half_width:.3f}"
        return f"{sign}{abs(self.mean):.3f} {noise}"


def compare_with_baselines(
    model: EvaluationResult, baselines: Mapping[str, EvaluationResult]
) -> BaselineComparison | None:
    """Compare the recall of a model with that of each baseline, paired over the users.

    The recall is that at the depth of `EvaluationResult.comparison_key`. A difference is noise up to 1.96 standard
    errors of its mean over users; one user's recalls by two models go up and down together, so this is much less than
    the noise of either recall.

    Args:
        model: Result of the model.
        baselines: Results by name on the same cases.

    Returns:
        The comparison; None without baselines.
    """
    if not baselines:
        return None
    recalls = {name: float(result.recall_by_user.mean()) for name, result in baselines.items()}
    differences = {name: _subtract(name, model, result) for name, result in baselines.items()}
    levels = {difference.level for difference in differences.values()}
    level: Literal["above", "equal", "below"] = (
        "below" if "below" in levels else "equal" if "equal" in levels else "above"
    )
    strongest = max((name for name in recalls if differences[name].level == level), key=recalls.__getitem__)
    difference = differences[strongest]
    return BaselineComparison(
        level=level,
        metric=model.comparison_key,
        model=float(model.recall_by_user.mean()),
        baseline=strongest,
        difference=difference.mean,
        ci95=None if np.isinf(difference.half_width) else difference.half_width,
        message=_describe(level, model, recalls, differences),
    )


def _subtract(name: str, model: EvaluationResult, baseline: EvaluationResult) -> _Difference:
    differences = model.recall_by_user - baseline.recall_by_user
    error = compute_standard_error(differences)
    return _Difference(name, float(differences.mean()), float("inf") if np.isnan(error) else _Z95 * error)


def _describe(
    level: str, model: EvaluationResult, recalls: Mapping[str, float], differences: Mapping[str, _Difference]
) -> str:
    """Return the sentence; it names those baselines, best first, that make the level."""
    named = sorted(
        (name for name in recalls if differences[name].level == level), key=lambda name: recalls[name], reverse=True
    )
    seen = "" if model.is_seen_excluded else " with seen items included"
    subject = f"The model's {model.comparison_key}{seen}, {model.recall_by_user.mean():.3f},"
    if level == "above":
        best = named[0]
        return f"{subject} is above all baselines; the best is {best}, {recalls[best]:.3f} ({differences[best]})."
    listed = " and ".join(f"{name}, {recalls[name]:.3f} ({differences[name]})" for name in named)
    return f"{subject} {'is below' if level == 'below' else 'equals within noise'} that of {listed}."
