"""Tables of a data set: metrics, ratios to the baselines, published results, goals."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.accuracy.goals import GOALS, PUBLISHED_RESULTS, Goal
from harness.tables import console, print_table
from vecall.evaluation.baseline_evaluation import BASELINES

KS = (10, 50, 100, 200, 500)
METRICS = (*(f"recall@{k}" for k in KS), "ndcg@10", "coverage@10")
_RATIO_METRICS = ("recall@10", "recall@100", "ndcg@10")
_SEEN_MODES = {"seen_excluded": "seen items excluded", "seen_included": "seen items included"}
_TITLES = {"ease": "EASE", "cooccurrence": "co-occurrence", "popularity": "popularity"}

Result = Mapping[str, Any]


def print_dataset(name: str, results: Sequence[Result], baselines: Result) -> None:
    """Print a data set's metrics, their ratios to the baselines, published results and goals.

    Args:
        name: key of DATASETS.
        results: by seed; the first one has the metrics of the model through its index.
        baselines: metrics by name, and `notes`.
    """
    first = results[0]
    dropped = ", ".join(f"{reason}: {count:,}" for reason, count in first["dropped"].items()) or "nothing"
    console.print(f"\n{name}: {first['protocol'].rstrip('.')}. Dropped: {dropped}.")
    minutes = statistics.mean(get_fit_seconds(result) for result in results) / 60
    epochs = ", ".join(str(result["best_epoch"]) for result in results)
    console.print(f"Fitted in {minutes:.1f} minutes per seed; best epochs: {epochs}. {' '.join(baselines['notes'])}")
    reasons = [result["selection"]["reason"] for result in results if result.get("selection")]
    console.print(f"Presets: {', '.join(get_chosen_preset(result) for result in results)}. {' '.join(reasons[:1])}")
    for seen_mode, title in _SEEN_MODES.items():
        print_table(f"{name}, {title}", ["", *METRICS], list(_format_rows(results, baselines, seen_mode)))
    _print_channels(name, results)
    print_table(f"{name}, model by baseline", ["", *_RATIO_METRICS], list(_format_ratios(results, baselines)))
    if name in PUBLISHED_RESULTS:
        rows = [[model, seen, f"{recall:.4f}", f"{ndcg:.4f}"] for model, seen, recall, ndcg in PUBLISHED_RESULTS[name]]
        print_table(f"{name}, published", ["", "seen items", "recall@10", "ndcg@10"], rows, align_left=2)
    if name in GOALS:
        rows = [format_goal(goal, results, baselines) for goal in GOALS[name]]
        print_table(f"{name}, goals", ["", "measured", "bar", "", "reach"], rows)


def _print_channels(name: str, results: Sequence[Result]) -> None:
    """Print recall of each channel alone and of the merge, for the same users, and how they are merged.

    Seen items are excluded; of the seeds that have channels.
    """
    measured = [result for result in results if "channels" in result]
    if not measured:
        return
    channels = list(measured[0]["channels"])
    rows = [
        [
            channel,
            *(
                f"{_mean([result['channels'][channel]['seen_excluded'] for result in measured], metric):.4f}"
                for metric in ("recall@10", "recall@100", "added@100", "recall@500", "added@500")
            ),
            ", ".join(f"{result['channels'][channel]['weight'] or 0:g}" for result in measured),
        ]
        for channel in channels
    ]
    merged = [result["merged"]["seen_excluded"] for result in measured]
    recalls = {k: f"{_mean(merged, f'recall@{k}'):.4f}" for k in (10, 100, 500)}
    rows.append(["merged", recalls[10], recalls[100], "", recalls[500], "", ""])
    columns = ["", "recall@10", "recall@100", "adds", "recall@500", "adds", "weights"]
    print_table(f"{name}, channels, seen items excluded", columns, rows)
    for result in measured:
        plan = result["merged"]["plan"]
        console.print(f"seed {result['seed']}: {plan['method']} of {plan['weights']}: {plan['reason']}")


def get_fit_seconds(result: Result) -> float:
    """Return the wall time of `fit`, choosing included; results from before it was measured have training's alone."""
    seconds: float = result.get("fit_seconds", result["seconds"])
    return seconds


def get_chosen_preset(result: Result) -> str:
    """Return the preset of the trained model: what `auto` chose, or the requested preset."""
    preset: str = result["settings"]["model"]["preset"]
    return preset


def compute_goal_value(goal: Goal, results: Sequence[Result], baselines: Result) -> float:
    """Return the mean of the goal's metric over the seeds, by that of the best baseline if the goal is relative."""
    value = _mean([result["model"][goal.seen_mode] for result in results], goal.metric)
    if not goal.relative_to:
        return value
    best: float = max(baselines[name][goal.seen_mode][goal.metric] for name in goal.relative_to if name in baselines)
    return value / best


def format_goal(goal: Goal, results: Sequence[Result], baselines: Result) -> list[str]:
    """Return the cells of a goal's row: name, measured, bar, whether it is reached, and what would be better still."""
    value = compute_goal_value(goal, results, baselines)
    digits = 3 if goal.relative_to else 4
    title = f"{goal.metric}, {_SEEN_MODES[goal.seen_mode]}"
    if goal.relative_to:
        names = ", ".join(_TITLES[name] for name in goal.relative_to)
        title += f", by {'the best of ' if len(goal.relative_to) > 1 else ''}{names}"
    is_reached = round(value, digits) >= goal.bar
    reach = "" if goal.reach is None else f"{goal.reach:.{digits}f}"
    return [title, f"{value:.{digits}f}", f"{goal.bar:.{digits}f}", "reached" if is_reached else "missed", reach]


def _format_rows(results: Sequence[Result], baselines: Result, seen_mode: str) -> Iterator[list[str]]:
    by_seed = [result["model"][seen_mode] for result in results]
    yield [f"vecall, mean of {len(by_seed)}", *(f"{_mean(by_seed, metric):.4f}" for metric in METRICS)]
    if len(by_seed) > 1:
        yield ["  SD", *(f"{statistics.stdev(row[metric] for row in by_seed):.4f}" for metric in METRICS)]
    first = results[0]
    rows = {"  first seed, exact": first["model"], "  first seed, its index": first.get("index")}
    rows |= {_TITLES[name]: baselines.get(name) for name in BASELINES}
    for title, metrics in rows.items():
        if metrics:
            yield [title, *(f"{metrics[seen_mode][metric]:.4f}" for metric in METRICS)]


def _format_ratios(results: Sequence[Result], baselines: Result) -> Iterator[list[str]]:
    """Yield a row per baseline, and one of the best baseline of each metric."""
    available = tuple(name for name in BASELINES if name in baselines)
    for title, names in [*((_TITLES[name], (name,)) for name in available), ("the best of each", available)]:
        goals = [Goal(metric, 1.0, relative_to=names) for metric in _RATIO_METRICS]
        yield [title, *(f"{compute_goal_value(goal, results, baselines):.3f}" for goal in goals)]


def _mean(by_seed: Sequence[Mapping[str, float]], metric: str) -> float:
    return statistics.mean(metrics[metric] for metrics in by_seed)
