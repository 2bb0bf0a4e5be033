"""The evaluation report: one HTML page without scripts that loads nothing over the network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from vecall.errors import ConfigError
from vecall.evaluation.channel_table import ChannelTable
from vecall.evaluation.evaluator import select_seen_key
from vecall.evaluation.plots import format_decimal
from vecall.evaluation.segment_tables import SegmentTable
from vecall.runtime.durable_files import atomic_write
from vecall.runtime.paths import to_absolute_path

AnnRow = Mapping[str, int | float | str | None]
MetricValues = Mapping[str, float | None]


@dataclass(frozen=True)
class ExampleUser:
    """Titles of one user's history and of the final list for that user.

    Attributes:
        user: Label of the user.
        history: Titles, newest last.
        final_list: Titles, best first.
    """

    user: str
    history: tuple[str, ...]
    final_list: tuple[str, ...]


@dataclass(frozen=True)
class FindingRow:
    """A finding of `vecall doctor`.

    Attributes:
        level: "error" or "warning".
        check: Name of the check.
        message: What was found.
        setting: What to change.
    """

    level: str
    check: str
    message: str
    setting: str


@dataclass(frozen=True)
class SelectionRow:
    """A preset that was tried, or a baseline beside it.

    Attributes:
        name: Preset or baseline.
        recall: On the validation users; None where it is undefined.
        ndcg: NDCG@10; None for baselines, like what follows.
        shuffled_recall: Recall with the items of each history in random order.
        shuffled_ndcg: NDCG@10 of the same.
        users: Users that it was trained on.
        seconds: Wall time.
    """

    name: str
    recall: float | None
    ndcg: float | None = None
    shuffled_recall: float | None = None
    shuffled_ndcg: float | None = None
    users: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class SelectionSection:
    """What `preset = "auto"` tried and chose.

    Attributes:
        preset: The choice, which is marked.
        reason: Sentence about why.
        recall_key: Name of the recall of the rows, such as "recall@100".
        rows: Presets that were tried, then the baselines.
        left_out: Presets that were not tried, and why.
    """

    preset: str
    reason: str
    recall_key: str = ""
    rows: tuple[SelectionRow, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ReportContent:
    """Content of the report. The template escapes all texts; the SVGs alone are inserted as they are.

    Attributes:
        title: Title of the page.
        headline: The result in one sentence.
        comparison: The model beside the baselines in one sentence; it is the first line, if there is one.
        advice: What to try where the model is not above all baselines; shown with `comparison`.
        comparison_level: "above", "equal" or "below"; the last is marked.
        protocol: Sentences about split, ranking and seen items.
        models: `EvaluationResult.as_json()` by name. The first is the model, and `index` the model through its index;
            all others are baselines.
        segment_tables: Metrics by segment.
        dropped: Rows (what, how many, why) about data that were left out.
        ann_rows: `AnnBenchmarkResult.as_json()` of each benchmark.
        ann_method: How the benchmarks were done.
        channel_table: What each channel of recall gives; None leaves the section out.
        learning_curve_svg: SVG from `vecall.evaluation.plots`, like the next five; a plot that is empty is omitted.
        recall_over_k_svg: SVG.
        ann_frontier_svg: SVG.
        scores_svg: SVG.
        popularity_svg: SVG.
        channels_svg: SVG.
        examples: A few users.
        environment: Machine, versions and command, by name.
        findings: Findings of `vecall doctor` above "info"; None if it was not asked, then the page has no such section.
        selection: What `preset = "auto"` tried and chose; None where the preset was named.
    """

    title: str
    headline: str
    protocol: tuple[str, ...]
    models: Mapping[str, Mapping[str, MetricValues]]
    comparison: str = ""
    advice: str = ""
    comparison_level: str = "above"
    segment_tables: Sequence[SegmentTable] = ()
    dropped: tuple[tuple[str, int, str], ...] = ()
    ann_rows: tuple[AnnRow, ...] = ()
    ann_method: str = ""
    channel_table: ChannelTable | None = None
    learning_curve_svg: str = ""
    recall_over_k_svg: str = ""
    ann_frontier_svg: str = ""
    scores_svg: str = ""
    popularity_svg: str = ""
    channels_svg: str = ""
    examples: tuple[ExampleUser, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[FindingRow, ...] | None = None
    selection: SelectionSection | None = None


CAPTIONS = {
    "learning_curve": (
        "Learning curve",
        "Blue: the validation metric, higher is better; the ring marks the selected epoch, chosen by recall and "
        "NDCG@10 together. Dashed: training loss. If the loss still falls while the blue line falls, the model "
        "overfits; if both are flat from the start, it does not learn.",
    ),
    "recall_over_k": (
        "Recall over k",
        "The share of held-out items among the k recalled, for growing k. Compare models at the k that is passed on to "
        "ranking: a higher line gives ranking more of the items that users want. If two lines meet on the right, both "
        "models find the same number of items, one of them at lower ranks.",
    ),
    "ann_frontier": (
        "ANN recall vs. latency (Pareto frontier)",
        "ANN recall (overlap with the exact answer) over the latency of one query, for each k. Of all search "
        "parameters tried when the index was tuned, those are shown that no faster ones match in recall. Up and left "
        "is better. The index uses the fastest that reach the target recall with confidence.",
    ),
    "scores": (
        "Score distribution: held-out vs. random items",
        "The further the blue histogram lies to the right of the gray one, the better the model separates the items "
        "that users choose from random ones. If they coincide, it does not separate them.",
    ),
    "popularity": (
        "Popularity of recalled items",
        "The share of recalled items in each range of popularity. Bars: the share of training interactions. A line far "
        "above the bars on the right means that a model recalls mostly popular items. Dotted: all items.",
    ),
    "channels": (
        "Channels",
        "Blue: the share of held-out items that each channel finds alone. Orange: the share that it finds and the "
        "vectors do not, which is the most that merging can add. A channel that adds little costs time for nothing.",
    ),
}
_ANN_COLUMNS = {
    "k": "k",
    "recall": "ANN recall@k",
    "recall_ci95": "± 95 %",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "queries": "queries",
    "effort": "search params",
}


@dataclass(frozen=True)
class _Card:
    """A number of the summary at the top of the page."""

    value: str
    label: str


@dataclass(frozen=True)
class _MetricCell:
    """A formatted metric, and whether it is the best of its column."""

    text: str
    is_best: bool


@dataclass(frozen=True)
class _MetricTable:
    """Metrics by model: names of the columns, and (model, cells) per row."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[_MetricCell]]]


