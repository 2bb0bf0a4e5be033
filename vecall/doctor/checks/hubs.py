"""Hubs: items that are near to every user without being popular, and crowd the answers."""

import numpy as np

from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Finding, Message
from vecall.training.plan import select_loss

_MIN_USERS = 50
_MIN_LIST_SHARE = 0.5  # of the users' lists that hold a hub
_POPULAR_FACTOR = 10  # an item within the popular ones, this many lists long, is no hub

_MESSAGE = Message(
    "{count:,} items are among the top {k} of more than {limit:.0%} of the users without being popular: the worst, "
    "{item!r}, is in {share:.0%} of the lists and was taken by {users:,.0f} users in training. Such hubs have vectors "
    "that little training has moved. {advice}",
    "{count:,} 个物品并不热门，却出现在超过 {limit:.0%} 用户的前 {k} 名中：最严重的是 {item!r}，占 {share:.0%} 的列"
    "表，而训练中只有 {users:,.0f} 个用户选过它。这类枢纽点的向量几乎没有被训练。{advice_zh}",
)
_SAMPLED = (
    'Raise training.negatives.uniform (or set loss = "softmax") or training.weight_decay',
    '请加大 training.negatives.uniform（或设 loss = "softmax"）或 training.weight_decay',
)
_UNSAMPLED = ("Raise training.weight_decay", "请加大 training.weight_decay")
_DROPOUT = (
    ", or set model.id_dropout so that rare items are represented by their features",
    "，或设 model.id_dropout 让特征代表冷门物品",
)


def check(context: DoctorContext) -> list[Finding]:
    """Count in how many lists each item is, and compare with its popularity."""
    facts = context.ranking
    if facts is None or context.dataset is None or len(facts.top_rows) < _MIN_USERS:
        return []
    n_items, k = len(facts.item_counts), facts.top_rows.shape[1]
    list_counts = np.bincount(facts.top_rows[facts.top_rows >= 0], minlength=n_items)
    n_popular = min(_POPULAR_FACTOR * k, n_items // 2)
    is_popular = np.zeros(n_items, dtype=np.bool_)
    is_popular[np.argsort(-facts.item_counts, kind="stable")[:n_popular]] = True
    shares = np.where(is_popular, 0.0, list_counts / len(facts.top_rows))
    is_hub = shares > _MIN_LIST_SHARE
    if not is_hub.any():
        return []
    row = int(shares.argmax())
    is_sampled = context.config is None or select_loss(context.config.training, n_items) != "softmax"
    advice, advice_zh = _SAMPLED if is_sampled else _UNSAMPLED
    if context.dataset.schema.items.features:
        advice, advice_zh = advice + _DROPOUT[0], advice_zh + _DROPOUT[1]
    [item] = context.dataset.catalogue.items.to_ids(np.array([row]))
    message = _MESSAGE.format(
        count=int(is_hub.sum()),
        k=k,
        limit=_MIN_LIST_SHARE,
        item=item,
        share=shares[row],
        users=facts.item_counts[row],
        advice=f"{advice}.",
        advice_zh=f"{advice_zh}。",
    )
    setting = "training.negatives.uniform" if is_sampled else "training.weight_decay"
    return [Finding("hubs", "warning", message, round(float(shares[row]), 4), setting)]
