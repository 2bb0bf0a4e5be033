"""Memory that a training needs, estimated before it starts, and the settings that would need less.

The estimate counts what grows with the data or the model. A process needs about half a GiB beside it, for the code of
torch and Lightning. On a GPU, weights, their state and the step are in the memory of the device instead.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, replace

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from vecall.data.split import HardNegatives
from vecall.errors import TrainingError
from vecall.towers.settings import ModelSettings
from vecall.towers.two_tower import TwoTower
from vecall.training.data import TrainingData
from vecall.training.plan import TrainingPlan, find_row_tables, select_candidate_items
from vecall.training.scoring import MAX_FULL_PRECISION_BYTES
from vecall.training.settings import TrainingSettings
from vecall.training.spectral import estimate_spectral_bytes, estimate_spectral_part_bytes

_FLOAT_BYTES = 4
_INDEX_BYTES = 8
_SAMPLE_BYTES = 4 * 4  # user, item, position and label
_HARD_NEGATIVE_BYTES = 5 * _INDEX_BYTES  # user and item as one number and apart, while they are sorted
_SET_ITEM_BYTES = 2 * 4  # item and weight
_ITEM_BUFFER_BYTES = 2 * _INDEX_BYTES + _FLOAT_BYTES  # of each item: candidate, its index and its frequency
_ROW_STATE_BYTES = 2 * 4  # of each row of a table without moments: second moment and last step
_CHUNK_LOGITS = 2**21  # of the chunked softmax
_SCORING_BYTES = 32 * 2**20  # blocks of scores in validation

# [M, D] arrays of a step's items alive at a time: id vectors, sum with features, vectors of length 1, three gradients.
_ITEM_ARRAYS = 6
# [rows, D] arrays of each table until its update: the rows that were read, and their gradients.
_READ_ROW_ARRAYS = 2
_EXCHANGED_ROW_ARRAYS = 2  # the same with several processes: gradients on the way to the others, and merged ones
_UPDATED_ROW_ARRAYS = 4  # [rows, D] arrays of a table without moments that is being updated; kernels need none
_HISTORY_ARRAYS = 3  # [B, L, D] arrays: gathered vectors, their gradient, and a product with one of them
_SET_LOGIT_ARRAYS = 3  # [B, N] arrays: scores, masked ones and their differences; beside probabilities of each member
_LOGIT_ARRAYS = 5  # [B, C] arrays: scores, corrected ones, logits, probabilities, gradient
_TOKEN_ARRAYS, _TOKEN_ARRAYS_PER_LAYER = 8, 24  # [tokens, D] arrays of a causal encoder that the backward pass reads
_WINDOW_PADDING = 3  # tokens of a batch of windows by position with a loss, at most: context and padding
_MIN_DIM, _MIN_BATCH = 16, 32  # smaller values are not suggested


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a training needs at its peak, by what they hold; with several processes the share of each.

    Attributes:
        features: Encoded features of all items and users.
        histories: Histories that are learned from.
        samples: Labelled samples and their order, or sets; and numbers by item.
        weights: Weights of the towers.
        optimizer_state: Moments of the weights and the last step of each table row.
        moving_average: Moving average of the weights.
        step: Activations and gradients of a training step.
        validation: Vectors of all items, and blocks of their scores.
        spectral_start: Working memory of `model.item_init = "spectral"` and of the spectral part, which is freed before
            the first step.
        unshared_tables: What tables need more before the processes have them in common; freed likewise.
    """

    features: int
    histories: int
    samples: int
    weights: int
    optimizer_state: int
    moving_average: int
    step: int
    validation: int
    spectral_start: int
    unshared_tables: int = 0

    @property
    def loaded(self) -> int:
        """Bytes that are in memory before training starts: features and histories."""
        return self.features + self.histories

    @property
    def total(self) -> int:
        """Bytes at the peak. The allocator keeps most of a step's memory for the next one, beside that of a validation.

        Checkpoints add nothing: they are streamed to the file, and the best weights are mapped from it.
        """
        start = self.spectral_start + self.unshared_tables
        training: int = sum(astuple(self)) - start
        return max(training, self.loaded + self.weights + start)

    def describe(self) -> str:
        """Return all parts in GiB, largest first."""
        parts = sorted(asdict(self).items(), key=lambda part: -part[1])
        return ", ".join(f"{name.replace('_', ' ')} {_to_gib(size)}" for name, size in parts if size >= 2**20)


