"""Lightning module of the towers: their samples, batches, tables, optimizer and average; the losses are its base."""

from typing import cast

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from vecall.data.split import NO_HARD_NEGATIVES
from vecall.towers.two_tower import TwoTower
from vecall.training.any_batch import AnyBatch
from vecall.training.batches import SampleBatches, Samples, add_negative_samples, build_positive_samples
from vecall.training.data import TooLittleDataError, TrainingData, to_tensors
from vecall.training.distributed import ProcessGroup
from vecall.training.loss_module import LossModule
from vecall.training.losses import check_finite
from vecall.training.lr_schedule import build_cosine_schedule
from vecall.training.negatives import HardNegativeSampler
from vecall.training.optimizer import RowwiseAdamW
from vecall.training.plan import TrainingPlan, find_row_tables, select_candidate_items
from vecall.training.prefetch import Batches, PrefetchedBatches
from vecall.training.row_table import RowTable
from vecall.training.seeding import seed_step
from vecall.training.sets import SetBatch, SetBatches, Sets
from vecall.training.settings import TrainingSettings
from vecall.training.shards import Shard
from vecall.training.weight_average import WeightAverage
from vecall.training.windows import WindowBatch, WindowBatches, cut_windows

# Not every step: reading the loss waits for the device.
_CHECK_FINITE_EVERY_N_STEPS = 50
_LEARNED_TEMPERATURE_INIT = 0.1