@dataclass(frozen=True)
class _Figure:
    """A plot with its texts."""

    title: str
    caption: str
    svg: str


def check_report_path(path: Path) -> None:
    """Check that a report can be written there; call it before an evaluation that takes long.

    Raises:
        ConfigError: The directory of `path` does not exist, or `path` is a directory.
    """
    path = to_absolute_path(path)
    if not path.parent.is_dir():
        raise ConfigError(f"report: the directory {path.parent} does not exist; create it or choose another")
    if path.is_dir():
        raise ConfigError(f"report: {path} is a directory; expected the path of an .html file")


def write_report(path: Path, content: ReportContent) -> None:
    """Write the page.

    Args:
        path: An .html file in an existing directory; it is overwritten.
        content: What the page shows.

    Raises:
        ConfigError: The content has no model, the directory of `path` does not exist, or the file cannot be written.
    """
    if not content.models:
        raise ConfigError("report: expected the metrics of at least one model, got none in ReportContent.models")
    check_report_path(path)
    path = to_absolute_path(path)
    ann_columns = [key for key in _ANN_COLUMNS if any(key in row for row in content.ann_rows)]
    page = (
        _load_environment()
        .get_template("report.html")
        .render(
            content=content,
            cards=_build_summary_cards(content),
            metric_tables={key: _build_metric_table(content, key) for key in ("seen_excluded", "seen_included")},
            selection_table=None if content.selection is None else _build_selection_table(content.selection),
            segment_tables=[_format_segment_table(table) for table in content.segment_tables],
            ann_columns=["engine", *(_ANN_COLUMNS[key] for key in ann_columns)],
            ann_rows=[
                (row["engine"], [_format_value(key, row.get(key)) for key in ann_columns]) for row in content.ann_rows
            ],
            figures=[
                _Figure(title, caption, svg)
                for name, (title, caption) in CAPTIONS.items()
                if (svg := getattr(content, f"{name}_svg"))
            ],
        )
    )
    try:
        atomic_write(path, page.encode())
    except OSError as error:
        raise ConfigError(f"report: {path} cannot be written: {error.strerror}; choose another file") from error


