"""An assessment as the report that people read."""

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from vecall.evaluation import plots
from vecall.evaluation.compare import EvaluationReport
from vecall.evaluation.evaluator import EvaluationResult
from vecall.evaluation.report import ExampleUser, ReportContent, write_report

_ANN_METHOD = (
    "ANN recall@k is the share of the exact answer's items that the index returns, not the model's recall. Measured on "
    "the index's own search, one query at a time in one thread, with vectors of the users who are judged; the effort "
    "was found on vectors of other histories."
)


def write_evaluation_report(
    path: Path,
    report: EvaluationReport,
    *,
    title: str,
    epochs: Sequence[Mapping[str, float]] = (),
    extra_results: Mapping[str, EvaluationResult] | None = None,
    examples: Sequence[ExampleUser] = (),
) -> None:
    """Write the report.

    Args:
        path: an .html file in an existing folder.
        report: what was measured.
        title: of the page.
        epochs: of the training, for the learning curve.
        extra_results: further models to stand beside, by name.
        examples: a few users.
    """
    judged = dict(report.results) | dict(extra_results or {})
    lines = {name: one for name, one in judged.items() if name != "index"}
    sample = judged["model"].sample
    content = ReportContent(
        title=title,
        headline=_format_headline(report),
        protocol=report.protocol,
        models={name: one.as_json() for name, one in judged.items()},
        dropped=tuple((reason, count, "") for reason, count in report.dropped.items()),
        ann_rows=tuple(one.as_json() for one in report.ann_results),
        ann_method=_ANN_METHOD,
        learning_curve_svg=_render_learning_curve(epochs) if epochs else "",
        recall_over_k_svg=plots.plot_recall_over_k({name: one.primary_metrics for name, one in lines.items()}),
        ann_frontier_svg=plots.plot_ann_frontier(report.tuning_points) if report.tuning_points else "",
        scores_svg=plots.plot_score_histograms(sample.target_scores, sample.negative_scores)
        if len(sample.target_scores)
        else "",
        popularity_svg=plots.plot_recalled_popularity(
            {name: one.sample.top_rows for name, one in lines.items()}, report.item_counts
        ),
        examples=tuple(examples),
        environment=_describe_environment(),
    )
    write_report(path, content)


def _render_learning_curve(epoch_metrics: Sequence[Mapping[str, float]]) -> str:
    """Of the lines of metrics.jsonl, which count epochs from 0."""
    epochs = [
        {"epoch": line["epoch"] + 1, "loss": line["loss"], "recall": line["valid_recall"], "score": line["valid_score"]}
        for line in epoch_metrics
    ]
    return plots.plot_learning_curve(epochs, metric="recall", selection_metric="score")


def _format_headline(report: EvaluationReport) -> str:
    recalls = {name: one.primary_metrics for name, one in report.results.items()}
    depths = [int(key.removeprefix("recall@")) for key in recalls["model"] if key.startswith("recall@")]
    k = 100 if 100 in depths else max(depths)
    others = ", ".join(
        f"{name} {plots.format_decimal(at[f'recall@{k}'])}"
        for name, at in recalls.items()
        if name not in ("model", "index")
    )
    return f"The model finds {recalls['model'][f'recall@{k}']:.1%} of the held-out items among its {k}; {others}."


def _describe_environment() -> dict[str, str]:
    libraries = ("vecall", "torch", "faiss-cpu", "onnxruntime", "polars", "numpy")
    return {
        "command": " ".join(Path(part).name if at == 0 else part for at, part in enumerate(sys.argv)),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        **{name: version(name) for name in libraries},
    }
