"""Which loss a model was trained with."""

from vecall.config import Config
from vecall.training.plan import MAX_LOGITS_CPU


def samples_negatives(config: Config, n_items: int) -> bool:
    """Whether the loss reads sampled negatives, rather than all items; "auto" as it is resolved on a CPU."""
    training = config.training
    if training.loss == "auto":
        return training.batch * n_items > MAX_LOGITS_CPU
    return training.loss != "softmax"
