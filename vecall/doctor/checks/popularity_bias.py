"""Everyone is recalled much the same popular items: the model has learned popularity and little else."""

import numpy as np
from numpy.typing import NDArray

from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Finding, Message

_MIN_USERS = 50
_MAX_OVERLAP = 0.7  # of the lists with the k most popular items
_MIN_COVERAGE = 0.02  # of the items that so many lists could hold

_MESSAGE = Message(
    "the top {k} of the users share {overlap:.0%} of their items with the {k} most popular ones; {users:,} users see "
    "{coverage:.1%} of the items that their lists could hold, with a Gini coefficient of {gini:.2f} (training: "
    "{train_gini:.2f}). The model recalls popular items for everyone. Lower training.temperature, train longer, or "
    "set a preset that reads histories; popular items belong into a channel of their own.",
    "用户的前 {k} 名有 {overlap:.0%} 与最热门的 {k} 个物品相同；{users:,} 个用户只看到其列表可容纳物品的 "
    "{coverage:.1%}，基尼系数为 {gini:.2f}（训练数据为 {train_gini:.2f}）。模型给所有人召回热门物品。请降低 "
    "training.temperature、延长训练，或选用读取历史的 preset；热门物品应由单独的通道负责。",
)


def check(context: DoctorContext) -> list[Finding]:
    """Compare the lists with the popular items, and measure how many items they cover."""
    facts = context.ranking
    if facts is None or len(facts.top_rows) < _MIN_USERS:
        return []
    n_items, k = len(facts.item_counts), facts.top_rows.shape[1]
    listed = facts.top_rows[facts.top_rows >= 0]
    popular = np.argsort(-facts.item_counts, kind="stable")[:k]
    overlap = float(np.isin(listed, popular).mean()) if len(listed) else 0.0
    list_counts = np.bincount(listed, minlength=n_items)
    coverage = float(np.count_nonzero(list_counts) / min(n_items, max(len(listed), 1)))
    if overlap < _MAX_OVERLAP and coverage >= _MIN_COVERAGE:
        return []
    message = _MESSAGE.format(
        k=k,
        overlap=overlap,
        users=len(facts.top_rows),
        coverage=coverage,
        gini=_compute_gini(list_counts),
        train_gini=_compute_gini(facts.item_counts),
    )
    return [Finding("popularity_bias", "warning", message, round(overlap, 4), "training.temperature")]


def _compute_gini(counts: NDArray[np.generic]) -> float:
    """Return the Gini coefficient of [N] counts: 0 if all are equal, towards 1 if a single item has all."""
    ordered = np.sort(counts.astype(np.float64))
    total, n = ordered.sum(), len(ordered)
    return float(2 * (np.arange(1, n + 1) * ordered).sum() / (n * total) - (n + 1) / n) if total else 0.0