class TwoTowerModule(LossModule):
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
        ema_model: Moving average of the towers' weights, if settings.ema_decay is above 0.
        row_tables: Embedding tables that are updated row by row; up to date after `flush_tables`.

    Raises:
        TrainingError: There is too little to learn from, or there are no negatives for the loss.
    """

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
        self._windows = (
            cut_windows(data.histories, length, min_history=self._min_history, weights=data.history_weights)
            if towers.is_causal
            else None
        )
        self._sets = (
            Sets.from_histories(data.histories, data.history_weights, min_history=self._min_history)
            if towers.reads_sets
            else None
        )
        candidate_items = torch.from_numpy(select_candidate_items(towers, data))
        self.plan = plan or TrainingPlan.make(settings, towers, len(candidate_items))
        is_learned = settings.temperature == "learned"
        temperature = _LEARNED_TEMPERATURE_INIT if settings.temperature == "learned" else settings.temperature
        self.log_temperature = torch.nn.Parameter(torch.tensor(temperature).log(), requires_grad=is_learned)
        self._samples = self._build_samples() if self._sets is None else None
        frequencies, n_samples = self._compute_frequencies()
        if n_samples == 1 and towers.settings.norm == "batch" and towers.settings.hidden:
            raise TooLittleDataError(
                "there is one sample to learn from, and model.norm = 'batch' needs at least 2: provide more "
                "interactions, or set model.norm = 'layer'"
            )
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.register_buffer("candidate_items", candidate_items, persistent=False)
        candidate_index = torch.zeros(data.n_items, dtype=torch.int64).scatter_(
            0, candidate_items, torch.arange(len(candidate_items))
        )
        self.register_buffer("candidate_index", candidate_index, persistent=False)
        self.ema_model: WeightAverage | None = None
        self.row_tables = self._build_average_and_row_tables()
        self._device_features: dict[str, dict[str, Tensor]] = {}
        self._hard_negative_sampler = HardNegativeSampler.from_pairs(
            data.hard_negatives if self.plan.samples_hard_negatives(settings) else NO_HARD_NEGATIVES,
            len(data.histories),
        )

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
        has_moments, decay, group = self.plan.row_moments, self.settings.ema_decay, self._group
        constants = [] if self.towers.spectral_vectors is None else [self.towers.spectral_vectors]
        if not decay:
            return [RowTable(embedding, has_moments=has_moments, group=group) for embedding in embeddings]
        self.ema_model = WeightAverage(
            self.towers,
            decay,
            shared=[*constants, *([] if has_moments else weights)],
            averaged_elsewhere=weights if has_moments else [],
        )
        if not has_moments:
            return [RowTable(embedding, has_moments=False, group=group) for embedding in embeddings]
        averages = [table.weight for table in find_row_tables(self.eval_towers, items_by_rows=self.plan.items_by_rows)]
        return [
            RowTable(embedding, has_moments=True, average=average, ema_decay=decay, group=group)
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
        self.row_tables.clear()  # the optimizer has the same list

    def reset_non_candidate_ids(self) -> None:
        """Set the id vectors of items that are no candidates, hence untrained, to that of the unknown item.

        Without id dropout all items are candidates, and nothing changes.
        """
        is_reset = torch.ones(self.data.n_items, dtype=torch.bool, device=self.candidate_items.device)
        is_reset[self.candidate_items] = False
        self.eval_towers.reset_item_ids(is_reset)

    def _build_samples(self) -> Samples:
        weights = self.data.history_weights
        positives = build_positive_samples(
            self.data.histories,
            min_history=self._min_history,
            weights=weights,
            has_context=bool(self.data.context_features),
        )
        self._check_learnable(len(positives))
        if self.plan.loss != "bce":
            return positives
        if self.settings.negatives.uniform == 0 and len(self.data.hard_negatives.users) == 0:
            raise TooLittleDataError(
                "loss = 'bce' has no negatives: set training.negatives.uniform above 0, or name a label or impression "
                "column in schema.interactions"
            )
        return add_negative_samples(positives, self.data.hard_negatives)

    def _check_learnable(self, n_targets: int) -> None:
        if n_targets == 0 and self.data.history_weights is not None:
            raise TooLittleDataError(
                "no training positive with earlier ones of its user has a weight above 0: give kinds that occur in "
                "the training a weight in schema.interactions.weights"
            )
        if n_targets == 0:
            raise TooLittleDataError(
                "every user has at most one training positive, and the model predicts a positive from earlier ones: "
                "provide more interactions per user, or add user features"
                if self._sets is None
                else "every user has at most one different item among the training positives, and the model predicts a "
                "hidden item of a user from the others: provide users with more items, or set model.preset = 'pooled'"
            )

    def _compute_frequencies(self) -> tuple[Tensor, int]:
        """Compute the share of each item among the targets, [N], and the number of samples or sets."""
        if self._sets is not None:
            self._check_learnable(len(self._sets.users))
            length, share = self.towers.settings.history.length, self.settings.hidden_share
            frequencies = self._sets.compute_target_frequencies(self.data.n_items, length, share)
            return torch.from_numpy(frequencies), len(self._sets.users)
        assert self._samples is not None  # noqa: S101 - for mypy
        counts = torch.bincount(torch.from_numpy(self._samples.items), minlength=self.data.n_items)
        return counts / counts.sum(), len(self._samples)

    def train_dataloader(self) -> Batches:
        """Return the batches of the current epoch; Lightning calls this before each epoch."""
        batches = self._build_batches()
        return PrefetchedBatches(batches, is_pinned=True) if self.device.type == "cuda" else batches

    def _build_batches(self) -> Batches:
        histories, settings, epoch = self.data.histories, self.settings, self.current_epoch
        shard = None if self._group is None else Shard(self._group.rank, self._group.size)
        if self._windows is not None:
            return WindowBatches(
                self._windows,
                histories,
                batch_size=settings.batch,
                seed=settings.seed,
                epoch=epoch,
                shard=shard,
                has_context=bool(self.data.context_features),
            )
        if self._sets is not None:
            return SetBatches(
                self._sets,
                max_length=self.towers.settings.history.length,
                hidden_share=settings.hidden_share,
                batch_size=settings.batch,
                seed=settings.seed,
                epoch=epoch,
                shard=shard,
            )
        assert self._samples is not None  # noqa: S101 - for mypy
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
            "context": to_tensors(self.data.context_features, self.device),
        }
        self._hard_negative_sampler = self._hard_negative_sampler.to(self.device)
        if self.towers.spectral_vectors is not None:  # moving a module to a GPU copies shared buffers
            self.eval_towers.spectral_vectors = self.towers.spectral_vectors

    def training_step(self, batch: AnyBatch, batch_idx: int) -> Tensor:
        """Return the loss of a batch.

        Raises:
            TrainingError: The loss is not finite.
        """
        seed_step(self.settings.seed, self.current_epoch, batch_idx)
        loss = self._compute_loss(batch)
        if batch_idx % _CHECK_FINITE_EVERY_N_STEPS == 0:
            check_finite(loss.item(), self.current_epoch)
        return loss * (self._compute_batch_weight(batch) * self.data.weight_scale)

    def _compute_batch_weight(self, batch: AnyBatch) -> float:
        """Return the factor of a batch's mean loss that gives each target the same weight in the epoch.

        Batches of windows have only about `settings.batch` targets, those of sets about as many users, and the parts
        of a batch differ in their number.
        """
        weight, count = 1.0, len(batch.target_items)
        if batch.whole is not None:
            weight, count = batch.whole.weight, len(batch.whole.items)
        return weight * (count / self.settings.batch) if isinstance(batch, WindowBatch | SetBatch) else weight

    def on_train_batch_end(self, *_: object) -> None:
        """Update the moving average of the weights."""
        if self.ema_model is not None:
            self.ema_model.update(self.towers)
