"""The plots of the report, as SVG text that follows the page's light or dark colors.

Drawn for a phone: 331 x 252 points are shown at about their own size on a 390 px screen, larger elsewhere.
The text is deterministic: equal input gives equal SVG.
"""

import io
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter

from vecall.arrays import Rows, Scores

# Plots are drawn in these colors, which are then replaced by their CSS variables, so that the page can redefine them in
# dark mode. Color-blind readers can distinguish the light values; each line has a marker of its own as well.
_CSS_VARIABLES = {
    "#0068a6": "--plot-1",
    "#c84e00": "--plot-2",
    "#667085": "--plot-3",
    "#008a66": "--plot-4",
    "#b0508f": "--plot-5",
    "#8a6d00": "--plot-6",
    "#1f2834": "--plot-ink",
    "#5c6778": "--plot-soft",
    "#dde2e9": "--plot-grid",
}
_SERIES_COLORS = tuple(color for color, name in _CSS_VARIABLES.items() if name[-1].isdigit())
_TEXT_COLOR, _MUTED_COLOR, _GRID_COLOR = (color for color, name in _CSS_VARIABLES.items() if not name[-1].isdigit())
_MARKERS = "osD^vP"
_STYLE_INDICES = {"model": 0, "ease": 1, "popularity": 2, "dssm": 3, "cooccurrence": 4}

_RC_PARAMS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vecall",
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "text.color": _TEXT_COLOR,
    "axes.facecolor": "none",
    "axes.edgecolor": _MUTED_COLOR,
    "axes.labelcolor": _TEXT_COLOR,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _GRID_COLOR,
    "grid.linewidth": 0.8,
    "xtick.color": _MUTED_COLOR,
    "ytick.color": _MUTED_COLOR,
    "xtick.labelcolor": _TEXT_COLOR,
    "ytick.labelcolor": _TEXT_COLOR,
    "ytick.major.size": 0,
    "lines.linewidth": 2.0,
    "legend.frameon": False,
}


