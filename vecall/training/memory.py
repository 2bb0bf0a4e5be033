"""Memory that a training needs, estimated before it starts, and the settings that would need less.

The estimate counts what grows with the data or the model. A process needs about half a GiB beside it: torch, Lightning
and their code.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import torch
from pydantic import ValidationError
from torch import nn

from vecall.errors import TrainingError
from vecall.towers.settings import ModelSettings
from vecall.towers.two_tower import TwoTower
from vecall.training.data import TrainingData
from vecall.training.settings import TrainingSettings

_FLOAT_BYTES = 4
_INDEX_BYTES = 8
_SAMPLE_BYTES = 3 * _INDEX_BYTES + _FLOAT_BYTES  # user, item, position and label
_ITEM_BUFFER_BYTES = 2 * _INDEX_BYTES + _FLOAT_BYTES  # of each item: candidate, its index and its frequency
_ROW_STATE_BYTES = 2 * 4  # of each row of a table without moments: second moment and last step
_CHUNK_LOGITS = 2**21  # of the chunked softmax
_SCORING_BYTES = 128 * 2**20  # blocks of scores in validation, and the ranks that come of them

# [M, D] arrays of a step's items alive at a time: id vectors, sum with features, vectors of length 1, three gradients.
_ITEM_ARRAYS = 6
_HISTORY_ARRAYS = 3  # [B, L, D] arrays: gathered vectors, their gradient, and a product with one of them
_LOGIT_ARRAYS = 5  # [B, C] arrays: scores, corrected ones, logits, probabilities, gradient
_TOKEN_ARRAYS, _TOKEN_ARRAYS_PER_LAYER = 8, 24  # [tokens, D] arrays of a causal encoder that the backward pass reads
_WINDOW_PADDING = 3  # tokens of a batch of windows by position with a loss, at most: context and padding
_MIN_DIM, _MIN_BATCH = 16, 32  # smaller values are not suggested


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a training needs at its peak, by what they hold.

    Attributes:
        features: Encoded features of all items and users.
        histories: Histories that are learned from.
        samples: Labelled samples, their order, and numbers by item.
        weights: Weights of the towers.
        optimizer_state: Moments of the weights and the last step of each table row.
        moving_average: Moving average of the weights.
        step: Activations and gradients of a training step.
        validation: Vectors of all items, and blocks of their scores.
    """

    features: int
    histories: int
    samples: int
    weights: int
    optimizer_state: int
    moving_average: int
    step: int
    validation: int

    @property
    def loaded(self) -> int:
        """Bytes that are in memory before training starts: features and histories."""
        return self.features + self.histories

    @property
    def total(self) -> int:
        """Bytes in all; a step and a validation are not in memory at the same time.

        Checkpoints add nothing: they are streamed to the file, and mapped from it when they are read.
        """
        kept = self.samples + self.weights + self.optimizer_state + self.moving_average
        return self.loaded + kept + max(self.step, self.validation)

    def describe(self) -> str:
        """Return all parts in GiB, largest first."""
        parts = sorted(asdict(self).items(), key=lambda part: -part[1])
        return ", ".join(f"{name.replace('_', ' ')} {_to_gib(size)}" for name, size in parts if size >= 2**20)


@dataclass(frozen=True)
class MemoryPlan:
    """What the memory of a training depends on.

    Attributes:
        data: Training data.
        model: Architecture of the towers.
        training: Loss, batch and moving average.
        loss_name: Loss that "auto" stands for: "softmax", "sampled_softmax" or "bce".
        has_moments: Whether tables keep both moments of each weight, instead of a second moment per row.
        averages_tables: Whether the moving average includes tables.
        validates: Whether epochs are validated.
    """

    data: TrainingData
    model: ModelSettings
    training: TrainingSettings
    loss_name: str
    has_moments: bool = True
    averages_tables: bool = True
    validates: bool = True


def estimate_memory(plan: MemoryPlan) -> MemoryEstimate:
    """Estimate the memory of a training; nothing of its size is allocated."""
    data = plan.data
    table_weights, dense_weights, table_rows = _count_weights(plan)
    n_positives = len(data.histories.values)
    averaged_weights = dense_weights + (table_weights if plan.averages_tables else 0)
    moments = 2 * _FLOAT_BYTES * table_weights + 4 * table_rows
    table_state = moments if plan.has_moments else _ROW_STATE_BYTES * table_rows
    vectors = data.n_items * plan.model.dim * _FLOAT_BYTES
    return MemoryEstimate(
        features=sum(array.nbytes for array in (*data.item_features.values(), *data.user_features.values())),
        histories=data.histories.values.nbytes + data.histories.offsets.nbytes,
        samples=(_SAMPLE_BYTES + _INDEX_BYTES) * n_positives + _ITEM_BUFFER_BYTES * data.n_items,
        weights=_FLOAT_BYTES * (table_weights + dense_weights),
        optimizer_state=table_state + 2 * _FLOAT_BYTES * dense_weights,
        moving_average=_FLOAT_BYTES * averaged_weights if plan.training.ema_decay else 0,
        step=_estimate_step(plan),
        validation=vectors + _SCORING_BYTES if plan.validates else 0,
    )