@dataclass(frozen=True)
class _Inputs:
    """What the memory of a training depends on; the plan is resolved again for changed settings."""

    data: TrainingData
    model: ModelSettings
    training: TrainingSettings
    plan: TrainingPlan | None
    processes: int
    shares_tables: bool
    validates: bool


def estimate_memory(
    data: TrainingData,
    model: ModelSettings,
    training: TrainingSettings,
    plan: TrainingPlan | None = None,
    *,
    processes: int = 1,
    shares_tables: bool = False,
    validates: bool = True,
) -> MemoryEstimate:
    """Estimate the memory of a training; nothing of its size is allocated.

    Args:
        data: Training data.
        model: Architecture of the towers.
        training: Loss, batch and moving average.
        plan: The training's plan; None to resolve it.
        processes: Number of processes that train together, each of which needs the memory.
        shares_tables: Whether they hold the tables that are trained by rows in common.
        validates: Whether epochs are validated.

    Raises:
        TrainingError: As `TrainingPlan.make`.
    """
    return _estimate(_Inputs(data, model, training, plan, processes, shares_tables, validates))


def check_memory(
    data: TrainingData,
    model: ModelSettings,
    training: TrainingSettings,
    available_bytes: int,
    *,
    processes: int = 1,
    shares_tables: bool = False,
    validates: bool = True,
) -> MemoryEstimate:
    """Refuse a training that does not fit in memory.

    Args:
        data: Training data.
        model: Architecture of the towers.
        training: Loss, batch and moving average.
        available_bytes: Memory that each process may use beside what its data use already.
        processes: Number of processes that train together.
        shares_tables: Whether they hold the tables that are trained by rows in common.
        validates: Whether epochs are validated.

    Returns:
        The estimate.

    Raises:
        TrainingError: The training needs more than that; or as `TrainingPlan.make`.
    """
    inputs = _Inputs(data, model, training, None, processes, shares_tables, validates)
    estimate = _estimate(inputs)
    limit = available_bytes + estimate.loaded
    if estimate.total <= limit:
        return estimate
    fitting = [f"{text} ({_to_gib(total)} GiB)" for text, total in _find_fitting_settings(inputs, limit)]
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


def _estimate(inputs: _Inputs) -> MemoryEstimate:
    data, model = inputs.data, inputs.model
    with torch.device("meta"):  # shapes alone
        towers = TwoTower(model, data.item_specs, data.user_specs, data.n_items)
    n_candidates = len(select_candidate_items(towers, data))
    plan = inputs.plan or TrainingPlan.make(
        inputs.training, towers, n_candidates, inputs.processes, shares_tables=inputs.shares_tables
    )
    tables = find_row_tables(towers, items_by_rows=plan.items_by_rows)
    max_list_length = max(
        (data.item_features[name].shape[1] for name, spec in data.item_specs.items() if spec.kind == "multi_value"),
        default=1,
    )
    read_tables = [(table.weight, 1 if table is towers.item_id_embedding else max_list_length) for table in tables]
    row_weights, rows = sum(table.weight.numel() for table in tables), sum(table.num_embeddings for table in tables)
    all_weights = sum(parameter.numel() for parameter in towers.parameters())
    dense_weights, holders = all_weights - row_weights, inputs.processes if inputs.shares_tables else 1
    spectral_weights = 0 if towers.spectral_vectors is None else towers.spectral_vectors.numel()
    row_state = 2 * _FLOAT_BYTES * row_weights + 4 * rows if plan.row_moments else _ROW_STATE_BYTES * rows
    n_copies = 2 if inputs.training.ema_decay and plan.row_moments else 1  # of a table: weights and their average
    row_bytes = _FLOAT_BYTES * row_weights
    return MemoryEstimate(
        features=sum(
            array.nbytes
            for features in (data.item_features, data.user_features, data.context_features)
            for array in features.values()
        ),
        histories=data.histories.values.nbytes + data.histories.offsets.nbytes + _count_bytes(data.hard_negatives),
        samples=_estimate_samples(inputs, plan) + _ITEM_BUFFER_BYTES * data.n_items,
        weights=_FLOAT_BYTES * (dense_weights + spectral_weights) + row_bytes // holders,
        optimizer_state=row_state // holders + 2 * _FLOAT_BYTES * dense_weights,
        moving_average=(
            _FLOAT_BYTES * dense_weights + (n_copies - 1) * row_bytes // holders if inputs.training.ema_decay else 0
        ),
        step=_FLOAT_BYTES * (dense_weights + _count_step_values(inputs, plan, read_tables, n_candidates)),
        validation=_estimate_validation(data.n_items * model.dim) if inputs.validates else 0,
        spectral_start=_estimate_spectral_start(inputs),
        unshared_tables=n_copies * row_bytes - n_copies * row_bytes // holders,
    )


