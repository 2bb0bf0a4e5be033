"""Negatives are drawn in proportion to popularity without a correction that reaches all items: popular ones sink."""

import numpy as np

from vecall.doctor.checks.below_baselines import is_level_with
from vecall.doctor.context import DoctorContext, RankingFacts
from vecall.doctor.finding import Finding, Message
from vecall.training.plan import select_loss

_MIN_USERS = 50
_MIN_RATIO = 0.2  # of the median popularity of recalled items to that of targets

_IN_BATCH_ALONE = Message(
    "training.negatives.uniform = 0: the negatives are positives of the same step alone, so items that are taken "
    "seldom are hardly ever a negative, and the logQ correction cannot correct for what is never drawn. Set "
    "training.negatives.uniform to 512 or more beside in_batch.",
    "training.negatives.uniform = 0：负样本只来自同一步的正样本，很少被选的物品几乎不会成为负样本，logQ 修正也无法修正"
    "从未抽到的物品。请在 in_batch 之外把 training.negatives.uniform 设为 512 或更多。",
)
_SUNKEN = Message(
    "recalled items are far less popular than what users take: half of the recalled ones have at most {recalled:.0f} "
    "users in training, half of the targets {targets:.0f}; and recall is not above that of popularity. So it looks "
    "when popular items are drawn as negatives without the logQ correction. {advice}",
    "召回的物品远不如用户实际选择的热门：召回物品训练用户数的中位数为 {recalled:.0f}，目标为 {targets:.0f}，且召回率不"
    "高于热门榜。这正是热门物品被当作负样本而没有 logQ 修正的样子。{advice_zh}",
)
_SETTINGS = {
    "bce": "training.loss",
    "softmax": "training.weight_decay",
    "sampled_softmax": "training.negatives.hard",
}
_ADVICE = {
    "bce": (
        'training.loss = "bce" has no correction: set loss = "auto".',
        'training.loss = "bce" 没有修正：请设 loss = "auto"。',
    ),
    "softmax": (
        "The loss is over all items, so it needs none: look at training.weight_decay and training.temperature, and at "
        "towers of your own.",
        "损失覆盖全部物品，不需要该修正：请检查 training.weight_decay 与 training.temperature，以及自己训练的塔。",
    ),
    "sampled_softmax": (
        "The losses of vecall correct for it, so look at impressions and disliked items that are hard negatives "
        "(training.negatives.hard), and at towers of your own.",
        "vecall 的损失都有修正，因此请检查作为难负样本的曝光与不喜欢的物品（training.negatives.hard），以及自己训练的"
        "塔。",
    ),
}


def check(context: DoctorContext) -> list[Finding]:
    """Look at the settings of the negatives, and at the popularity of what is recalled."""
    config = context.config
    if config is None:
        return []
    training = config.training
    findings = []
    if training.loss == "sampled_softmax" and training.negatives.uniform == 0:
        findings.append(Finding("missing_logq", "warning", _IN_BATCH_ALONE, 0.0, "training.negatives.uniform"))
    if context.ranking is not None and (medians := _find_sunken(context.ranking)) is not None:
        loss = select_loss(training, len(context.ranking.item_counts))
        advice, advice_zh = _ADVICE[loss]
        recalled, targets = medians
        message = _SUNKEN.format(recalled=recalled, targets=targets, advice=advice, advice_zh=advice_zh)
        value = round(recalled / targets, 4)
        findings.append(Finding("missing_logq", "warning", message, value, _SETTINGS[loss]))
    return findings


def _find_sunken(facts: RankingFacts) -> tuple[float, float] | None:
    """Return the median popularity of recalled items and of targets where the first is far below, else None."""
    popularity = facts.baseline_gaps.get("popularity")
    if popularity is None or not is_level_with(popularity) or len(facts.top_rows) < _MIN_USERS:
        return None
    recalled = float(np.median(facts.item_counts[facts.top_rows[facts.top_rows >= 0]]))
    targets = float(np.median(facts.item_counts[facts.target_rows]))
    return (recalled, targets) if recalled < _MIN_RATIO * targets else None
