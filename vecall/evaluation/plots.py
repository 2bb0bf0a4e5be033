"""The report's five plots, as SVG text that follows the page's light or dark colours.

Drawn for a phone: 331 x 252 points are shown at about their own size on a 390 px screen, larger elsewhere.
Equal input gives equal text.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray

from vecall.arrays import Rows

# Drawn in these and then named after their CSS variable, so that the page can give a darker one at night.
# The light values are told apart by colour-blind readers, and each line has a marker of its own besides.
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
_SERIES_COLORS = tuple(colour for colour, name in _CSS_VARIABLES.items() if name[-1].isdigit())
_TEXT_COLOR, _MUTED_COLOR, _GRID_COLOR = (colour for colour, name in _CSS_VARIABLES.items() if not name[-1].isdigit())
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
    """Colour and marker by model; the usual names keep theirs in every plot, others share out the rest."""
    free = [place for place in range(len(_SERIES_COLORS)) if place not in {_STYLE_INDICES.get(name) for name in models}]
    places = {name: _STYLE_INDICES[name] if name in _STYLE_INDICES else free.pop(0) if free else 5 for name in models}
    return {name: (_SERIES_COLORS[place], _MARKERS[place]) for name, place in places.items()}


def plot_learning_curve(
    epochs: Sequence[Mapping[str, float]], *, metric: str = "recall@100", selection_metric: str | None = None
) -> str:
    """Training loss and a validation metric by epoch; the epoch that was kept is marked.

    Args:
        epochs: in order, each with "epoch", "loss", `metric` and `selection_metric`.
        metric: larger is better.
        selection_metric: the epoch with the largest was kept; None is `metric`.
    """
    numbers = [int(epoch["epoch"]) for epoch in epochs]
    values = [epoch[metric] for epoch in epochs]
    with mpl.rc_context(_RC_PARAMS):
        figure, axes = _create_figure()
        figure.set_layout_engine("constrained", rect=(0, 0, 0.96, 1))  # browsers write the right axis' numbers wider
        losses = axes.twinx()
        losses.grid(visible=False)
        (loss,) = losses.plot(numbers, [epoch["loss"] for epoch in epochs], color=_SERIES_COLORS[2], ls=(0, (4, 2)))
        (curve,) = axes.plot(numbers, values, color=_SERIES_COLORS[0], marker="o", ms=3.5)
        axes.set_zorder(losses.get_zorder() + 1)
        kept = int(np.argmax([epoch[selection_metric or metric] for epoch in epochs]))
        axes.vlines(numbers[kept], min(values), values[kept], color=_MUTED_COLOR, lw=1, ls=":")
        axes.plot(numbers[kept], values[kept], "o", ms=9, mfc="none", mec=_SERIES_COLORS[0], mew=2)
        axes.annotate(
            f"kept: {format_decimal(values[kept])}",
            (numbers[kept], values[kept]),
            xytext=(0, 10),
            textcoords="offset points",
            ha="right" if kept >= 0.75 * len(numbers) else "left" if kept < 0.25 * len(numbers) else "center",
            weight="bold",
        )
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_decimal(value)))
        axes.margins(y=0.2)
        _add_legend(figure, [curve, loss], [f"validation {metric}", "training loss (right)"])
        return _render_svg(figure, "learning-curve")


def plot_recall_over_k(models: Mapping[str, Mapping[str, float]]) -> str:
    """Recall@k by k, a line per model.

    Args:
        models: by name, metrics that hold `recall@k` for some k.
    """
    styles = assign_styles(list(models))
    with mpl.rc_context(_RC_PARAMS):
        figure, axes = _create_figure()
        depths: set[int] = set()
        for name, metrics in models.items():
            recalls = {int(key[7:]): value for key, value in metrics.items() if key.startswith("recall@")}
            ks = sorted(recalls)
            depths.update(ks)
            colour, marker = styles[name]
            axes.plot(ks, [recalls[k] for k in ks], color=colour, marker=marker, ms=4.5, label=name)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(sorted(depths)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_locator(FixedLocator([]))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_decimal(value)))
        axes.set_xlabel("k (items recalled, log scale)")
        _add_legend(figure, *axes.get_legend_handles_labels())
        return _render_svg(figure, "recall-over-k")


def plot_ann_frontier(points: Sequence[Mapping[str, float]]) -> str:
    """ANN recall@k by the milliseconds it costs, a line per k: of all efforts tried, those that no other one beats.

    Args:
        points: `k`, `recall`, `recall_ci95` and `p50_ms` of each effort that was tried; at least one.
    """
    ks = sorted({int(point["k"]) for point in points})
    with mpl.rc_context(_RC_PARAMS):
        figure, axes = _create_figure()
        for k, colour, marker in zip(ks, _SERIES_COLORS * len(ks), _MARKERS * len(ks), strict=False):
            tried = sorted((p["p50_ms"], p["recall"], p["recall_ci95"]) for p in points if int(p["k"]) == k)
            best = [point for at, point in enumerate(tried) if all(point[1] > other[1] for other in tried[:at])]
            ms, recalls, doubts = zip(*best, strict=True)
            axes.errorbar(ms, recalls, doubts, color=colour, marker=marker, ms=4.5, elinewidth=1.2, label=f"k {k:,}")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_decimal(value)))
        axes.set_xlim(left=0)
        axes.set_xlabel("milliseconds of one query (median)")
        _add_legend(figure, *axes.get_legend_handles_labels())
        return _render_svg(figure, "ann-frontier")


def plot_score_histograms(
    target_scores: NDArray[np.float32], negative_scores: NDArray[np.float32], *, bins: int = 40
) -> str:
    """Scores of held-out items against those of random other items, each as shares of their own number.

    Args:
        target_scores: [targets] scores.
        negative_scores: [items] scores.
        bins: over the range of both; the outermost thousandth of the scores is left out.
    """
    both = np.concatenate([target_scores, negative_scores])
    low, high = np.quantile(both[np.isfinite(both)], [0.0005, 0.9995])
    edges = np.linspace(low, high if high > low else low + 1.0, bins + 1)
    with mpl.rc_context(_RC_PARAMS):
        figure, axes = _create_figure()
        for scores, colour, label in (
            (negative_scores, _SERIES_COLORS[2], "random unseen items"),
            (target_scores, _SERIES_COLORS[0], "held-out items"),
        ):
            shares = np.histogram(scores, edges)[0] / max(len(scores), 1)
            axes.stairs(shares, edges, fill=True, color=colour, alpha=0.28, lw=0)
            axes.stairs(shares, edges, color=colour, lw=1.8, label=label)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("score")
        _add_legend(figure, *axes.get_legend_handles_labels())
        return _render_svg(figure, "scores")


def plot_recalled_popularity(top_rows: Mapping[str, Rows], item_counts: NDArray[np.float32]) -> str:
    """How popular the recalled items are, against what users took.

    Args:
        top_rows: by model, [S, k] recalled rows, -1 for none.
        item_counts: [N] how many users took each item.
    """
    base = 2 if item_counts.max(initial=1.0) < 2**9 else 4
    edges = [0.0, 1.0]
    while edges[-1] <= item_counts.max(initial=1.0):
        edges.append(edges[-1] * base)
    group = np.searchsorted(edges, item_counts, side="right") - 1  # [N]
    groups = len(edges) - 1
    centres = np.arange(groups)
    styles = assign_styles(list(top_rows))
    with mpl.rc_context(_RC_PARAMS):
        figure, axes = _create_figure()
        taken = np.bincount(group, weights=item_counts, minlength=groups)
        axes.bar(
            centres,
            taken / max(taken.sum(), 1),
            width=0.82,
            color=_MUTED_COLOR,
            alpha=0.3,
            lw=0,
            label="what users took",
        )
        catalogue = np.bincount(group, minlength=groups) / len(item_counts)
        axes.plot(centres, catalogue, ls=":", lw=1.6, color=_MUTED_COLOR, label="all items")
        for name, top in top_rows.items():
            shown = np.bincount(group[top[top >= 0]], minlength=groups)
            colour, marker = styles[name]
            axes.plot(centres, shown / max(shown.sum(), 1), color=colour, marker=marker, ms=4.5, label=name)
        turned: Any = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if groups > 7 else {}
        axes.set_xticks(centres, [_format_range(edges[at], edges[at + 1]) for at in centres], fontsize=9.5, **turned)
        axes.tick_params(axis="x", length=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("users who took the item")
        _add_legend(figure, *axes.get_legend_handles_labels())
        return _render_svg(figure, "popularity")


def format_decimal(value: float) -> str:
    """Such as .431, and 1.000: how every share is written in the report."""
    return re.sub(r"^(-?)0\.", r"\1.", f"{value:.3f}")


def _format_range(low: float, high: float) -> str:
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
    """The figure as an <svg> element without date, its ids told apart from other plots' by `id_prefix`."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": id_prefix}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="([^"]+)"', rf'id="{id_prefix}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{id_prefix}-", text)
    for colour, variable in _CSS_VARIABLES.items():
        text = text.replace(colour, f"var({variable}, {colour})")
    return text
