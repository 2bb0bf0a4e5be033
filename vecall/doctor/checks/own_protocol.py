"""The protocol of our numbers, for whoever compares them with those of a paper."""

from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Finding, Message

_MESSAGE = Message(
    "our protocol: {split}; every item of the catalogue is ranked, items of the history excluded (seen_included has "
    "them in), recall divides by the number of held-out items, and ties count against the model. Papers that rank 100 "
    "sampled negatives, drop users or items with few interactions, or divide by k, report other, mostly higher, "
    "numbers: compare on the same split only.",
    "我们的评测口径：{split}；对全部物品排序，排除历史物品（seen_included 则包含），召回率除以留出物品数，并列时按不利"
    "于模型计。有的论文只对 100 个采样负样本排序、去掉交互少的用户或物品、或除以 k，数字因此不同且多半更高：只能在同样"
    "的切分上比较。",
)


def check(context: DoctorContext) -> list[Finding]:
    """Say what the split is."""
    if context.split is None:
        return []
    return [Finding("own_protocol", "info", _MESSAGE.format(split=context.split.protocol), None, "data.split")]
