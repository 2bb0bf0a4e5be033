"""Rows were dropped while reading: ids that the items table lacks, unreadable times or labels."""

from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Finding, Level, Message

_WARNING_SHARE = 0.01

_MESSAGE = Message(
    "{count:,} rows or values were dropped while reading ({share:.1%} of the interactions): {reasons}. Ids that the "
    'items table lacks are often written otherwise there (leading zeros, "12.0"). Set data.bad_rows = "error" to see '
    "examples.",
    "读表时丢弃了 {count:,} 行或值（占交互的 {share:.1%}）：{reasons}。物品表中找不到的 id 往往是写法不同（前导零、"
    '"12.0"）。请设 data.bad_rows = "error" 查看例子。',
)


def check(context: DoctorContext) -> list[Finding]:
    """Add up what `bad_rows = "drop"` dropped."""
    if context.dataset is None:
        return []
    counts = {reason: count for reason, count in context.dataset.dropped_counts.items() if ": not " in reason}
    total = sum(counts.values())
    if not total:
        return []
    share = total / (total + len(context.dataset.interactions.users))
    reasons = "; ".join(f"{reason}: {count:,}" for reason, count in sorted(counts.items(), key=lambda pair: -pair[1]))
    message = _MESSAGE.format(count=total, share=share, reasons=reasons)
    level: Level = "warning" if share >= _WARNING_SHARE else "info"
    return [Finding("dropped_rows", level, message, round(share, 4), "data.bad_rows")]
