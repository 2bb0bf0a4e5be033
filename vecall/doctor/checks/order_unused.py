"""The order of histories carries nothing, misleads the model, or says something that the model ignores."""

from vecall.doctor.context import DoctorContext, RecallGap
from vecall.doctor.finding import Finding, Level, Message

_MIN_USERS = 200  # below, a small gain of the order is not seen
_MIN_GAIN = 0.03  # of recall, relative, that an order is worth reading for

_SERIOUS_LOSS = 0.8  # recall with the order, as a share of that without

_MISLEADS = Message(
    "the order of histories misleads the model: {key} is {model:.3f} with the order and {model_shuffled:.3f} with "
    "shuffled histories ({users:,} users). It has learned an order that does not hold for what comes next, such as "
    'that of a file sorted by item. Set model.preset = "{unordered}", or name a column of real times in '
    "schema.interactions.time.",
    "历史的顺序误导了模型：按原顺序 {key} 为 {model:.3f}，打乱后为 {model_shuffled:.3f}（{users:,} 个用户）。模型学到"
    '的顺序对后续物品不成立，例如按物品排序的文件。请设 model.preset = "{unordered}"，或在 schema.interactions.time '
    "中指定真实的时间列。",
)
_IGNORED = Message(
    "the order of histories carries information that the model does not use: with shuffled histories {key} of recent "
    "co-occurrence falls from {probe:.3f} to {probe_shuffled:.3f}, that of the model only from {model:.3f} to "
    "{model_shuffled:.3f} ({users:,} users). {advice}",
    "历史的顺序含有信息，但模型没有利用：打乱历史后，近期共现的 {key} 从 {probe:.3f} 降到 {probe_shuffled:.3f}，而模型"
    "只从 {model:.3f} 变为 {model_shuffled:.3f}（{users:,} 个用户）。{advice_zh}",
)
_READ_ORDER = ('Set model.preset = "sequence".', '请设 model.preset = "sequence"。')
_LEARN_ORDER = (
    "Its encoder reads the order and has not learned it: raise training.epochs, or see the findings about the learning "
    "rate.",
    "它的编码器读取顺序，但没有学会：请增大 training.epochs，或参见关于学习率的发现。",
)
_NO_ORDER = Message(
    "the order of histories carries nothing: with shuffled histories {key} of the model is {model_shuffled:.3f}, as "
    "it is {model:.3f} with the order, and recent co-occurrence does not gain from it either ({users:,} users). A "
    'causal encoder costs time here and overfits the order: set model.preset = "{unordered}". If there should be an '
    "order, check schema.interactions.time.",
    "历史的顺序不含信息：打乱历史后模型的 {key} 为 {model_shuffled:.3f}，不打乱为 {model:.3f}，近期共现也没有从顺序中"
    '受益（{users:,} 个用户）。此时 causal 编码器只会耗时并对顺序过拟合：请设 model.preset = "{unordered}"。如果本'
    "应有顺序，请检查 schema.interactions.time。",
)


def check(context: DoctorContext) -> list[Finding]:
    """Compare recall on histories as they are with that on shuffled ones, of the model and of co-occurrence."""
    facts = context.order
    if facts is None or facts.probe is None or facts.user_count < _MIN_USERS or context.config is None:
        return []
    if _has_gain(facts.model):
        return []
    message_values = {
        "key": facts.recall_key,
        "model": facts.model.recall,
        "model_shuffled": facts.model.other_recall,
        "probe": facts.probe.recall,
        "probe_shuffled": facts.probe.other_recall,
        "users": facts.user_count,
        # The encoder of `set` cannot read the context of each interaction.
        "unordered": "pooled" if context.config.schema_.interactions.context else "set",
    }
    encoder = context.config.model.history.encoder
    value = round(facts.model.recall - facts.model.other_recall, 4)
    if facts.model.is_below:
        level: Level = "error" if facts.model.recall < _SERIOUS_LOSS * facts.model.other_recall else "warning"
        return [Finding("order_unused", level, _MISLEADS.format(**message_values), value, "model.preset")]
    if _has_gain(facts.probe):
        advice, setting = (_LEARN_ORDER, "training.epochs") if encoder == "causal" else (_READ_ORDER, "model.preset")
        message = _IGNORED.format(**message_values, advice=advice[0], advice_zh=advice[1])
        return [Finding("order_unused", "warning", message, value, setting)]
    if encoder in ("none", "set"):  # which read no order
        return []
    message = _NO_ORDER.format(**message_values)
    return [Finding("order_unused", "warning" if encoder == "causal" else "info", message, value, "model.preset")]


def _has_gain(gap: RecallGap) -> bool:
    """Return whether ordered histories give more than shuffled ones, beyond chance and worth a model."""
    return gap.is_above and gap.recall - gap.other_recall > _MIN_GAIN * gap.recall
