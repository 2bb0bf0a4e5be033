"""The evaluation report: one HTML page that needs neither network nor scripts."""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from string import Template

from vecall.errors import ConfigError
from vecall.evaluation.plots import format_decimal
from vecall.runtime.paths import to_absolute_path

AnnRow = Mapping[str, int | float | str | None]


@dataclass(frozen=True)
class ExampleUser:
    """One user, for people: titles taken and titles recalled.

    Attributes:
        user: who.
        history: newest last.
        recalled: best first.
        held_out: what the user took next; marked where it was recalled.
    """

    user: str
    history: tuple[str, ...]
    recalled: tuple[str, ...]
    held_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportContent:
    """What the report says. All texts are escaped; the plots alone are taken as they are.

    Attributes:
        title: of the page.
        headline: the result in a sentence.
        protocol: split, ranking and seen items in words, a sentence each.
        models: by name, `EvaluationResult.as_json()`; the first one is the model, `index` the same through its index, the
            others what it is measured by.
        dropped: what was left out: (what, how many, why).
        ann_rows: `AnnBenchmarkResult.as_json()` of each measurement.
        ann_method: how those were measured.
        learning_curve_svg: SVG from `vecall.evaluation.plots`, as are the next four; empty leaves it out.
        recall_over_k_svg: SVG.
        ann_frontier_svg: SVG.
        scores_svg: SVG.
        popularity_svg: SVG.
        examples: a few users.
        environment: machine, versions, command; by name.
    """

    title: str
    headline: str
    protocol: tuple[str, ...]
    models: Mapping[str, Mapping[str, Mapping[str, float | None]]]
    dropped: tuple[tuple[str, int, str], ...] = ()
    ann_rows: tuple[AnnRow, ...] = ()
    ann_method: str = ""
    learning_curve_svg: str = ""
    recall_over_k_svg: str = ""
    ann_frontier_svg: str = ""
    scores_svg: str = ""
    popularity_svg: str = ""
    examples: tuple[ExampleUser, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


CAPTIONS = {
    "learning_curve": (
        "Learning curve",
        "Blue: the validation metric, higher is better; the ring marks the epoch that was kept, by recall and NDCG@10 "
        "together. Dashed: training loss. A loss that still falls while blue falls means overfitting; both flat from "
        "the start, that nothing is learned.",
    ),
    "recall_over_k": (
        "Recall over k",
        "The share of held-out items among the k recalled, for growing k. Read it at the k that ranking takes: a "
        "line above another there hands it more of what users want. A gap that closes to the right means "
        "both find the same items, one of them later.",
    ),
    "ann_frontier": (
        "What the index can do",
        "ANN recall (overlap with the exact answer) against the time of one query, for each k: of all efforts that "
        "were tried when the index was tuned, those that none beats. Up and left is better; the effort in use is the "
        "quickest that reaches the target for certain.",
    ),
    "scores": (
        "Scores of held-out items against the rest",
        "The further the blue hill stands to the right of the grey one, the better the model tells what users "
        "take from random items. Hills on top of each other: the model does not tell them apart.",
    ),
    "popularity": (
        "Popularity of what is recalled",
        "The share of recalled places that go to items of each popularity. Bars: what users really took. A line "
        "far above the bars at the right end means that a model recalls mostly hits; dotted is the catalogue.",
    ),
}


def write_report(path: Path, content: ReportContent) -> None:
    """Write the page.

    Args:
        path: an .html file in an existing folder; it is overwritten.
        content: what to say.

    Raises:
        ConfigError: there is no model in the content, or the folder of `path` does not exist.
    """
    if not content.models:
        raise ConfigError("a report needs the metrics of at least one model; ReportContent.models is empty")
    path = to_absolute_path(path)
    if not path.parent.is_dir():
        raise ConfigError(f"the report's folder {path.parent} does not exist; create it or name another")
    template = Template(resources.files("vecall.evaluation").joinpath("report.html").read_text("utf-8"))
    sections = (
        _render_section("Protocol", _render_bullets(content.protocol)),
        _render_section(
            "Model recall, seen items excluded",
            "<p class=note>Items of the user's history are not ranked: the setting of a recommender that never "
            "repeats. The best of a column is in colour.</p>" + _render_model_table(content, "seen_excluded"),
        ),
        _render_section(
            "Model recall, seen items included",
            "<p class=note>The same rankings with the history left in: what the user has already taken fills "
            "places too.</p>" + _render_model_table(content, "seen_included"),
        ),
        _render_section("What was left out", _render_dropped(content)),
        _render_section("ANN recall and latency of the index", _render_ann_table(content)) if content.ann_rows else "",
        _render_plots(content),
        _render_section("Examples", _render_examples(content.examples)) if content.examples else "",
        _render_section("Environment", _render_environment(content.environment)) if content.environment else "",
    )
    page = template.substitute(
        title=html.escape(content.title),
        headline=html.escape(content.headline),
        tiles=_render_summary_cards(content),
        sections="\n".join(section for section in sections if section),
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the report {path} cannot be written: {error.strerror}; name another file") from error


def _render_section(title: str, body: str) -> str:
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{body}\n</section>"


def _render_bullets(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _render_summary_cards(content: ReportContent) -> str:
    """The few numbers to take away: the model and the two best others at one depth, then the index."""
    metrics = {name: _select_primary_metrics(judged) for name, judged in content.models.items() if name != "index"}
    depths = [key for key in next(iter(metrics.values())) if key.startswith("recall@")]
    depth = "recall@100" if "recall@100" in depths else depths[-1]
    model, *others = [(at[depth], name) for name, at in metrics.items() if depth in at]
    tiles = [
        (format_decimal(recall), f"{depth}, {name}") for recall, name in (model, *sorted(others, reverse=True)[:2])
    ]
    if content.ann_rows:
        ann = content.ann_rows[0]
        label = f"ANN recall@{ann['k']} of {ann['engine']}, at {_format_number('p50_ms', ann['p50_ms'])} ms (p50)"
        tiles.append((_format_number("recall", ann["recall"]), label))
    cells = (
        f'<div class="card tile"><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>'
        for value, label in tiles
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def _select_primary_metrics(metrics: Mapping[str, Mapping[str, float | None]]) -> dict[str, float]:
    """Metrics with seen items excluded; included where there are no others, for every target is a repeat."""
    for seen in ("seen_excluded", "seen_included"):
        known = {key: value for key, value in metrics[seen].items() if value is not None}
        if any(key.startswith("recall@") for key in known):
            return known
    return known


def _render_model_table(content: ReportContent, metrics_key: str) -> str:
    metrics = {name: judged[metrics_key] for name, judged in content.models.items()}
    columns = list(dict.fromkeys(key for judged in metrics.values() for key in judged))
    best = {
        key: max((value for judged in metrics.values() if (value := judged.get(key)) is not None), default=0.0)
        for key in columns
    }
    rows = [
        [_render_row_header(name)] + [_render_metric_cell(judged.get(key), best=best[key]) for key in columns]
        for name, judged in metrics.items()
    ]
    return _render_table(["model", *columns], rows, highlight_first_row=True)


def _render_dropped(content: ReportContent) -> str:
    if not content.dropped:
        return "<p>Nothing: every user, item and held-out interaction was judged.</p>"
    rows = [
        [_render_row_header(what), f"<td>{count:,}</td>", _render_text_cell(why)]
        for what, count, why in content.dropped
    ]
    return _render_table(["what", "how many", "why"], rows, is_last_column_text=True)


def _render_ann_table(content: ReportContent) -> str:
    columns = {
        "engine": "engine",
        "k": "k",
        "recall": "ANN recall@k",
        "recall_ci95": "± 95 %",
        "p50_ms": "p50 ms",
        "p99_ms": "p99 ms",
        "queries": "queries",
        "effort": "effort",
    }
    shown = {key: label for key, label in columns.items() if any(key in row for row in content.ann_rows)}
    rows = [
        [
            _render_row_header(row[key])
            if key == "engine"
            else f"<td>{html.escape(_format_number(key, row.get(key)))}</td>"
            for key in shown
        ]
        for row in content.ann_rows
    ]
    method = f"<p class=note>{html.escape(content.ann_method)}</p>" if content.ann_method else ""
    return method + _render_table(list(shown.values()), rows)


def _render_plots(content: ReportContent) -> str:
    figures = [
        f'<figure class="card"><h3>{title}</h3>{svg}<figcaption>{caption}</figcaption></figure>'
        for name, (title, caption) in CAPTIONS.items()
        if (svg := getattr(content, f"{name}_svg"))
    ]
    return _render_section("Plots", f'<div class="plots">{"".join(figures)}</div>') if figures else ""


def _render_examples(examples: Sequence[ExampleUser]) -> str:
    parts = []
    for example in examples:
        recalled = "".join(
            f"<li><strong>{html.escape(title)}</strong> ✓</li>"
            if title in example.held_out
            else f"<li>{html.escape(title)}</li>"
            for title in example.recalled
        )
        taken = "".join(f"<li>{html.escape(title)}</li>" for title in example.history)
        then = f"<p class=note>then: {html.escape(', '.join(example.held_out))}</p>" if example.held_out else ""
        parts.append(
            f'<div class="card example"><h3>{html.escape(example.user)}</h3>'
            f"<div><p class=note>taken, newest last</p><ol>{taken}</ol>{then}</div>"
            f"<div><p class=note>recalled, best first</p><ol>{recalled}</ol></div></div>"
        )
    return f'<div class="examples">{"".join(parts)}</div>'


def _render_environment(environment: Mapping[str, str]) -> str:
    pairs = (f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in environment.items())
    return f'<dl class="card">{"".join(pairs)}</dl>'


def _render_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    highlight_first_row: bool = False,
    is_last_column_text: bool = False,
) -> str:
    """In a box of its own to scroll in; the cells of `rows` are HTML already."""
    last = len(columns) - 1
    head = "".join(
        f"<th{' class=words' if is_last_column_text and at == last else ''} scope=col>{html.escape(column)}</th>"
        for at, column in enumerate(columns)
    )
    body = "".join(
        f"<tr{' class=first' if highlight_first_row and at == 0 else ''}>{''.join(cells)}</tr>"
        for at, cells in enumerate(rows)
    )
    return (
        '<div class="card scroll" tabindex="0" role="region" aria-label="table">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _render_row_header(value: object) -> str:
    return f"<th scope=row>{html.escape(str(value))}</th>"


def _render_text_cell(text: str) -> str:
    return f"<td class=words>{html.escape(text)}</td>"


def _render_metric_cell(value: float | None, *, best: float) -> str:
    if value is None:
        return "<td>–</td>"
    return (
        f"<td><strong>{format_decimal(value)}</strong></td>" if value == best else f"<td>{format_decimal(value)}</td>"
    )


def _format_number(key: str, value: int | float | str | None) -> str:
    """Shares and milliseconds with three digits behind the point, counts with commas."""
    if value is None:
        return "default" if key == "effort" else "–"
    if isinstance(value, float):
        return format_decimal(value)
    return f"{value:,}" if isinstance(value, int) else value
