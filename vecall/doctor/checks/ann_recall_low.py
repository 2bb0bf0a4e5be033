"""The exact ranking is fine, but the index does not return it: ANN recall is below its target."""

from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Finding, Level, Message

_MARGIN = 0.02  # below the target, for chance and for users other than those of tuning
_SERIOUS = 0.8

_MESSAGE = Message(
    "ANN recall@{k} of the index is {recall:.3f} for {queries:,} users, its target is {target:.2f}: items that the "
    "model ranks first are not returned. Publish again, so that the index is tuned on present users; raise "
    'index.target_recall or index.latency_ms, or set index.engine = "exact" for a small catalogue.',
    "索引对 {queries:,} 个用户的 ANN recall@{k} 为 {recall:.3f}，目标为 {target:.2f}：模型排在前面的物品没有被返回。请"
    "重新发布，让索引按当前用户调参；提高 index.target_recall 或 index.latency_ms，或对小目录设 index.engine = "
    '"exact"。',
)


def check(context: DoctorContext) -> list[Finding]:
    """Compare ANN recall with the target that the index was tuned for."""
    facts = context.ann
    if facts is None or facts.recall >= facts.target - _MARGIN:
        return []
    message = _MESSAGE.format(k=facts.k, recall=facts.recall, queries=facts.query_count, target=facts.target)
    level: Level = "error" if facts.recall < _SERIOUS else "warning"
    return [Finding("ann_recall_low", level, message, round(facts.recall, 4), "index.target_recall")]
