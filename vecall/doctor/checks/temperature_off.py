"""A temperature at which the loss cannot, or need not, tell the target from the other items."""

import math

import numpy as np

from vecall.data.ragged import count_rows
from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Finding, Message

_MIN_TEMPERATURE = 0.01

_HIGH = Message(
    "training.temperature = {temperature:g} is too high for {items:,} items: cosines go from -1 to 1, so even a "
    "perfect vector gives its target a probability of at most {probability:.1%}, and all gradients push in vain. Set "
    "it to about {advice:.2f}.",
    "training.temperature = {temperature:g} 对 {items:,} 个物品太高：余弦在 -1 到 1 之间，即使向量完美，目标的概率也至"
    "多 {probability:.1%}。请设为约 {advice:.2f}。",
)
_LOW = Message(
    "training.temperature = {temperature:g} is very low: only the hardest negatives get a gradient, and scores are "
    "multiplied by {factor:.0f}. Set it between 0.03 and 0.2.",
    "training.temperature = {temperature:g} 很低：只有最难的负样本有梯度，得分被放大 {factor:.0f} 倍。请设在 0.03 到 "
    "0.2 之间。",
)
_BCE = Message(
    'training.loss = "bce" with training.temperature = {temperature:g}: cosines of at most 1 give probabilities '
    "between {low:.0%} and {high:.0%} only. Set it to 0.1 to 0.2, or use a softmax loss, which finds more on all data "
    "that we know.",
    'training.loss = "bce" 且 training.temperature = {temperature:g}：余弦至多为 1，概率只能在 {low:.0%} 到 '
    "{high:.0%} 之间。请设为 0.1 到 0.2，或改用 softmax 损失（在我们已知的数据上召回更多）。",
)


def check(context: DoctorContext) -> list[Finding]:
    """Compare the temperature with the number of items that the softmax has to tell apart."""
    config, split, dataset = context.config, context.split, context.dataset
    if config is None or split is None or dataset is None or isinstance(config.training.temperature, str):
        return []
    temperature = config.training.temperature
    if temperature < _MIN_TEMPERATURE:
        message = _LOW.format(temperature=temperature, factor=1 / temperature)
        return [Finding("temperature_off", "warning", message, temperature, "training.temperature")]
    if config.training.loss == "bce":
        if temperature < 0.5:  # probabilities from 12 % to 88 %
            return []
        low = 1 / (1 + math.exp(1 / temperature))
        message = _BCE.format(temperature=temperature, low=low, high=1 - low)
        return [Finding("temperature_off", "info", message, temperature, "training.temperature")]
    n_items = int(np.count_nonzero(count_rows(split.train.values, len(dataset.catalogue.items))))
    probability = 1 / (1 + max(n_items - 1, 1) * math.exp(-2 / temperature))
    if probability > 0.5:
        return []
    advice = min(0.1, 1 / math.log(n_items))
    message = _HIGH.format(temperature=temperature, items=n_items, probability=probability, advice=advice)
    return [Finding("temperature_off", "warning", message, temperature, "training.temperature")]