def assign_styles(models: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return (color, marker) by model; models in `_STYLE_INDICES` have theirs in every plot, others take free ones."""
    reserved = {_STYLE_INDICES.get(name) for name in models}
    free = [index for index in range(len(_SERIES_COLORS)) if index not in reserved]
    indices = {name: _STYLE_INDICES[name] if name in _STYLE_INDICES else free.pop(0) if free else 5 for name in models}
    return {name: (_SERIES_COLORS[index], _MARKERS[index]) for name, index in indices.items()}


def plot_learning_curve(
    epochs: Sequence[Mapping[str, float]], *, metric: str = "recall@100", selection_metric: str | None = None
) -> str:
    """Plot training loss and a validation metric by epoch, and mark the selected epoch.

    Args:
        epochs: Epochs in order, each with "epoch", "loss", `metric` and `selection_metric`.
        metric: Name of the validation metric; larger is better.
        selection_metric: Name of the metric whose largest value selected the epoch; None for `metric`.
    """
    numbers = [int(epoch["epoch"]) for epoch in epochs]
    values = [epoch[metric] for epoch in epochs]
    with mpl.rc_context(_RC_PARAMS):
        figure, axes = _create_figure()
        figure.set_layout_engine("constrained", rect=(0, 0, 0.96, 1))  # browsers draw the right axis' labels wider
        losses = axes.twinx()
        losses.grid(visible=False)
        (loss,) = losses.plot(numbers, [epoch["loss"] for epoch in epochs], color=_SERIES_COLORS[2], ls=(0, (4, 2)))
        (curve,) = axes.plot(numbers, values, color=_SERIES_COLORS[0], marker="o", ms=3.5)
        axes.set_zorder(losses.get_zorder() + 1)
        best = int(np.argmax([epoch[selection_metric or metric] for epoch in epochs]))
        axes.vlines(numbers[best], min(values), values[best], color=_MUTED_COLOR, lw=1, ls=":")
        axes.plot(numbers[best], values[best], "o", ms=9, mfc="none", mec=_SERIES_COLORS[0], mew=2)
        axes.annotate(
            f"selected: {format_decimal(values[best])}",
            (numbers[best], values[best]),
            xytext=(0, 10),
            textcoords="offset points",
            ha="right" if best >= 0.75 * len(numbers) else "left" if best < 0.25 * len(numbers) else "center",
            weight="bold",
        )
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_decimal(value)))
        axes.margins(y=0.2)
        _add_legend(figure, [curve, loss], [f"validation {metric}", "training loss (right)"])
        return _render_svg(figure, "learning-curve")


def plot_recall_over_k(models: Mapping[str, Mapping[str, float]]) -> str:
    """Plot recall@k by k, a line per model.

    Args:
        models: Metrics by model, with `recall@k` for some k; other metrics are ignored.
    """
    styles = assign_styles(list(models))
    with mpl.rc_context(_RC_PARAMS):
        figure, axes = _create_figure()
        all_ks: set[int] = set()
        for name, metrics in models.items():
            recalls = {
                int(key.removeprefix("recall@")): value for key, value in metrics.items() if key.startswith("recall@")
            }
            ks = sorted(recalls)
            all_ks.update(ks)
            color, marker = styles[name]
            axes.plot(ks, [recalls[k] for k in ks], color=color, marker=marker, ms=4.5, label=name)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(sorted(all_ks)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_locator(FixedLocator([]))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_decimal(value)))
        axes.set_xlabel("k (items recalled, log scale)")
        _add_legend(figure, *axes.get_legend_handles_labels())
        return _render_svg(figure, "recall-over-k")


def plot_ann_frontier(points: Sequence[Mapping[str, float]]) -> str:
    """Plot the Pareto frontier of ANN recall@k over latency, a line per k.

    Args:
        points: `k`, `recall`, `recall_ci95` and `p50_ms` of all search parameters tried; at least one point. Those that
            another point of the same k beats in both recall and latency are not drawn.
    """
    ks = sorted({int(point["k"]) for point in points})
    with mpl.rc_context(_RC_PARAMS):
        figure, axes = _create_figure()
        for k, color, marker in zip(ks, _SERIES_COLORS * len(ks), _MARKERS * len(ks), strict=False):
            by_latency = sorted((p["p50_ms"], p["recall"], p["recall_ci95"]) for p in points if int(p["k"]) == k)
            frontier = [
                point for i, point in enumerate(by_latency) if all(point[1] > faster[1] for faster in by_latency[:i])
            ]
            ms, recalls, errors = zip(*frontier, strict=True)
            axes.errorbar(ms, recalls, errors, color=color, marker=marker, ms=4.5, elinewidth=1.2, label=f"k = {k:,}")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_decimal(value)))
        axes.set_xlim(left=0)
        axes.set_xlabel("median latency of one query (ms)")
        _add_legend(figure, *axes.get_legend_handles_labels())
        return _render_svg(figure, "ann-frontier")


def plot_score_histograms(target_scores: Scores, negative_scores: Scores, *, bins: int = 40) -> str:
    """Plot histograms of the scores of held-out and of random items, each as shares of its own number of scores.

    Args:
        target_scores: [targets] scores of held-out items.
        negative_scores: [items] scores of random unseen items.
        bins: Number of bins over the range of both; the outermost 0.1 % of the scores is left out.
    """
    both = np.concatenate([target_scores, negative_scores])
    low, high = np.quantile(both[np.isfinite(both)], [0.0005, 0.9995])
    edges = np.linspace(low, high if high > low else low + 1.0, bins + 1)
    with mpl.rc_context(_RC_PARAMS):
        figure, axes = _create_figure()
        for scores, color, label in (
            (negative_scores, _SERIES_COLORS[2], "random unseen items"),
            (target_scores, _SERIES_COLORS[0], "held-out items"),
        ):
            shares = np.histogram(scores, edges)[0] / max(len(scores), 1)
            axes.stairs(shares, edges, fill=True, color=color, alpha=0.28, lw=0)
            axes.stairs(shares, edges, color=color, lw=1.8, label=label)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("score")
        _add_legend(figure, *axes.get_legend_handles_labels())
        return _render_svg(figure, "scores")


def plot_recalled_popularity(top_rows: Mapping[str, Rows], item_counts: Scores) -> str:
    """Plot the popularity of recalled items, beside that of training interactions and of all items.

    Args:
        top_rows: [S, k] recalled rows by model, -1 for none.
        item_counts: [N] number of users of each item in training.
    """
    base = 2 if item_counts.max(initial=1.0) < 2**9 else 4
    edges = [0.0, 1.0]
    while edges[-1] <= item_counts.max(initial=1.0):
        edges.append(edges[-1] * base)
    group = np.searchsorted(edges, item_counts, side="right") - 1  # [N]
    n_groups = len(edges) - 1
    centers = np.arange(n_groups)
    styles = assign_styles(list(top_rows))
    with mpl.rc_context(_RC_PARAMS):
        figure, axes = _create_figure()
        interactions = np.bincount(group, weights=item_counts, minlength=n_groups)
        axes.bar(
            centers,
            interactions / max(interactions.sum(), 1),
            width=0.82,
            color=_MUTED_COLOR,
            alpha=0.3,
            lw=0,
            label="interactions",
        )
        catalogue = np.bincount(group, minlength=n_groups) / len(item_counts)
        axes.plot(centers, catalogue, ls=":", lw=1.6, color=_MUTED_COLOR, label="all items")
        for name, rows in top_rows.items():
            recalled = np.bincount(group[rows[rows >= 0]], minlength=n_groups)
            color, marker = styles[name]
            axes.plot(centers, recalled / max(recalled.sum(), 1), color=color, marker=marker, ms=4.5, label=name)
        rotation: Any = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if n_groups > 7 else {}
        labels = [_format_range(low, high) for low, high in pairwise(edges)]
        axes.set_xticks(centers, labels, fontsize=9.5, **rotation)
        axes.tick_params(axis="x", length=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("popularity (users of the item)")
        _add_legend(figure, *axes.get_legend_handles_labels())
        return _render_svg(figure, "popularity")


def plot_channels(channels: Mapping[str, tuple[float, float]], *, metric: str) -> str:
    """Plot the recall of each channel alone, and the share of targets that it adds to the vectors.

    Args:
        channels: Both shares by channel, in the order of the bars from above.
        metric: Name of the recall.
    """
    centers = np.arange(len(channels))[::-1]
    with mpl.rc_context(_RC_PARAMS | {"axes.grid.axis": "x"}):
        figure, axes = _create_figure()
        for index, (offset, label) in enumerate(((0.2, f"{metric} alone"), (-0.2, "not found by the vectors"))):
            shares = [values[index] for values in channels.values()]
            bars = axes.barh(centers + offset, shares, height=0.36, color=_SERIES_COLORS[index], lw=0, label=label)
            axes.bar_label(bars, [format_decimal(share) for share in shares], padding=3, fontsize=9.5)
        axes.set_yticks(centers, list(channels))
        axes.margins(x=0.16)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_decimal(value)))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel("share of held-out items")
        _add_legend(figure, *axes.get_legend_handles_labels())
        return _render_svg(figure, "channels")


def format_decimal(value: float) -> str:
    """Format a number with three decimals, as everywhere in the report."""
    return f"{value:.3f}"


def _format_range(low: float, high: float) -> str:
    """Format the integers from `low` to `high` - 1, such as "4–15"."""
    first, last = int(low), int(high) - 1
    return f"{first:,}" if first == last else f"{first:,}–{last:,}"


def _create_figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 3.5), layout="constrained")
    figure.patch.set_visible(False)
    return figure, figure.add_subplot()


def _add_legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    figure.legend(
        handles, labels, loc="outside upper left", ncols=min(len(labels), 3), columnspacing=1.2, handlelength=1.6
    )


def _render_svg(figure: Figure, id_prefix: str) -> str:
    """Return the figure as an <svg> element without a date; `id_prefix` keeps its ids distinct from other plots'."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": id_prefix}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="([^"]+)"', rf'id="{id_prefix}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{id_prefix}-", text)
    for color, variable in _CSS_VARIABLES.items():
        text = text.replace(color, f"var({variable}, {color})")
    return text
