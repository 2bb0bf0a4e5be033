"""Interactions of a user have equal times, so that their order is that of the file: it may mean nothing."""

from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Finding, Level, Message

_INFO_SHARE, _WARNING_SHARE = 0.2, 0.5  # of the interactions that follow another of the same user

_TIED = Message(
    "{share:.0%} of the interactions have the same time as the one before of the same user: their order is that of the "
    "file, and the item that leave-one-out holds out is drawn from it. Name a finer time column in "
    "schema.interactions.time{causal}.",
    "{share:.0%} 的交互与同一用户的前一条时间相同：它们按文件顺序排列，leave_one_out 留出的物品也由此而定。"
    "请在 schema.interactions.time 中指定更细的时间列{causal_zh}。",
)
_CAUSAL = (
    ', or set model.preset = "set": a causal encoder learns that order',
    '，或设 model.preset = "set"：causal 编码器会学习这个顺序',
)
_NO_TIME = Message(
    "there is no time column: the order of the file stands for the order of time. If the file is not in that order, "
    "name a column in schema.interactions.time.",
    "没有时间列：以文件顺序作为时间顺序。若文件不是按时间排列，请设 schema.interactions.time。",
)


def check(context: DoctorContext) -> list[Finding]:
    """Compare the times of successive positives of each user."""
    dataset, config = context.dataset, context.config
    if dataset is None or config is None:
        return []
    if not dataset.has_timestamps:
        return [Finding("tied_times", "info", _NO_TIME, None, "schema.interactions.time")]
    positives = dataset.interactions.positives
    is_same_user = positives.users[1:] == positives.users[:-1]
    if not is_same_user.any():
        return []
    share = float((positives.times[1:] == positives.times[:-1])[is_same_user].mean())
    if share < _INFO_SHARE:
        return []
    is_causal = config.model.history.encoder == "causal"
    causal, causal_zh = _CAUSAL if is_causal else ("", "")
    message = _TIED.format(share=share, causal=causal, causal_zh=causal_zh)
    level: Level = "warning" if share >= _WARNING_SHARE and is_causal else "info"
    return [Finding("tied_times", level, message, round(share, 4), "schema.interactions.time")]
