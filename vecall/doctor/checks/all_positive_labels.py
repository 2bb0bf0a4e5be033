"""A label column is named, but every row is positive: dislikes, or rows that say nothing, are learned as likes."""

from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Finding, Level, Message

_MESSAGE = Message(
    'schema.interactions.label = "{label}" goes from {minimum:g} to {maximum:g}, and all {rows:,} rows reach positive '
    "= {threshold:g}, {share:.0%} of them with the lowest label. {meaning}",
    'schema.interactions.label = "{label}" 的取值从 {minimum:g} 到 {maximum:g}，全部 {rows:,} 行都达到 positive = '
    "{threshold:g}，其中 {share:.0%} 是最低标签。{meaning_zh}",
)
_WRONG = (
    "A lowest label of {minimum:g} often means a dislike, or no answer: raise schema.interactions.positive above it, "
    "or leave the label out if every row says that the user took the item.",
    "最低标签 {minimum:g} 往往表示不喜欢或未表态：请把 schema.interactions.positive 提高到它之上；若每行都表示用户选择"
    "了该物品，请去掉 label。",
)
_MEANT = (
    "That is right if a low label still says that the user chose the item.",
    "若低分也表示用户选择过该物品，这样是对的。",
)


def check(context: DoctorContext) -> list[Finding]:
    """See whether a label separates any row."""
    dataset, labels = context.dataset, context.labels
    if dataset is None or labels is None or not dataset.interactions.is_positive.all():
        return []
    names = dataset.schema.interactions
    # A label of 0 or less at the threshold is a "no" in logs of clicks and in ratings with 0 for "not rated".
    is_wrong = labels.minimum <= 0 and labels.minimum < labels.maximum
    meaning, meaning_zh = (text.format(minimum=labels.minimum) for text in (_WRONG if is_wrong else _MEANT))
    message = _MESSAGE.format(
        label=names.label,
        minimum=labels.minimum,
        maximum=labels.maximum,
        rows=len(dataset.interactions.users),
        threshold=names.positive,
        share=labels.share_of_minimum,
        meaning=meaning,
        meaning_zh=meaning_zh,
    )
    level: Level = "warning" if is_wrong else "info"
    share = round(labels.share_of_minimum, 4)
    return [Finding("all_positive_labels", level, message, share, "schema.interactions.positive")]
