"""One training step, as Lightning wants it: encode what occurs in the batch, score it, take the loss."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vecall.errors import TrainingError
from vecall.towers.ensemble import split_ensemble
from vecall.towers.two_tower import TwoTower
from vecall.training.batches import SampleBatch, SampleBatches, Samples, add_negative_samples, build_positive_samples
from vecall.training.chunked_softmax import chunked_cross_entropy
from vecall.training.data import TrainingData, take, to_tensors
from vecall.training.losses import binary_cross_entropy, sampled_softmax_loss
from vecall.training.negatives import HardNegatives, sample_candidates, sample_uniform_negatives
from vecall.training.seeding import seed_step
from vecall.training.settings import TrainingSettings
from vecall.training.windows import WindowBatch, WindowBatches, cut_windows

AnyBatch = SampleBatch | WindowBatch

# A step's [B, N] logits beyond this many are replaced by sampled ones.
_MAX_LOGITS = 128_000_000
# Looking at a loss waits for the device, so not every step is looked at.
_CHECK_FINITE_EVERY_N_STEPS = 50


def resolve_loss(settings: TrainingSettings, n_items: int) -> str:
    """`auto` made a choice: the full softmax while a step's logits are not too many, else a sampled one.

    Args:
        settings: what is asked for.
        n_items: N.

    Raises:
        TrainingError: a sampled one is needed, and the settings draw no negatives.
    """
    if settings.loss != "auto":
        return settings.loss
    if settings.batch * n_items <= _MAX_LOGITS:
        return "softmax"
    if settings.negatives.uniform + settings.negatives.in_batch == 0:
        raise TrainingError(
            f"a softmax over all {n_items} items is too large at training.batch = {settings.batch}, and no negatives "
            "are drawn instead: set training.negatives.uniform or in_batch"
        )
    return "sampled_softmax"


class TwoTowerModule(LightningModule):
    """The towers with their loss, as Lightning wants them."""

    def __init__(self, towers: TwoTower, data: TrainingData, settings: TrainingSettings) -> None:
        super().__init__()
        self.towers = towers
        self.data = data
        self.settings = settings
        # Without user features nothing tells one empty history from another: there is nothing to learn from them.
        self._min_history = 1 if towers.reads_history and not data.user_features else 0
        length = towers.settings.history.length
        self._windows = cut_windows(data.histories, length, min_history=self._min_history) if towers.is_causal else None
        # Unless some ids are hidden, nothing would hold the scores of items without one in place.
        candidate_items = torch.from_numpy(data.observed_items if towers.uses_id_dropout else np.arange(data.n_items))
        self.loss_name = resolve_loss(settings, len(candidate_items))
        learned = settings.temperature == "learned"
        start = 0.1 if settings.temperature == "learned" else settings.temperature
        self.log_temperature = torch.nn.Parameter(torch.tensor(start).log(), requires_grad=learned)
        self._samples = self._make_samples()
        if len(self._samples) == 1 and towers.settings.norm == "batch" and towers.settings.hidden:
            raise TrainingError(
                "there is one sample to learn from, and model.norm = 'batch' needs at least 2: give more interactions, "
                "or set model.norm = 'layer'"
            )
        self.frequencies: Tensor  # [N] each item's share of the samples
        counts = torch.bincount(torch.from_numpy(self._samples.items), minlength=data.n_items)
        self.register_buffer("frequencies", counts / counts.sum(), persistent=False)
        self.candidate_items: Tensor  # [M] item rows
        self.register_buffer("candidate_items", candidate_items, persistent=False)
        self.candidate_index: Tensor  # [N] where each of them stands among these; 0, as padding, for others
        candidate_index = torch.zeros(data.n_items, dtype=torch.int64).scatter_(
            0, candidate_items, torch.arange(len(candidate_items))
        )
        self.register_buffer("candidate_index", candidate_index, persistent=False)
        self.ema_model: AveragedModel | None = None
        if settings.ema_decay:
            moving: Any = get_ema_multi_avg_fn  # it has no types
            self.ema_model = AveragedModel(towers, multi_avg_fn=moving(settings.ema_decay))
        self._device_features: dict[str, dict[str, Tensor]] = {}
        self._hard_negatives = HardNegatives.from_pairs(data.hard_negatives, len(data.histories))

    @property
    def eval_towers(self) -> TwoTower:
        """The towers that are judged and kept: their weights may be a moving mean of the steps'."""
        if self.ema_model is None:
            return self.towers
        return cast("TwoTower", self.ema_model.module)

    def reset_unobserved_item_ids(self) -> None:
        """Items that are not told apart get the id that stands for unknown ones; their own has learned nothing."""
        unmet = torch.ones(self.data.n_items, dtype=torch.bool, device=self.candidate_items.device)
        unmet[self.candidate_items] = False
        self.eval_towers.reset_item_ids(unmet)

    def _make_samples(self) -> Samples:
        positives = build_positive_samples(self.data.histories, min_history=self._min_history)
        if len(positives) == 0:
            raise TrainingError(
                "no user has two positives in the training part, and without user features a positive is learned "
                "from those before it; give more interactions, or user features"
            )
        if self.loss_name != "bce":
            return positives
        if self.settings.negatives.uniform == 0 and len(self.data.hard_negatives.users) == 0:
            raise TrainingError(
                "bce has no negatives to tell positives from: set training.negatives.uniform, or name a label or "
                "impression column in schema.interactions"
            )
        return add_negative_samples(positives, self.data.hard_negatives)

    def train_dataloader(self) -> SampleBatches | WindowBatches:
        """The coming epoch's batches; Lightning asks anew before each."""
        train, batch, seed, epoch = self.data.histories, self.settings.batch, self.settings.seed, self.current_epoch
        if self._windows is not None:
            return WindowBatches(self._windows, train, batch_size=batch, seed=seed, epoch=epoch)
        length = self.towers.settings.history.length if self.towers.reads_history else 0
        return SampleBatches(self._samples, train, history_length=length, batch_size=batch, seed=seed, epoch=epoch)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW, which without weight decay is Adam; the rate changes by the step."""
        settings = self.settings
        learned = [*self.towers.parameters(), self.log_temperature]
        optimizer = torch.optim.AdamW(learned, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
        steps = settings.epochs * len(self.train_dataloader())
        rate = build_cosine_schedule(steps) if settings.lr_schedule == "cosine" else lambda _: 1.0
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def transfer_batch_to_device(self, batch: AnyBatch, device: torch.device, dataloader_idx: int) -> AnyBatch:
        """All its parts are tensors."""
        del dataloader_idx
        return replace(batch, **{part.name: getattr(batch, part.name).to(device) for part in fields(batch)})

    def on_fit_start(self) -> None:
        """Features stay on the device for the whole fit."""
        self._device_features = {
            "items": to_tensors(self.data.item_features, self.device),
            "users": to_tensors(self.data.user_features, self.device),
        }
        self._hard_negatives = self._hard_negatives.to(self.device)

    def training_step(self, batch: AnyBatch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        seed_step(self.settings.seed, self.current_epoch, batch_idx)
        match self.loss_name:
            case "softmax":
                loss = self._full_softmax(batch)
            case "sampled_softmax":
                loss = self._sampled_softmax(batch)
            case _:
                assert isinstance(batch, SampleBatch)  # noqa: S101 - the config says so; tells mypy
                loss = self._bce(batch)
        if batch_idx % _CHECK_FINITE_EVERY_N_STEPS == 0:
            check_finite(loss.item(), self.current_epoch)
        return loss * self._compute_batch_weight(batch)

    def _compute_batch_weight(self, batch: AnyBatch) -> float:
        """Of a usual step's positives: each counts as any other, where batches of windows have not quite as many."""
        return len(batch.target_items) / self.settings.batch if isinstance(batch, WindowBatch) else 1.0

    def on_train_batch_end(self, *_: object) -> None:
        """The mean moves on."""
        if self.ema_model is not None:
            self.ema_model.update_parameters(self.towers)

    def _encode_items(self, rows: Tensor) -> Tensor:
        return self.towers.encode_items(rows, take(self._device_features["items"], rows))

    def _encode_users(self, item_vectors: Tensor, batch: AnyBatch) -> Tensor:
        """[B, D], divided by the temperature."""
        features = take(self._device_features["users"], batch.users)
        return batch.encode_users(self.towers, item_vectors, features) / self.log_temperature.exp()

    def _zip_members(self, users: Tensor, items: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Each member learns by itself: its parts of [B, D] users, divided by the temperature, and of [M, D] items."""
        members = self.towers.settings.ensemble_size
        return zip(split_ensemble(users, members), split_ensemble(items, members), strict=True)

    def _full_softmax(self, batch: AnyBatch) -> Tensor:
        everything = self._encode_items(self.candidate_items)  # [M, D]
        batch, targets = (
            batch.replace_input_items(self.candidate_index[batch.input_items]),
            self.candidate_index[batch.target_items],
        )
        out = pad_histories_with_targets(batch, targets) if self.settings.mask_history else None
        smoothing = self.settings.label_smoothing
        return _average_losses(
            chunked_cross_entropy(users, items, targets, out, label_smoothing=smoothing)
            for users, items in self._zip_members(self._encode_users(everything, batch), everything)
        )

    def _sampled_softmax(self, batch: AnyBatch) -> Tensor:
        """The drawn candidates are corrected for their number; known negatives stand in the list as they are.

        So the sum over the list is in expectation that over the catalogue: a drawn candidate that is among a row's
        known negatives is left out there, and what is in neither was as likely to be drawn as its correction says.
        """
        drawn = sample_candidates(self.settings.negatives, batch.target_items, self.candidate_items, self.frequencies)
        known, given = self._hard_negatives.sample(batch.target_users, self.settings.negatives.hard)  # [B, H]
        distinct, (rows, targets, candidates, known) = _deduplicate_rows(
            batch.input_items, batch.target_items, drawn.rows, known
        )
        vectors = self._encode_items(distinct)
        batch = batch.replace_input_items(rows)
        out = self._build_ignore_mask(batch, targets, len(distinct))
        not_known = out.gather(1, known) | ~given
        out.scatter_(1, torch.where(given, known, targets.unsqueeze(1)), value=True)
        log_q = torch.cat([drawn.log_q, drawn.log_q.new_zeros(known.shape[1])])
        hits = torch.cat([out[:, candidates], not_known], dim=1)
        return _average_losses(
            sampled_softmax_loss(
                positive_scores=(users * items[targets]).sum(1),
                candidate_scores=torch.cat([users @ items[candidates].T, _score_pairs(users, items[known])], dim=1),
                log_q=log_q,
                ignore_mask=hits,
                label_smoothing=self.settings.label_smoothing,
            )
            for users, items in self._zip_members(self._encode_users(vectors, batch), vectors)
        )

    def _build_ignore_mask(self, batch: AnyBatch, targets: Tensor, n_items: int) -> Tensor:
        """[B, N] items that are no negatives of a row: its own positive and, unless they count, its history."""
        marks = torch.zeros(len(targets), n_items, dtype=torch.bool, device=targets.device)
        if self.settings.mask_history:
            marks.scatter_(1, pad_histories_with_targets(batch, targets), value=True)
        return marks.scatter_(1, targets.unsqueeze(1), value=True)

    def _bce(self, batch: SampleBatch) -> Tensor:
        """Each labelled pair, and `negatives.uniform` drawn ones beside each positive."""
        places = self.candidate_index[batch.target_items]
        drawn = self.candidate_items[
            sample_uniform_negatives(self.settings.negatives.uniform, len(self.candidate_items), places)
        ]
        pairs = torch.cat([batch.target_items.unsqueeze(1), drawn], dim=1)  # [B, 1 + n]
        distinct, (rows, items) = _deduplicate_rows(batch.input_items, pairs)
        vectors = self._encode_items(distinct)
        labels = torch.zeros(items.shape, device=items.device)
        labels[:, 0] = batch.labels
        counted = (batch.labels > 0).unsqueeze(1).expand_as(labels).clone()
        counted[:, 0] = True  # a known negative speaks for itself and draws no others
        return _average_losses(
            binary_cross_entropy(_score_pairs(users, vectors[items])[counted], labels[counted])
            for users, vectors in self._zip_members(
                self._encode_users(vectors, batch.replace_input_items(rows)), vectors
            )
        )


def _average_losses(losses: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(losses)).mean()


def _score_pairs(users: Tensor, items: Tensor) -> Tensor:
    """[B, D] and n items of its own for each, [B, n, D] → [B, n]."""
    return (items @ users.unsqueeze(-1)).squeeze(-1)


def check_finite(loss: float, epoch: int) -> None:
    """Training on after an overflow would only waste time.

    Raises:
        TrainingError: the loss is infinite or no number.
    """
    if not math.isfinite(loss):
        raise TrainingError(f"the loss became {loss} in epoch {epoch}; lower training.lr or raise training.temperature")


def pad_histories_with_targets(batch: AnyBatch, targets: Tensor) -> Tensor:
    """[B, L] the items of each row's history, padded with its positive [B]."""
    histories = batch.histories
    places = torch.arange(histories.shape[1], device=histories.device)  # [L]
    return torch.where(places < batch.lengths.unsqueeze(1), histories, targets.unsqueeze(1))


def build_cosine_schedule(steps: int) -> Callable[[int], float]:
    """The share of the highest learning rate at each step: up over 5 %, then down a cosine to 2 %."""
    warm = max(1, round(0.05 * steps))

    def compute_multiplier(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        done = min(1.0, (step - warm) / max(1, steps - warm))
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))

    return compute_multiplier


def _deduplicate_rows(*rows: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The distinct rows of all tensors, and each tensor with places among them for rows."""
    distinct, places = torch.unique(torch.cat([part.flatten() for part in rows]), return_inverse=True)
    parts = places.split([part.numel() for part in rows])
    return distinct, [part.view_as(whole) for part, whole in zip(parts, rows, strict=True)]