def check_memory(plan: MemoryPlan, available_bytes: int) -> MemoryEstimate:
    """Refuse a training that does not fit in memory.

    Args:
        plan: Data and settings.
        available_bytes: Memory that the training may use beside what its data take already.

    Returns:
        The estimate.

    Raises:
        TrainingError: The training needs more than that.
    """
    estimate = estimate_memory(plan)
    if estimate.total - estimate.loaded <= available_bytes:
        return estimate
    limit = available_bytes + estimate.loaded
    fitting = [f"{text} ({_to_gib(total)} GiB)" for text, total in _find_fitting_settings(plan, limit)]
    advice = (
        f"settings that would fit: {'; '.join(fitting)}"
        if fitting
        else "no single setting is enough: lower model.dim and training.batch together, leave out items that nobody "
        "takes, or use a machine with more memory"
    )
    raise TrainingError(
        f"training needs about {_to_gib(estimate.total)} GiB of memory and has {_to_gib(limit)} GiB, its data "
        f"included ({estimate.describe()}); {advice}"
    )


def _to_gib(size: int) -> str:
    return f"{size / 2**30:.1f}" if size >= 2**30 else f"{size / 2**30:.2f}"


def _count_weights(plan: MemoryPlan) -> tuple[int, int, int]:
    """Return the number of weights in embedding tables and outside of them, and the rows of the tables."""
    with torch.device("meta"):  # shapes alone
        towers = TwoTower(plan.model, plan.data.item_specs, plan.data.user_specs, plan.data.n_items)
    tables = [module.weight for module in towers.modules() if isinstance(module, nn.Embedding)]
    table_weights = sum(table.numel() for table in tables)
    all_weights = sum(parameter.numel() for parameter in towers.parameters())
    return table_weights, all_weights - table_weights, sum(len(table) for table in tables)


def _estimate_step(plan: MemoryPlan) -> int:
    """Estimate the bytes of activations and gradients of a training step."""
    model, batch, n_items = plan.model, plan.training.batch, plan.data.n_items
    negatives = plan.training.negatives
    n_read = _count_input_items(plan)
    match plan.loss_name:
        case "softmax":
            n_distinct, n_logits = n_items, max(_CHUNK_LOGITS, n_items)
        case "sampled_softmax":
            n_hard = negatives.hard if len(plan.data.hard_negatives.users) else 0
            n_candidates = negatives.uniform + min(negatives.in_batch, batch)
            n_distinct = min(n_items, n_read + batch * (1 + n_hard) + n_candidates)
            n_logits = _LOGIT_ARRAYS * model.ensemble_size * batch * (n_candidates + n_hard)
        case _:
            n_distinct = min(n_items, n_read + batch * (1 + negatives.uniform))
            n_logits = 2 * batch * (1 + negatives.uniform) * model.dim
    if model.history.encoder == "causal":
        history = n_read * model.dim * (_TOKEN_ARRAYS + _TOKEN_ARRAYS_PER_LAYER * model.history.layers)
    else:
        history = _HISTORY_ARRAYS * n_read * model.dim
    hidden = 4 * (n_distinct + batch) * sum(model.hidden)
    return _FLOAT_BYTES * (_ITEM_ARRAYS * n_distinct * model.dim + n_logits + history + hidden)


def _count_input_items(plan: MemoryPlan) -> int:
    """Return how many items the histories of a batch hold at most, padding included."""
    history = plan.model.history
    if history.encoder == "none":
        return 0
    longest = int(plan.data.histories.lengths.max(initial=0))
    if history.encoder == "causal":
        return _WINDOW_PADDING * max(plan.training.batch, min(history.length, longest))
    return plan.training.batch * min(history.length, longest)


def _find_fitting_settings(plan: MemoryPlan, limit: int) -> Iterator[tuple[str, int]]:
    """Yield each single change of the settings with which the training needs at most `limit` bytes, and its bytes."""
    for alternatives in _build_alternatives(plan):
        for text, changed in alternatives:
            total = estimate_memory(changed).total
            if total <= limit:
                yield text, total
                break


def _build_alternatives(plan: MemoryPlan) -> Iterator[list[tuple[str, MemoryPlan]]]:
    """Yield lists of changes of a setting; in each list the ones that change less come first."""
    yield [
        (f"model.dim = {dim}", replace(plan, model=changed))
        for dim in _halve(plan.model.dim, _MIN_DIM)
        if (changed := _change_model(plan.model, dim=dim)) is not None
    ]
    yield [
        (f"training.batch = {batch}", replace(plan, training=plan.training.model_copy(update={"batch": batch})))
        for batch in _halve(plan.training.batch, _MIN_BATCH)
    ]
    if plan.training.ema_decay:
        without_average = plan.training.model_copy(update={"ema_decay": 0.0})
        yield [("training.ema_decay = 0", replace(plan, training=without_average))]
    if plan.model.item_id and plan.data.item_specs:
        changed = _change_model(plan.model, item_id=False)
        yield [("model.item_id = false", replace(plan, model=changed))] if changed is not None else []


def _halve(value: int, minimum: int) -> list[int]:
    halves = []
    while value // 2 >= minimum:
        value //= 2
        halves.append(value)
    return halves


def _change_model(model: ModelSettings, **changes: object) -> ModelSettings | None:
    """Return the settings with some values changed; None if they then contradict each other."""
    try:
        return ModelSettings.model_validate(model.model_dump() | changes)
    except ValidationError:
        return None
