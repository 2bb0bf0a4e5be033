"""Build the HTML report of an evaluation: plots, headline and environment."""

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from vecall.evaluation import plots
from vecall.evaluation.channel_metrics import ChannelEvaluation
from vecall.evaluation.channel_table import build_channel_table
from vecall.evaluation.compare import EvaluationReport
from vecall.evaluation.evaluator import EvaluationResult, UserSample
from vecall.evaluation.report import ExampleUser, FindingRow, ReportContent, SelectionSection, write_report
from vecall.evaluation.segment_tables import build_segment_tables

_ANN_METHOD = (
    "ANN recall@k is the share of the exact answer's items that the index returns; it says nothing about the model. "
    "Measured on the index alone, one query at a time in one thread, with vectors of the evaluated users; the search "
    "parameters were tuned on vectors of other histories."
)


def write_evaluation_report(
    path: Path,
    report: EvaluationReport,
    *,
    title: str,
    epochs: Sequence[Mapping[str, float]] = (),
    extra_results: Mapping[str, EvaluationResult] | None = None,
    examples: Sequence[ExampleUser] = (),
    findings: Sequence[FindingRow] | None = None,
    selection: SelectionSection | None = None,
) -> None:
    """Write the report.

    Args:
        path: An .html file in an existing directory; it is overwritten.
        report: Results of the evaluation.
        title: Title of the page.
        epochs: Lines of the run's metrics.jsonl, for the learning curve; without any it is omitted.
        extra_results: Results of further models, by name.
        examples: A few users.
        findings: Findings of `vecall doctor` above "info"; None leaves their section out, like the next.
        selection: What `preset = "auto"` tried and chose.

    Raises:
        ConfigError: The directory does not exist, or the file cannot be written.
    """
    results = dict(report.results) | dict(extra_results or {})
    plotted = {name: result for name, result in results.items() if name != "index"}
    sample, recall_key = results["model"].sample, results["model"].headline_key
    comparison, channels = report.comparison, report.channels
    content = ReportContent(
        title=title,
        headline=_format_headline(report),
        protocol=report.protocol,
        models=_collect_metrics(results, channels),
        comparison="" if comparison is None else comparison.message,
        advice="" if comparison is None else comparison.advice,
        comparison_level="above" if comparison is None else comparison.level,
        segment_tables=build_segment_tables(results),
        dropped=tuple((reason, count, "") for reason, count in report.dropped.items()),
        ann_rows=tuple(result.as_json() for result in report.ann_results),
        ann_method=_ANN_METHOD,
        channel_table=None if channels is None else build_channel_table(channels, recall_key),
        learning_curve_svg=_render_learning_curve(epochs) if epochs else "",
        recall_over_k_svg=plots.plot_recall_over_k(
            {name: result.seen_excluded_or_included for name, result in plotted.items()}
        ),
        ann_frontier_svg=plots.plot_ann_frontier(report.tuning_points) if report.tuning_points else "",
        scores_svg=_render_scores(sample),
        popularity_svg=plots.plot_recalled_popularity(
            {name: result.sample.top_rows for name, result in plotted.items()}, report.item_counts
        ),
        channels_svg="" if channels is None else _render_channels(channels, recall_key),
        examples=tuple(examples),
        environment=_describe_environment(),
        findings=None if findings is None else tuple(findings),
        selection=selection,
    )
    write_report(path, content)


def _render_learning_curve(epoch_metrics: Sequence[Mapping[str, float]]) -> str:
    """Plot the lines of metrics.jsonl, which count epochs from 0; the plot counts from 1."""
    epochs = [
        {"epoch": line["epoch"] + 1, "loss": line["loss"], "recall": line["valid_recall"], "score": line["valid_score"]}
        for line in epoch_metrics
    ]
    return plots.plot_learning_curve(epochs, metric="recall", selection_metric="score")


def _render_scores(sample: UserSample) -> str:
    if not len(sample.target_scores):
        return ""
    return plots.plot_score_histograms(sample.target_scores, sample.negative_scores)


def _collect_metrics(
    results: Mapping[str, EvaluationResult], channels: ChannelEvaluation | None
) -> Mapping[str, Mapping[str, Mapping[str, float | None]]]:
    """Return the metrics by model, with those of the merged channels after the model."""
    metrics = {name: result.as_json() for name, result in results.items()}
    return metrics if channels is None else {"model": metrics["model"], "merged": channels.merged_as_json()} | metrics


def _render_channels(channels: ChannelEvaluation, recall_key: str) -> str:
    """Plot recall alone and what each channel adds; nothing where vectors are the only channel."""
    bars: dict[str, tuple[float, float]] = {}
    for name in channels.channels:
        metrics = channels.get_metrics(name)
        if metrics[recall_key] > 0:  # `repeat` recalls nothing while seen items are excluded
            bars[name] = metrics[recall_key], metrics[recall_key.replace("recall", "added")]
    return plots.plot_channels(bars, metric=recall_key) if len(bars) > 1 else ""


def _format_headline(report: EvaluationReport) -> str:
    """Return recall of the model and of the baselines at k = 100, or at the largest k, in one sentence."""
    metrics = {name: result.seen_excluded_or_included for name, result in report.results.items()}
    recall_key = report.results["model"].headline_key
    k = recall_key.removeprefix("recall@")
    baselines = ", ".join(
        f"{name} {plots.format_decimal(values[recall_key])}"
        for name, values in metrics.items()
        if name not in ("model", "index")
    )
    merged = ""
    if report.channels is not None and len(report.channels.plan.weights) > 1:
        merged = f", merged with other channels {report.channels.merged_excluded_or_included[recall_key]:.1%}"
    return (
        f"The model's top {k} items contain {metrics['model'][recall_key]:.1%} of the held-out items{merged}; "
        f"{recall_key} of the baselines: {baselines}."
    )


def _describe_environment() -> dict[str, str]:
    """Return the command line and the versions of machine and libraries, by name."""
    libraries = ("vecall", "torch", "faiss-cpu", "onnxruntime", "polars", "numpy")
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        **{name: version(name) for name in libraries},
    }
