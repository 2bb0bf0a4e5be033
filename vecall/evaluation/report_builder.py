"""An assessment as the report that people read."""

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from vecall.evaluation import plots
from vecall.evaluation.compare import Assessment
from vecall.evaluation.evaluator import Judgement
from vecall.evaluation.report import Example, ReportContent, write_report

_ANN_METHOD = (
    "ANN recall@k is the share of the exact answer's items that the index returns, not the model's recall. Measured on "
    "the index's own search, one query at a time in one thread, with vectors of the users who are judged; the effort "
    "was found on vectors of other histories."
)


def write_assessment(
    path: Path,
    assessment: Assessment,
    *,
    title: str,
    epochs: Sequence[Mapping[str, float]] = (),
    more: Mapping[str, Judgement] | None = None,
    examples: Sequence[Example] = (),
) -> None:
    """Write the report.

    Args:
        path: an .html file in an existing folder.
        assessment: what was measured.
        title: of the page.
        epochs: of the training, for the learning curve.
        more: further models to stand beside, by name.
        examples: a few users.
    """
    judged = dict(assessment.judgements) | dict(more or {})
    lines = {name: one for name, one in judged.items() if name != "index"}
    sample = judged["model"].sample
    content = ReportContent(
        title=title,
        headline=_headline(assessment),
        protocol=assessment.protocol,
        models={name: one.as_json() for name, one in judged.items()},
        dropped=tuple((reason, count, "") for reason, count in assessment.dropped.items()),
        ann=tuple(one.as_json() for one in assessment.ann),
        ann_method=_ANN_METHOD,
        learning_curve=_learning_curve(epochs) if epochs else "",
        recall_over_k=plots.recall_over_k({name: one.main for name, one in lines.items()}),
        ann_frontier=plots.ann_frontier(assessment.frontier) if assessment.frontier else "",
        scores=plots.score_histograms(sample.hit_scores, sample.rest_scores) if len(sample.hit_scores) else "",
        popularity=plots.recalled_popularity(
            {name: one.sample.top for name, one in lines.items()}, assessment.item_counts
        ),
        examples=tuple(examples),
        environment=_environment(),
    )
    write_report(path, content)


def _learning_curve(lines: Sequence[Mapping[str, float]]) -> str:
    """Of the lines of metrics.jsonl, which count epochs from 0."""
    epochs = [
        {"epoch": line["epoch"] + 1, "loss": line["loss"], "recall": line["valid_recall"], "score": line["valid_score"]}
        for line in lines
    ]
    return plots.learning_curve(epochs, metric="recall", chosen_by="score")


def _headline(assessment: Assessment) -> str:
    recalls = {name: one.main for name, one in assessment.judgements.items()}
    depths = [int(key.removeprefix("recall@")) for key in recalls["model"] if key.startswith("recall@")]
    k = 100 if 100 in depths else max(depths)
    others = ", ".join(
        f"{name} {plots.three_digits(at[f'recall@{k}'])}"
        for name, at in recalls.items()
        if name not in ("model", "index")
    )
    return f"The model finds {recalls['model'][f'recall@{k}']:.1%} of the held-out items among its {k}; {others}."


def _environment() -> dict[str, str]:
    libraries = ("vecall", "torch", "faiss-cpu", "onnxruntime", "polars", "numpy")
    return {
        "command": " ".join(Path(part).name if at == 0 else part for at, part in enumerate(sys.argv)),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        **{name: version(name) for name in libraries},
    }
