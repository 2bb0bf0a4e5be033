"""Items that training has never seen: among the targets they cannot be recalled by their id, only by their content."""

import numpy as np

from vecall.data.ragged import count_rows
from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Finding, Level, Message

_INFO_SHARE, _WARNING_SHARE = 0.01, 0.1  # of the targets
_LARGE_SHARE = 0.5  # of the catalogue

_TARGETS = Message(
    "{share:.1%} of the held-out targets are items without an interaction in training ({untrained:,} of {items:,} "
    "items have none). {advice}",
    "{share:.1%} 的留出目标是训练中没有交互的物品（{items:,} 个物品中有 {untrained:,} 个没有）。{advice_zh}",
)
_ADVICE = {
    "ready": (
        "Their features speak for them; recall of them is bounded by what the features say.",
        "它们由特征代表；召回率受特征信息量限制。",
    ),
    "id_dropout": (
        "They have features, but with model.id_dropout = 0 no vector was learned from features alone: set it to 0.1 "
        "to 0.3.",
        "它们有特征，但 model.id_dropout = 0 时没有学会只用特征编码：请设为 0.1 到 0.3。",
    ),
    "features": (
        "Without features no model can recall them: add an items table with schema.items.features, and set "
        "model.id_dropout.",
        "没有特征时任何模型都召回不了它们：请加物品表与 schema.items.features，并设 model.id_dropout。",
    ),
}
_CATALOGUE = Message(
    "{share:.0%} of the {items:,} items have no interaction in training. They are in the index all the same; if they "
    "are not for sale any more, leave them out of the items table.",
    "{items:,} 个物品中有 {share:.0%} 在训练中没有交互，但仍在索引里；若已下架，请从物品表中去掉。",
)


def check(context: DoctorContext) -> list[Finding]:
    """Count untrained items in the catalogue and among the targets of the test."""
    dataset, split, config = context.dataset, context.split, context.config
    if dataset is None or split is None or config is None:
        return []
    n_items = len(dataset.catalogue.items)
    is_untrained = count_rows(split.train.values, n_items) == 0
    share = float(is_untrained[split.test.targets.values].mean())
    untrained_share = float(is_untrained.mean())
    findings = []
    if share >= _INFO_SHARE:
        need = "features" if not config.schema_.items.features else "id_dropout"
        if need == "id_dropout" and (config.model.id_dropout > 0 or not config.model.item_id):
            need = "ready"
        advice, advice_zh = _ADVICE[need]
        message = _TARGETS.format(
            share=share, untrained=int(is_untrained.sum()), items=n_items, advice=advice, advice_zh=advice_zh
        )
        level: Level = "warning" if share >= _WARNING_SHARE and need != "ready" else "info"
        setting = "schema.items.features" if need == "features" else "model.id_dropout"
        findings.append(Finding("untrained_items", level, message, round(share, 4), setting))
    if untrained_share >= _LARGE_SHARE and np.any(~is_untrained):
        message = _CATALOGUE.format(share=untrained_share, items=n_items)
        findings.append(Finding("untrained_items", "info", message, round(untrained_share, 4), "data.items"))
    return findings