@lru_cache(maxsize=1)
def _load_environment() -> Environment:
    return Environment(
        loader=PackageLoader("vecall.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _build_summary_cards(content: ReportContent) -> list[_Card]:
    """Return recall of the model and of the two best others at one k, then ANN recall of the index."""
    metrics = {
        name: _select_seen_excluded_or_included(values) for name, values in content.models.items() if name != "index"
    }
    recall_keys = [key for key in next(iter(metrics.values())) if key.startswith("recall@")]
    recall_key = "recall@100" if "recall@100" in recall_keys else recall_keys[-1]
    model, *others = [(values[recall_key], name) for name, values in metrics.items() if recall_key in values]
    cards = [
        _Card(format_decimal(recall), f"{recall_key}, {name}")
        for recall, name in (model, *sorted(others, reverse=True)[:2])
    ]
    if content.ann_rows:
        row = content.ann_rows[0]
        label = f"ANN recall@{row['k']} of {row['engine']}, at {_format_value('p50_ms', row['p50_ms'])} ms (p50)"
        cards.append(_Card(_format_value("recall", row["recall"]), label))
    return cards


def _select_seen_excluded_or_included(metrics: Mapping[str, MetricValues]) -> dict[str, float]:
    """Return the defined metrics of "seen_excluded", or of "seen_included" if every target is a repeat."""
    return {name: value for name, value in metrics[select_seen_key(metrics)].items() if value is not None}


def _build_metric_table(content: ReportContent, metrics_key: str) -> _MetricTable:
    """Build the table of all models for "seen_excluded" or "seen_included"."""
    metrics = {name: values[metrics_key] for name, values in content.models.items()}
    columns = list(dict.fromkeys(key for values in metrics.values() for key in values))
    best = {
        key: max((value for values in metrics.values() if (value := values.get(key)) is not None), default=0.0)
        for key in columns
    }
    return _MetricTable(
        columns,
        [
            (name, [_format_metric(values.get(key), best_value=best[key]) for key in columns])
            for name, values in metrics.items()
        ],
    )


def _build_selection_table(selection: SelectionSection) -> _MetricTable:
    """Build the table of the presets that were tried and the baselines; the row of the choice is marked."""
    key = selection.recall_key
    rows = [
        (
            row.name,
            [
                *(
                    _MetricCell(_format_value("", value), is_best=row.name == selection.preset)
                    for value in (row.recall, row.ndcg)
                ),
                *(
                    _MetricCell(_format_value("", value), is_best=False)
                    for value in (row.shuffled_recall, row.shuffled_ndcg, row.users)
                ),
                _MetricCell("–" if row.seconds is None else f"{row.seconds:.0f}", is_best=False),
            ],
        )
        for row in selection.rows
    ]
    return _MetricTable([key, "ndcg@10", f"{key}, shuffled", "ndcg@10, shuffled", "users", "seconds"], rows)


def _format_segment_table(table: SegmentTable) -> tuple[str, _MetricTable]:
    """Return the name of a segment, and its table with the best recall of each bucket marked."""
    rows = []
    for bucket, users, (*recalls, ndcg) in table.rows:
        best = max((recall for recall in recalls if recall is not None), default=0.0)
        cells = [
            *(_format_metric(recall, best_value=best) for recall in recalls),
            _format_metric(ndcg, best_value=-1.0),
        ]
        rows.append((bucket, [_MetricCell(f"{users:,}", is_best=False), *cells]))
    return table.name, _MetricTable(["users", *table.columns], rows)


def _format_metric(value: float | None, *, best_value: float) -> _MetricCell:
    return _MetricCell("–", is_best=False) if value is None else _MetricCell(format_decimal(value), value == best_value)


def _format_value(key: str, value: int | float | str | None) -> str:
    """Format shares and milliseconds with three decimals, counts with thousands separators."""
    if value is None:
        return "default" if key == "effort" else "–"
    if isinstance(value, float):
        return format_decimal(value)
    return f"{value:,}" if isinstance(value, int) else value
