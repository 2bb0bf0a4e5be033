"""Training from start to end, on Lightning: stopping early, choosing the epoch, going on after a break."""

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from vecall.errors import TrainingError
from vecall.towers.settings import ModelSettings
from vecall.towers.two_tower import TwoTower
from vecall.training.callbacks import MONITORED_METRIC, EpochMetricsCallback, Validator
from vecall.training.data import TrainingData
from vecall.training.module import TwoTowerModule
from vecall.training.settings import TrainingSettings
from vecall.training.threads import use_fastest_thread_count

LAST_CHECKPOINT, BEST_CHECKPOINT = "last.ckpt", "best.ckpt"


@dataclass(frozen=True)
class TrainResult:
    """What training came to.

    Attributes:
        towers: with the weights of the best epoch (of the last one where nothing was judged).
        best_epoch: counted from 0.
        epochs: how many were run.
        seconds: wall time, without the time before a break.
    """

    towers: TwoTower
    best_epoch: int
    epochs: int
    seconds: float


def train(
    data: TrainingData,
    model_settings: ModelSettings,
    training_settings: TrainingSettings,
    directory: Path,
    *,
    validate: Validator | None = None,
    max_epochs: int | None = None,
    init_weights: Callable[[TwoTower], None] | None = None,
) -> TrainResult:
    """Train towers, or go on with a training in `directory` that was cut short.

    Args:
        data: what is learned from.
        model_settings: what the towers look like.
        training_settings: loss, optimiser, when to stop.
        directory: takes `metrics.jsonl`, the number of threads and the checkpoints; a `last.ckpt` in it is resumed from.
        validate: judges after each epoch; its `valid_score` stops training early and chooses the epoch.
            None trains for all epochs.
        max_epochs: fewer than `settings.epochs`, by whose number the learning rate falls all the same.
        init_weights: gives the fresh towers their first weights.

    Raises:
        TrainingError: too little to learn from, the loss is not finite, or what was cut short was of other tables.
    """
    if len(data.observed_items) < 2 or len(data.histories.values) == 0:
        raise TrainingError(
            f"training needs at least 1 positive and 2 items that users took, or were known not to like, got "
            f"{len(data.histories.values)} and {len(data.observed_items)} of {data.n_items}"
        )
    directory.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    torch.manual_seed(training_settings.seed)
    towers = TwoTower(model_settings, data.item_specs, data.user_specs, data.n_items)
    if init_weights is not None:
        init_weights(towers)
    recipe = TwoTowerModule(towers, data, training_settings)
    callbacks: list[Callback] = [EpochMetricsCallback(directory / "metrics.jsonl", validate)]
    if validate is not None:
        callbacks.append(
            _ResumableEarlyStopping(
                MONITORED_METRIC, mode="max", patience=training_settings.patience, check_on_train_epoch_end=True
            )
        )
        callbacks.append(_build_checkpoint_callback(directory, BEST_CHECKPOINT, monitor=MONITORED_METRIC))
    callbacks.append(
        _build_checkpoint_callback(directory, LAST_CHECKPOINT)
    )  # the last one, so that it knows of the best
    last = directory / LAST_CHECKPOINT
    if last.exists():
        _check_checkpoint_matches(recipe, last)
    with _quiet_lightning(), use_fastest_thread_count(recipe, directory):
        trainer = _build_trainer(directory, max_epochs or training_settings.epochs, callbacks)
        trainer.fit(recipe, ckpt_path=last if last.exists() else None, weights_only=True)
    best = torch.load(directory / BEST_CHECKPOINT if validate else last, map_location="cpu", weights_only=True)
    recipe.load_state_dict(best["state_dict"])
    return TrainResult(
        recipe.eval_towers.eval(), int(best["epoch"]), trainer.current_epoch, time.perf_counter() - began
    )


def _check_checkpoint_matches(module: TwoTowerModule, checkpoint: Path) -> None:
    before = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    if {name: x.shape for name, x in before.items()} != {name: x.shape for name, x in module.state_dict().items()}:
        raise TrainingError(
            f"{checkpoint.parent}: its tables have other items or values than when this training was cut short; "
            "delete it, or choose another --run"
        )


class _ResumableEarlyStopping(EarlyStopping):
    """Stops, and stays stopped should a break come between the stop and the end of the run."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what the checkpoint says."""
        del pl_module
        trainer.should_stop = self.wait_count >= self.patience


def _build_checkpoint_callback(directory: Path, filename: str, *, monitor: str | None = None) -> ModelCheckpoint:
    """Written after each epoch, or only after one that is better than all before by what is monitored."""
    return ModelCheckpoint(
        directory,
        filename=filename.removesuffix(".ckpt"),
        monitor=monitor,
        mode="max",
        save_top_k=1,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )


def _build_trainer(directory: Path, max_epochs: int, callbacks: list[Callback]) -> Trainer:
    return Trainer(
        max_epochs=max_epochs,
        accelerator="auto",
        devices=1,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=directory,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
    )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without the advice and advertisement that Lightning logs, and its wonder at a folder with a run in it."""
    talker = logging.getLogger("lightning.pytorch")
    level = talker.level
    talker.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
            yield
    finally:
        talker.setLevel(level)
