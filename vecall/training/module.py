"""Lightning module of the towers: encodes the items and users of a batch, scores them and computes the loss.

A batch has P targets, each with the user as of its position: P = B samples of a `SampleBatch`, or P positions of the
windows of a `WindowBatch`.
"""

from collections.abc import Iterable, Iterator
from typing import cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from vecall.errors import TrainingError
from vecall.towers.ensemble import split_ensemble
from vecall.towers.two_tower import TwoTower
from vecall.training.batches import SampleBatch, SampleBatches, Samples, add_negative_samples, build_positive_samples
from vecall.training.chunked_softmax import chunked_cross_entropy
from vecall.training.data import TrainingData, take, to_tensors
from vecall.training.distributed import ProcessGroup
from vecall.training.item_lists import deduplicate_rows, fill_padding_with_targets, mark_listed_items
from vecall.training.losses import binary_cross_entropy, check_finite, sampled_softmax_loss
from vecall.training.lr_schedule import build_cosine_schedule
from vecall.training.negatives import HardNegativeSampler, sample_candidates, sample_uniform_negatives
from vecall.training.optimizer import RowwiseAdamW
from vecall.training.plan import TrainingPlan, find_row_tables, select_candidate_items
from vecall.training.prefetch import Batches, PrefetchedBatches
from vecall.training.row_table import RowTable
from vecall.training.seeding import seed_process, seed_step
from vecall.training.settings import TrainingSettings
from vecall.training.shards import Shard
from vecall.training.weight_average import WeightAverage
from vecall.training.windows import WindowBatch, WindowBatches, cut_windows

AnyBatch = SampleBatch | WindowBatch

# Not every step: reading the loss waits for the device.
_CHECK_FINITE_EVERY_N_STEPS = 50
_LEARNED_TEMPERATURE_INIT = 0.1