def _count_bytes(pairs: HardNegatives) -> int:
    return pairs.users.nbytes + pairs.items.nbytes + pairs.prior_positive_counts.nbytes


def _estimate_samples(inputs: _Inputs, plan: TrainingPlan) -> int:
    """Return the bytes of positives and hard negatives."""
    positive_bytes = _SET_ITEM_BYTES if inputs.model.history.encoder == "set" else _SAMPLE_BYTES + _INDEX_BYTES
    negative_bytes = 0
    if plan.loss == "bce":
        negative_bytes = _SAMPLE_BYTES + _INDEX_BYTES
    elif plan.samples_hard_negatives(inputs.training):
        negative_bytes = _HARD_NEGATIVE_BYTES
    return positive_bytes * len(inputs.data.histories.values) + negative_bytes * len(inputs.data.hard_negatives.users)


def _estimate_spectral_start(inputs: _Inputs) -> int:
    """Return what the initial id vectors or the spectral part need, which are computed one after the other."""
    model, histories, n_items = inputs.model, inputs.data.histories, inputs.data.n_items
    has_start, has_part = model.item_init == "spectral" and model.item_id, model.spectral_dim > 0
    return max(
        estimate_spectral_bytes(histories, n_items, model.trained_dim) if has_start else 0,
        estimate_spectral_part_bytes(histories, n_items, model.spectral_dim) if has_part else 0,
    )


