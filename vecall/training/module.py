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
from vecall.towers.ensemble import parts
from vecall.towers.two_tower import TwoTower
from vecall.training.batches import Batch, EpochBatches, Samples, labelled_samples, positive_samples
from vecall.training.chunked_softmax import catalogue_softmax
from vecall.training.data import Problem, take, tensors
from vecall.training.losses import bce_pairs, sampled_softmax
from vecall.training.negatives import KnownNegatives, draw_candidates, draw_uniform
from vecall.training.seeding import seed_step
from vecall.training.settings import TrainingSettings
from vecall.training.windows import WindowBatch, WindowBatches, cut_windows

AnyBatch = Batch | WindowBatch

# A step's [B, N] logits beyond this many are replaced by sampled ones.
_MOST_LOGITS = 128_000_000
# Looking at a loss waits for the device, so not every step is looked at.
_LOOK_EVERY = 50


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
    if settings.batch * n_items <= _MOST_LOGITS:
        return "softmax"
    if settings.negatives.uniform + settings.negatives.in_batch == 0:
        raise TrainingError(
            f"a softmax over all {n_items} items is too large at training.batch = {settings.batch}, and no negatives "
            "are drawn instead: set training.negatives.uniform or in_batch"
        )
    return "sampled_softmax"


class Recipe(LightningModule):
    """The towers with their loss, as Lightning wants them."""

    def __init__(self, towers: TwoTower, problem: Problem, settings: TrainingSettings) -> None:
        super().__init__()
        self.towers = towers
        self.problem = problem
        self.settings = settings
        # Without user features nothing tells one empty history from another: there is nothing to learn from them.
        self._least = 1 if towers.reads_history and not problem.user_features else 0
        length = towers.settings.history.length
        self._windows = cut_windows(problem.train, length, least_history=self._least) if towers.is_causal else None
        # Unless some ids are hidden, nothing would hold the scores of items without one in place.
        told_apart = torch.from_numpy(problem.met if towers.hides_ids else np.arange(problem.n_items))
        self.loss_name = resolve_loss(settings, len(told_apart))
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
        counts = torch.bincount(torch.from_numpy(self._samples.items), minlength=problem.n_items)
        self.register_buffer("frequencies", counts / counts.sum(), persistent=False)
        self.told_apart: Tensor  # [M] item rows
        self.register_buffer("told_apart", told_apart, persistent=False)
        self.place_of: Tensor  # [N] where each of them stands among these; 0, as padding, for others
        places = torch.zeros(problem.n_items, dtype=torch.int64).scatter_(0, told_apart, torch.arange(len(told_apart)))
        self.register_buffer("place_of", places, persistent=False)
        self.averaged: AveragedModel | None = None
        if settings.average:
            moving: Any = get_ema_multi_avg_fn  # it has no types
            self.averaged = AveragedModel(towers, multi_avg_fn=moving(settings.average))
        self._on_device: dict[str, dict[str, Tensor]] = {}
        self._known_negatives = KnownNegatives.of(problem.negatives, len(problem.train))

    @property
    def kept(self) -> TwoTower:
        """The towers that are judged and kept: their weights may be a moving mean of the steps'."""
        if self.averaged is None:
            return self.towers
        return cast("TwoTower", self.averaged.module)

    def settle(self) -> None:
        """Items that are not told apart get the id that stands for unknown ones; their own has learned nothing."""
        unmet = torch.ones(self.problem.n_items, dtype=torch.bool, device=self.told_apart.device)
        unmet[self.told_apart] = False
        self.kept.forget_ids(unmet)

    def _make_samples(self) -> Samples:
        positives = positive_samples(self.problem.train, least_history=self._least)
        if len(positives) == 0:
            raise TrainingError(
                "no user has two positives in the training part, and without user features a positive is learned "
                "from those before it; give more interactions, or user features"
            )
        if self.loss_name != "bce":
            return positives
        if self.settings.negatives.uniform == 0 and len(self.problem.negatives.users) == 0:
            raise TrainingError(
                "bce has no negatives to tell positives from: set training.negatives.uniform, or name a label or "
                "shown column in schema.interactions"
            )
        return labelled_samples(positives, self.problem.negatives)

    def train_dataloader(self) -> EpochBatches | WindowBatches:
        """The coming epoch's batches; Lightning asks anew before each."""
        train, batch, seed, epoch = self.problem.train, self.settings.batch, self.settings.seed, self.current_epoch
        if self._windows is not None:
            return WindowBatches(self._windows, train, batch=batch, seed=seed, epoch=epoch)
        length = self.towers.settings.history.length if self.towers.reads_history else 0
        return EpochBatches(self._samples, train, length=length, batch=batch, seed=seed, epoch=epoch)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW, which without weight decay is Adam; the rate changes by the step."""
        settings = self.settings
        learned = [*self.towers.parameters(), self.log_temperature]
        optimizer = torch.optim.AdamW(learned, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
        steps = settings.epochs * len(self.train_dataloader())
        rate = warm_cosine(steps) if settings.schedule == "cosine" else lambda _: 1.0
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def transfer_batch_to_device(self, batch: AnyBatch, device: torch.device, dataloader_idx: int) -> AnyBatch:
        """All its parts are tensors."""
        del dataloader_idx
        return replace(batch, **{part.name: getattr(batch, part.name).to(device) for part in fields(batch)})

    def on_fit_start(self) -> None:
        """Features stay on the device for the whole fit."""
        self._on_device = {
            "items": tensors(self.problem.item_features, self.device),
            "users": tensors(self.problem.user_features, self.device),
        }
        self._known_negatives = self._known_negatives.to(self.device)

    def training_step(self, batch: AnyBatch, step: int) -> Tensor:
        """The loss of one batch."""
        seed_step(self.settings.seed, self.current_epoch, step)
        match self.loss_name:
            case "softmax":
                loss = self._full_softmax(batch)
            case "sampled_softmax":
                loss = self._sampled_softmax(batch)
            case _:
                assert isinstance(batch, Batch)  # noqa: S101 - the config says so; tells mypy
                loss = self._bce(batch)
        if step % _LOOK_EVERY == 0:
            check_finite(loss.item(), self.current_epoch)
        return loss * self._share(batch)

    def _share(self, batch: AnyBatch) -> float:
        """Of a usual step's positives: each counts as any other, where batches of windows have not quite as many."""
        return len(batch.items) / self.settings.batch if isinstance(batch, WindowBatch) else 1.0

    def on_train_batch_end(self, *_: object) -> None:
        """The mean moves on."""
        if self.averaged is not None:
            self.averaged.update_parameters(self.towers)

    def _encode(self, rows: Tensor) -> Tensor:
        return self.towers.encode_items(rows, take(self._on_device["items"], rows))

    def _encode_users(self, item_vectors: Tensor, batch: AnyBatch) -> Tensor:
        """[B, D], divided by the temperature."""
        features = take(self._on_device["users"], batch.users)
        return batch.encode_users(self.towers, item_vectors, features) / self.log_temperature.exp()

    def _members(self, users: Tensor, items: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Each member learns by itself: its parts of [B, D] users, divided by the temperature, and of [M, D] items."""
        members = self.towers.settings.members
        return zip(parts(users, members), parts(items, members), strict=True)

    def _full_softmax(self, batch: AnyBatch) -> Tensor:
        everything = self._encode(self.told_apart)  # [M, D]
        batch, targets = batch.with_rows(self.place_of[batch.rows]), self.place_of[batch.items]
        out = None if self.settings.history_is_negative else known_items(batch, targets)
        smoothing = self.settings.label_smoothing
        return _mean(
            catalogue_softmax(users, items, targets, out, label_smoothing=smoothing)
            for users, items in self._members(self._encode_users(everything, batch), everything)
        )

    def _sampled_softmax(self, batch: AnyBatch) -> Tensor:
        """The drawn candidates are corrected for their number; known negatives stand in the list as they are.

        So the sum over the list is in expectation that over the catalogue: a drawn candidate that is among a row's
        known negatives is left out there, and what is in neither was as likely to be drawn as its correction says.
        """
        drawn = draw_candidates(self.settings.negatives, batch.items, self.told_apart, self.frequencies)
        known, given = self._known_negatives.draw(batch.takers, self.settings.negatives.known)  # [B, H]
        distinct, (rows, targets, candidates, known) = _distinct(batch.rows, batch.items, drawn.rows, known)
        vectors = self._encode(distinct)
        batch = batch.with_rows(rows)
        out = self._not_counted(batch, targets, len(distinct))
        not_known = out.gather(1, known) | ~given
        out.scatter_(1, torch.where(given, known, targets.unsqueeze(1)), value=True)
        log_q = torch.cat([drawn.log_q, drawn.log_q.new_zeros(known.shape[1])])
        hits = torch.cat([out[:, candidates], not_known], dim=1)
        return _mean(
            sampled_softmax(
                positive=(users * items[targets]).sum(1),
                candidates=torch.cat([users @ items[candidates].T, _scores(users, items[known])], dim=1),
                log_q=log_q,
                hits=hits,
                label_smoothing=self.settings.label_smoothing,
            )
            for users, items in self._members(self._encode_users(vectors, batch), vectors)
        )

    def _not_counted(self, batch: AnyBatch, targets: Tensor, n_items: int) -> Tensor:
        """[B, N] items that are no negatives of a row: its own positive and, unless they count, its history."""
        marks = torch.zeros(len(targets), n_items, dtype=torch.bool, device=targets.device)
        if not self.settings.history_is_negative:
            marks.scatter_(1, known_items(batch, targets), value=True)
        return marks.scatter_(1, targets.unsqueeze(1), value=True)

    def _bce(self, batch: Batch) -> Tensor:
        """Each labelled pair, and `negatives.uniform` drawn ones beside each positive."""
        places = self.place_of[batch.items]
        drawn = self.told_apart[draw_uniform(self.settings.negatives.uniform, len(self.told_apart), places)]
        pairs = torch.cat([batch.items.unsqueeze(1), drawn], dim=1)  # [B, 1 + n]
        distinct, (rows, items) = _distinct(batch.rows, pairs)
        vectors = self._encode(distinct)
        labels = torch.zeros(items.shape, device=items.device)
        labels[:, 0] = batch.labels
        counted = (batch.labels > 0).unsqueeze(1).expand_as(labels).clone()
        counted[:, 0] = True  # a known negative speaks for itself and draws no others
        return _mean(
            bce_pairs(_scores(users, vectors[items])[counted], labels[counted])
            for users, vectors in self._members(self._encode_users(vectors, batch.with_rows(rows)), vectors)
        )


def _mean(losses: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(losses)).mean()


def _scores(users: Tensor, items: Tensor) -> Tensor:
    """[B, D] and n items of its own for each, [B, n, D] → [B, n]."""
    return (items @ users.unsqueeze(-1)).squeeze(-1)


def check_finite(loss: float, epoch: int) -> None:
    """Training on after an overflow would only waste time.

    Raises:
        TrainingError: the loss is infinite or no number.
    """
    if not math.isfinite(loss):
        raise TrainingError(f"the loss became {loss} in epoch {epoch}; lower training.lr or raise training.temperature")


def known_items(batch: AnyBatch, targets: Tensor) -> Tensor:
    """[B, L] the items of each row's history, padded with its positive [B]."""
    histories = batch.histories
    places = torch.arange(histories.shape[1], device=histories.device)  # [L]
    return torch.where(places < batch.lengths.unsqueeze(1), histories, targets.unsqueeze(1))


def warm_cosine(steps: int) -> Callable[[int], float]:
    """The share of the highest learning rate at each step: up over 5 %, then down a cosine to 2 %."""
    warm = max(1, round(0.05 * steps))

    def share(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        done = min(1.0, (step - warm) / max(1, steps - warm))
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))

    return share


def _distinct(*rows: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The distinct rows of all tensors, and each tensor with places among them for rows."""
    distinct, places = torch.unique(torch.cat([part.flatten() for part in rows]), return_inverse=True)
    parts = places.split([part.numel() for part in rows])
    return distinct, [part.view_as(whole) for part, whole in zip(parts, rows, strict=True)]