class TwoTowerModule(LightningModule):
    """Towers with their loss, optimizer and batches.

    Args:
        towers: Towers to train.
        data: Training data.
        settings: Loss, optimizer and batch size.
        plan: What was resolved for this training; None to resolve it now.
        group: Processes that train together; None for a single one.

    Attributes:
        plan: The plan.
        log_temperature: Logarithm of the temperature; a constant unless settings.temperature is "learned".
        frequencies: [N] share of each item among the samples.
        candidate_items: [M] rows of the items used as negatives.
        candidate_index: [N] index of each item in `candidate_items`. For an item not in it 0, as for the first
            candidate: look up only targets and items of histories, which are all candidates, and padding.
        ema_model: Moving average of the towers' weights, if settings.ema_decay is above 0.
        row_tables: Embedding tables that are updated row by row; up to date after `flush_tables`.

    Raises:
        TrainingError: There is too little to learn from, or there are no negatives for the loss.
    """

    frequencies: Tensor
    candidate_items: Tensor
    candidate_index: Tensor

    def __init__(
        self,
        towers: TwoTower,
        data: TrainingData,
        settings: TrainingSettings,
        plan: TrainingPlan | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self._group = group
        self.towers = towers
        self.data = data
        self.settings = settings
        # Without user features, all empty histories look the same: there is nothing to learn from them.
        self._min_history = 1 if towers.reads_history and not data.user_features else 0
        length = towers.settings.history.length
        self._windows = cut_windows(data.histories, length, min_history=self._min_history) if towers.is_causal else None
        candidate_items = torch.from_numpy(select_candidate_items(towers, data))
        self.plan = plan or TrainingPlan.make(settings, towers, len(candidate_items))
        is_learned = settings.temperature == "learned"
        temperature = _LEARNED_TEMPERATURE_INIT if settings.temperature == "learned" else settings.temperature
        self.log_temperature = torch.nn.Parameter(torch.tensor(temperature).log(), requires_grad=is_learned)
        self._samples = self._build_samples()
        if len(self._samples) == 1 and towers.settings.norm == "batch" and towers.settings.hidden:
            raise TrainingError(
                "there is one sample to learn from, and model.norm = 'batch' needs at least 2: provide more "
                "interactions, or set model.norm = 'layer'"
            )
        counts = torch.bincount(torch.from_numpy(self._samples.items), minlength=data.n_items)
        self.register_buffer("frequencies", counts / counts.sum(), persistent=False)
        self.register_buffer("candidate_items", candidate_items, persistent=False)
        candidate_index = torch.zeros(data.n_items, dtype=torch.int64).scatter_(
            0, candidate_items, torch.arange(len(candidate_items))
        )
        self.register_buffer("candidate_index", candidate_index, persistent=False)
        self.ema_model: WeightAverage | None = None
        self.row_tables = self._build_average_and_row_tables()
        self._device_features: dict[str, dict[str, Tensor]] = {}
        self._hard_negative_sampler = HardNegativeSampler.from_pairs(data.hard_negatives, len(data.histories))

    @property
    def eval_towers(self) -> TwoTower:
        """Towers to evaluate and save, in any mode: with the moving average of the weights, if there is one."""
        if self.ema_model is None:
            return self.towers
        return cast("TwoTower", self.ema_model.module)

    def _build_average_and_row_tables(self) -> list[RowTable]:
        """Build `ema_model` and return `row_tables`."""
        embeddings = find_row_tables(self.towers, items_by_rows=self.plan.items_by_rows)
        for embedding in embeddings:
            embedding.stays_on_cpu = self.plan.tables_on_cpu
        weights = [embedding.weight for embedding in embeddings]
        has_moments, decay = self.plan.row_moments, self.settings.ema_decay
        if not decay:
            return [RowTable(embedding, has_moments=has_moments) for embedding in embeddings]
        self.ema_model = WeightAverage(
            self.towers,
            decay,
            shared=[] if has_moments else weights,
            averaged_elsewhere=weights if has_moments else [],
        )
        if not has_moments:
            return [RowTable(embedding, has_moments=False) for embedding in embeddings]
        averages = [table.weight for table in find_row_tables(self.eval_towers, items_by_rows=self.plan.items_by_rows)]
        return [
            RowTable(embedding, has_moments=True, average=average, ema_decay=decay)
            for embedding, average in zip(embeddings, averages, strict=True)
        ]

    def discard_reads(self) -> None:
        """Forget the gradients of the tables' rows, as `zero_grad` does for all other parameters."""
        for table in self.row_tables:
            table.discard_reads()

    def flush_tables(self) -> None:
        """Bring all rows of the tables up to date, before they are read as a whole or saved."""
        for table in self.row_tables:
            table.flush()

    def release_tables(self) -> None:
        """Make ordinary tables of them, without optimizer state; no step may follow."""
        for embedding in find_row_tables(self.towers, items_by_rows=self.plan.items_by_rows):
            embedding.row_reader = None
        self.row_tables = []

    def reset_non_candidate_ids(self) -> None:
        """Set the id vectors of items that are no candidates, hence untrained, to that of the unknown item.

        Without id dropout all items are candidates, and nothing changes.
        """
        is_reset = torch.ones(self.data.n_items, dtype=torch.bool, device=self.candidate_items.device)
        is_reset[self.candidate_items] = False
        self.eval_towers.reset_item_ids(is_reset)

    def _build_samples(self) -> Samples:
        positives = build_positive_samples(self.data.histories, min_history=self._min_history)
        if len(positives) == 0:
            raise TrainingError(
                "every user has at most one training positive, and the model predicts a positive from earlier ones: "
                "provide more interactions per user, or add user features"
            )
        if self.plan.loss != "bce":
            return positives
        if self.settings.negatives.uniform == 0 and len(self.data.hard_negatives.users) == 0:
            raise TrainingError(
                "loss = 'bce' has no negatives: set training.negatives.uniform above 0, or name a label or impression "
                "column in schema.interactions"
            )
        return add_negative_samples(positives, self.data.hard_negatives)

    def train_dataloader(self) -> Batches:
        """Return the batches of the current epoch; Lightning calls this before each epoch."""
        batches = self._build_batches()
        return PrefetchedBatches(batches, is_pinned=True) if self.device.type == "cuda" else batches

    def _build_batches(self) -> Batches:
        histories, settings, epoch = self.data.histories, self.settings, self.current_epoch
        shard = None if self._group is None else Shard(self._group.rank, self._group.size)
        if self._windows is not None:
            return WindowBatches(
                self._windows, histories, batch_size=settings.batch, seed=settings.seed, epoch=epoch, shard=shard
            )
        return SampleBatches(
            self._samples,
            histories,
            history_length=self.towers.settings.history.length if self.towers.reads_history else 0,
            batch_size=settings.batch,
            seed=settings.seed,
            epoch=epoch,
            shard=shard,
        )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW (Adam, if weight decay is 0) and the schedule of the learning rate by step."""
        settings = self.settings
        for table in self.row_tables:
            table.follow_weights()
        row_weights = {id(table.weight) for table in self.row_tables}
        parameters = [parameter for parameter in self.towers.parameters() if id(parameter) not in row_weights]
        optimizer = RowwiseAdamW(
            [*parameters, self.log_temperature],
            self.row_tables,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            group=self._group,
        )
        steps = settings.epochs * len(self.train_dataloader())
        multiplier = build_cosine_schedule(steps) if settings.lr_schedule == "cosine" else lambda _: 1.0
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, multiplier)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def transfer_batch_to_device(self, batch: AnyBatch, device: torch.device, dataloader_idx: int) -> AnyBatch:
        """Copy the tensors of a batch to a device."""
        del dataloader_idx
        return batch.map_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def on_fit_start(self) -> None:
        """Copy features and hard negatives to the device, where they stay for the whole fit."""
        self._device_features = {
            "items": to_tensors(self.data.item_features, self.device),
            "users": to_tensors(self.data.user_features, self.device),
        }
        self._hard_negative_sampler = self._hard_negative_sampler.to(self.device)

    def training_step(self, batch: AnyBatch, batch_idx: int) -> Tensor:
        """Return the loss of a batch.

        Raises:
            TrainingError: The loss is not finite.
        """
        seed_step(self.settings.seed, self.current_epoch, batch_idx)
        loss = self._compute_loss(batch)
        if batch_idx % _CHECK_FINITE_EVERY_N_STEPS == 0:
            check_finite(loss.item(), self.current_epoch)
        return loss * self._compute_batch_weight(batch)

    def _compute_loss(self, batch: AnyBatch) -> Tensor:
        match self.plan.loss:
            case "softmax":
                return self._compute_softmax_loss(batch)
            case "sampled_softmax":
                return self._compute_sampled_softmax_loss(batch)
            case _:
                assert isinstance(batch, SampleBatch)  # noqa: S101 - for mypy; Config refuses bce with causal towers
                return self._compute_bce_loss(batch)

    def _compute_batch_weight(self, batch: AnyBatch) -> float:
        """Return the factor of a batch's mean loss that gives each target the same weight in the epoch.

        Batches of windows have only about `settings.batch` targets, and the parts of a batch differ in their number.
        """
        weight, count = 1.0, len(batch.target_items)
        if batch.whole is not None:
            weight, count = batch.whole.weight, len(batch.whole.items)
        return weight * (count / self.settings.batch) if isinstance(batch, WindowBatch) else weight

    def _seed_own_draws(self) -> None:
        """Let this process draw dropout and hidden ids of its own; negatives must have been drawn before."""
        if self._group is not None:
            seed_process(self._group.rank)

    def on_train_batch_end(self, *_: object) -> None:
        """Update the moving average of the weights."""
        if self.ema_model is not None:
            self.ema_model.update(self.towers)

    def _encode_items(self, rows: Tensor) -> Tensor:
        """Encode [M] item rows → [M, D]."""
        return self.towers.encode_items(rows, take(self._device_features["items"], rows))

    def _encode_users(self, item_vectors: Tensor, batch: AnyBatch) -> Tensor:
        """Encode the users of a batch, whose input items are rows of [M, D] vectors → [P, D] / temperature."""
        features = take(self._device_features["users"], batch.users)
        return batch.encode_users(self.towers, item_vectors, features) / self.log_temperature.exp()

    def _zip_members(self, users: Tensor, items: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each ensemble member's parts of [P, D] users and [M, D] items; each member has its own loss."""
        ensemble_size = self.towers.settings.ensemble_size
        return zip(split_ensemble(users, ensemble_size), split_ensemble(items, ensemble_size), strict=True)

    def _average_losses(self, losses: Iterable[Tensor]) -> Tensor:
        """Compute the losses of the members and return their mean.

        In float32 with any precision of the towers: in bfloat16, scores that differ by less than 1 % would be equal.
        """
        with torch.autocast(self.device.type, enabled=False):
            return torch.stack(list(losses)).mean()

    def _compute_softmax_loss(self, batch: AnyBatch) -> Tensor:
        self._seed_own_draws()
        item_vectors = self._encode_items(self.candidate_items)  # [M, D]
        targets = self.candidate_index[batch.target_items]  # [P]
        batch = batch.replace_input_items(self.candidate_index[batch.input_items])
        masked_items = (
            fill_padding_with_targets(batch.histories, batch.lengths, targets) if self.settings.mask_history else None
        )
        user_vectors = self._encode_users(item_vectors, batch)  # [P, D]
        return self._average_losses(
            chunked_cross_entropy(users, items, targets, masked_items, label_smoothing=self.settings.label_smoothing)
            for users, items in self._zip_members(user_vectors, item_vectors)
        )

    def _compute_sampled_softmax_loss(self, batch: AnyBatch) -> Tensor:
        """Softmax over sampled candidates with the logQ correction, and over hard negatives without it.

        The expected softmax denominator equals that over the catalogue. A hard negative counts once per target, so it
        is ignored where it was also sampled; all other items are weighted by 1 / expected count.
        """
        users, items = batch.step_targets
        sampled = sample_candidates(self.settings.negatives, items, self.candidate_items, self.frequencies)
        hard_negatives = self._hard_negative_sampler.sample(users, self.settings.negatives.hard)
        hard_items, is_hard = map(batch.select_part, hard_negatives)  # [P, H]
        self._seed_own_draws()
        distinct, (input_items, targets, candidates, hard) = deduplicate_rows(
            batch.input_items, batch.target_items, sampled.rows, hard_items
        )
        item_vectors = self._encode_items(distinct)  # [M, D]
        batch = batch.replace_input_items(input_items)
        ignored = self._list_ignored_items(batch, targets)  # [P, L + 1]
        ignore_mask = torch.cat(
            [
                mark_listed_items(
                    torch.cat([ignored, torch.where(is_hard, hard, targets.unsqueeze(1))], dim=1),
                    candidates,
                    len(distinct),
                ),
                (hard.unsqueeze(2) == ignored.unsqueeze(1)).any(2) | ~is_hard,
            ],
            dim=1,
        )  # [P, C + H]
        log_counts = sampled.log_expected_counts
        log_expected_counts = torch.cat([log_counts, log_counts.new_zeros(hard.shape[1])])  # [C + H]
        user_vectors = self._encode_users(item_vectors, batch)  # [P, D]
        return self._average_losses(
            sampled_softmax_loss(
                positive_scores=(users * items.index_select(0, targets)).sum(1),
                candidate_scores=torch.cat(
                    [users @ items.index_select(0, candidates).T, _score_own_items(users, items[hard])], 1
                ),
                log_expected_counts=log_expected_counts,
                ignore_mask=ignore_mask,
                label_smoothing=self.settings.label_smoothing,
            )
            for users, items in self._zip_members(user_vectors, item_vectors)
        )

    def _list_ignored_items(self, batch: AnyBatch, targets: Tensor) -> Tensor:
        """List the items that are no negatives of a target: itself and, with `mask_history`, its history.

        Args:
            batch: Batch with renumbered input items.
            targets: [P] positives, renumbered likewise.

        Returns:
            [P, 1] or [P, L + 1] items, some of them several times.
        """
        own = targets.unsqueeze(1)
        return (
            torch.cat([own, fill_padding_with_targets(batch.histories, batch.lengths, targets)], dim=1)
            if self.settings.mask_history
            else own
        )

    def _compute_bce_loss(self, batch: SampleBatch) -> Tensor:
        """Binary cross-entropy of the labeled samples and of `negatives.uniform` sampled negatives of each positive."""
        targets = self.candidate_index[batch.step_targets[1]]  # of the whole batch
        drawn = sample_uniform_negatives(self.settings.negatives.uniform, len(self.candidate_items), targets)
        negatives = self.candidate_items[batch.select_part(drawn)]  # [B, n]
        self._seed_own_draws()
        paired_items = torch.cat([batch.target_items.unsqueeze(1), negatives], dim=1)  # [B, 1 + n]
        distinct, (input_items, paired) = deduplicate_rows(batch.input_items, paired_items)
        item_vectors = self._encode_items(distinct)  # [M, D]
        labels = torch.zeros(paired.shape, device=paired.device)
        labels[:, 0] = batch.labels
        is_counted = (batch.labels > 0).unsqueeze(1).expand_as(labels).clone()
        is_counted[:, 0] = True  # a sample with label 0 is counted itself, but has no sampled negatives
        user_vectors = self._encode_users(item_vectors, batch.replace_input_items(input_items))  # [B, D]
        loss = self._average_losses(
            binary_cross_entropy(_score_own_items(users, items[paired])[is_counted], labels[is_counted])
            for users, items in self._zip_members(user_vectors, item_vectors)
        )
        return loss * batch.compute_pair_weight(self.settings.negatives.uniform)


def _score_own_items(users: Tensor, items: Tensor) -> Tensor:
    """Score for each of P users n items of its own: [P, D] users and [P, n, D] items → [P, n]."""
    return (items @ users.unsqueeze(-1)).squeeze(-1)
