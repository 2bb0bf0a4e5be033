"""Interactions of a user have equal times, so that their order is that of the file: it may mean nothing."""

from vecall.doctor.context import DoctorContext, OrderFacts
from vecall.doctor.finding import Finding, Level, Message

_INFO_SHARE, _WARNING_SHARE = 0.2, 0.5  # of the interactions that follow another of the same user

_TIED = Message(
    "{share:.0%} of the interactions have the same time as the one before of the same user: their order is that of "
    "the file{drawn}. Name a finer time column in "
    "schema.interactions.time{causal}.",
    "{share:.0%} 的交互与同一用户的前一条时间相同：它们按文件顺序排列{drawn_zh}。请在 "
    "schema.interactions.time 中指定更细的时间列{causal_zh}。",
)
_DRAWN = ", and the item that leave-one-out holds out is drawn from it", "，leave_one_out 留出的物品也由此而定"
_CAUSAL = (
    ', or set model.preset = "set": a causal encoder learns that order',
    '，或设 model.preset = "set"：causal 编码器会学习这个顺序',
)
_MIN_SORTED_SHARE = 0.9  # of neighbours in histories that ascend by item; half do by chance
_SORTED = Message(
    "there is no time column, and {share:.0%} of the items in histories ascend by id: the file is sorted by item, and "
    'its order says nothing. Set model.preset = "set", or name a column of times in schema.interactions.time.',
    "没有时间列，且历史中 {share:.0%} 的相邻物品按 id 递增：文件是按物品排序的，顺序没有意义。请设 model.preset = "
    '"set"，或在 schema.interactions.time 中指定时间列。',
)
_NO_TIME = Message(
    "there is no time column: the order of the file stands for the order of time. If the file is not in that order, "
    "name a column in schema.interactions.time.",
    "没有时间列：以文件顺序作为时间顺序。若文件不是按时间排列，请设 schema.interactions.time。",
)


def check(context: DoctorContext) -> list[Finding]:
    """Compare the times of successive positives of each user."""
    dataset, config = context.dataset, context.config
    if dataset is None or config is None or not dataset.has_order:
        return []
    positives = dataset.interactions.positives
    is_same_user = positives.users[1:] == positives.users[:-1]
    if not is_same_user.any():
        return []
    if not dataset.has_timestamps:
        share = float((positives.items[1:] > positives.items[:-1])[is_same_user].mean())
        return [_describe_file_order(share, context.order)]
    share = float((positives.times[1:] == positives.times[:-1])[is_same_user].mean())
    if share < _INFO_SHARE:
        return []
    is_causal = config.model.history.encoder == "causal"
    causal, causal_zh = _CAUSAL if is_causal else ("", "")
    drawn, drawn_zh = _DRAWN if config.data.split == "leave_one_out" else ("", "")
    message = _TIED.format(share=share, causal=causal, causal_zh=causal_zh, drawn=drawn, drawn_zh=drawn_zh)
    level: Level = "warning" if share >= _WARNING_SHARE and is_causal else "info"
    return [Finding("tied_times", level, message, round(share, 4), "schema.interactions.time")]


def _describe_file_order(share: float, order: OrderFacts | None) -> Finding:
    """Return the finding about a table without times.

    Args:
        share: Share of neighbours in histories that ascend by item.
        order: Whether the model reads the order; None if it may.
    """
    if share < _MIN_SORTED_SHARE:
        return Finding("tied_times", "info", _NO_TIME, None, "schema.interactions.time")
    is_read = order is None or order.model.is_above or order.model.is_below
    message = _SORTED.format(share=share)
    return Finding("tied_times", "warning" if is_read else "info", message, round(share, 4), "schema.interactions.time")
