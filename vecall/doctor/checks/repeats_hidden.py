"""Users take items again, and requests hide what was seen unless they say otherwise."""

from vecall.data.repeats import MIN_REPEAT_SHARE, measure_repeat_share
from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Finding, Message

_MESSAGE = Message(
    "{share:.1%} of the positive interactions take an item that the same user took before. Requests hide such items, "
    "since exclude_seen is true by default. If a repeat is a good answer, ask with exclude_seen = false",
    "{share:.1%} 的正向交互是同一用户再次选择的物品。请求默认 exclude_seen = true，会隐藏这些物品。若再次推荐有意义，"
    "请在请求中设 exclude_seen = false",
)
_ON = Message(
    "and the channel repeat, which ranks what this user took by how often and how lately.",
    "，并使用 repeat 通道，它按次数和新近程度排列用户选过的物品。",
)
_OFF = Message(
    "and turn the channel repeat on: it is off, channels.repeat = false.",
    "，并启用 repeat 通道（目前 channels.repeat = false，已关闭）。",
)


def check(context: DoctorContext) -> list[Finding]:
    """Measure the share of the positives that repeat an earlier one of the same user."""
    if context.dataset is None or context.config is None:
        return []
    share = measure_repeat_share(context.dataset.histories)
    if share < MIN_REPEAT_SHARE:
        return []
    message = _MESSAGE.format(share=share) + (_OFF if context.config.channels.repeat is False else _ON)
    return [Finding("repeats_hidden", "info", message, round(share, 4), "channels.repeat")]