def _estimate_validation(n_values: int) -> int:
    """Return the bytes of item vectors of so many numbers in all, and of blocks of scores."""
    vectors = _FLOAT_BYTES * n_values
    return (vectors if vectors <= MAX_FULL_PRECISION_BYTES else vectors // 2) + _SCORING_BYTES


def _count_step_values(
    inputs: _Inputs, plan: TrainingPlan, tables: Sequence[tuple[Tensor, int]], n_candidates: int
) -> int:
    """Return the numbers that a training step holds: activations, their gradients, and copies of table rows.

    Args:
        inputs: Data and settings.
        plan: The plan.
        tables: Tables that are trained by rows, with the most rows of them that an item reads.
        n_candidates: Number of items that the softmax is over.
    """
    model, batch, negatives = inputs.model, inputs.training.batch, inputs.training.negatives
    n_read = _count_input_items(inputs)
    is_set = model.history.encoder == "set"
    match plan.loss:
        case "softmax" if is_set:
            n_distinct = n_candidates
            n_logits = (_SET_LOGIT_ARRAYS + model.ensemble_size) * batch * n_candidates
        case "softmax":
            n_distinct, n_logits = n_candidates, max(_CHUNK_LOGITS, n_candidates)
        case "sampled_softmax":
            n_hard = negatives.hard if len(inputs.data.hard_negatives.users) else 0
            n_sampled = negatives.uniform + (negatives.in_batch if is_set else min(negatives.in_batch, batch))
            n_distinct = min(n_candidates, n_read + batch * (1 + n_hard) + n_sampled)
            n_logits = _LOGIT_ARRAYS * model.ensemble_size * batch * (n_sampled + n_hard)
            if is_set:  # bytes that tell which of the step's items are a user's own
                n_logits += batch * n_distinct // _FLOAT_BYTES
        case "bce":
            n_distinct = min(n_candidates, n_read + batch * (1 + negatives.uniform))
            n_logits = 2 * batch * (1 + negatives.uniform) * model.dim
    if model.history.encoder == "causal":
        arrays = _TOKEN_ARRAYS + _TOKEN_ARRAYS_PER_LAYER * model.history.layers
    else:
        arrays = 0 if is_set else _HISTORY_ARRAYS  # the items of a set are summed up without a copy of their vectors
    hidden = 4 * (n_distinct + batch) * sum(model.hidden)
    read_rows = [min(len(table), n_distinct * reads) * table.shape[1] for table, reads in tables]
    n_updated_arrays = 0 if plan.row_moments else _UPDATED_ROW_ARRAYS
    n_read_arrays = _READ_ROW_ARRAYS + (_EXCHANGED_ROW_ARRAYS if inputs.processes > 1 else 0)
    row_copies = n_read_arrays * sum(read_rows) + n_updated_arrays * max(read_rows, default=0)
    return (_ITEM_ARRAYS * n_distinct + arrays * n_read) * model.trained_dim + n_logits + hidden + row_copies


def _count_input_items(inputs: _Inputs) -> int:
    """Return how many items the histories of a batch hold at most, padding included; those of sets on average.

    Items of sets are all counted here, the hidden ones too.
    """
    history, batch = inputs.model.history, inputs.training.batch
    if history.encoder == "none":
        return 0
    if history.encoder == "set":
        lengths = inputs.data.histories.lengths
        max_items = int(history.length / (1 - inputs.training.hidden_share))  # read and hidden
        return int(batch * np.minimum(lengths[lengths > 1], max_items).sum() / max(1, np.count_nonzero(lengths > 1)))
    length = min(history.length, int(inputs.data.histories.lengths.max(initial=0)))
    return _WINDOW_PADDING * max(batch, length) if history.encoder == "causal" else batch * length


def _find_fitting_settings(inputs: _Inputs, limit: int) -> Iterator[tuple[str, int]]:
    """Yield each single change of the settings with which the training needs at most `limit` bytes, and its bytes."""
    for alternatives in _build_alternatives(inputs):
        for text, changed in alternatives:
            total = _estimate(changed).total
            if total <= limit:
                yield text, total
                break


def _build_alternatives(inputs: _Inputs) -> Iterator[list[tuple[str, _Inputs]]]:
    """Yield lists of changes of a setting; in each list the ones that change less come first."""
    model, training = inputs.model, inputs.training
    yield [
        (f"model.dim = {dim}", replace(inputs, model=changed))
        for dim in _halve(model.dim, _MIN_DIM)
        if (changed := _change_model(model, dim=dim)) is not None
    ]
    yield [
        (f"training.batch = {batch}", replace(inputs, training=training.model_copy(update={"batch": batch})))
        for batch in _halve(training.batch, _MIN_BATCH)
    ]
    if training.ema_decay:
        yield [("training.ema_decay = 0", replace(inputs, training=training.model_copy(update={"ema_decay": 0.0})))]
    if inputs.model.item_init == "spectral" and (changed := _change_model(model, item_init="random")) is not None:
        yield [('model.item_init = "random"', replace(inputs, model=changed))]
    if model.item_id and inputs.data.item_specs:
        changed = _change_model(model, item_id=False)
        yield [("model.item_id = false", replace(inputs, model=changed))] if changed is not None else []


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
