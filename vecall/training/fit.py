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
from vecall.training.callbacks import MONITOR, EpochLog, Validate
from vecall.training.data import Problem
from vecall.training.module import Recipe
from vecall.training.settings import TrainingSettings
from vecall.training.threads import measured_threads

LAST_CHECKPOINT, BEST_CHECKPOINT = "last.ckpt", "best.ckpt"


@dataclass(frozen=True)
class Outcome:
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
    problem: Problem,
    model: ModelSettings,
    settings: TrainingSettings,
    folder: Path,
    *,
    validate: Validate | None = None,
    epochs: int | None = None,
    start_from: Callable[[TwoTower], None] | None = None,
) -> Outcome:
    """Train towers, or go on with a training in `folder` that was cut short.

    Args:
        problem: what is learned from.
        model: what the towers look like.
        settings: loss, optimiser, when to stop.
        folder: takes `metrics.jsonl`, the number of threads and the checkpoints; a `last.ckpt` in it is resumed from.
        validate: judges after each epoch; its `valid_score` stops training early and chooses the epoch.
            None trains for all epochs.
        epochs: fewer than `settings.epochs`, by whose number the learning rate falls all the same.
        start_from: gives the fresh towers their first weights.

    Raises:
        TrainingError: too little to learn from, the loss is not finite, or what was cut short was of other tables.
    """
    if len(problem.met) < 2 or len(problem.train.rows) == 0:
        raise TrainingError(
            f"training needs at least 1 positive and 2 items that users took, or were known not to like, got "
            f"{len(problem.train.rows)} and {len(problem.met)} of {problem.n_items}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    torch.manual_seed(settings.seed)
    towers = TwoTower(model, problem.item_shapes, problem.user_shapes, problem.n_items)
    if start_from is not None:
        start_from(towers)
    recipe = Recipe(towers, problem, settings)
    callbacks: list[Callback] = [EpochLog(folder / "metrics.jsonl", validate)]
    if validate is not None:
        callbacks.append(_EarlyStop(MONITOR, mode="max", patience=settings.patience, check_on_train_epoch_end=True))
        callbacks.append(_checkpoint(folder, BEST_CHECKPOINT, monitor=MONITOR))
    callbacks.append(_checkpoint(folder, LAST_CHECKPOINT))  # the last one, so that it knows of the best
    last = folder / LAST_CHECKPOINT
    if last.exists():
        _check_same_problem(recipe, last)
    with _quiet_lightning(), measured_threads(recipe, folder):
        trainer = _trainer(folder, epochs or settings.epochs, callbacks)
        trainer.fit(recipe, ckpt_path=last if last.exists() else None, weights_only=True)
    best = torch.load(folder / BEST_CHECKPOINT if validate else last, map_location="cpu", weights_only=True)
    recipe.load_state_dict(best["state_dict"])
    return Outcome(recipe.kept.eval(), int(best["epoch"]), trainer.current_epoch, time.perf_counter() - began)


def _check_same_problem(recipe: Recipe, checkpoint: Path) -> None:
    before = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    if {name: x.shape for name, x in before.items()} != {name: x.shape for name, x in recipe.state_dict().items()}:
        raise TrainingError(
            f"{checkpoint.parent}: its tables have other items or values than when this training was cut short; "
            "delete it, or choose another --run"
        )


class _EarlyStop(EarlyStopping):
    """Stops, and stays stopped should a break come between the stop and the end of the run."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what the checkpoint says."""
        del pl_module
        trainer.should_stop = self.wait_count >= self.patience


def _checkpoint(folder: Path, file: str, *, monitor: str | None = None) -> ModelCheckpoint:
    """Written after each epoch, or only after one that is better than all before by what is monitored."""
    return ModelCheckpoint(
        folder,
        filename=file.removesuffix(".ckpt"),
        monitor=monitor,
        mode="max",
        save_top_k=1,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )


def _trainer(folder: Path, epochs: int, callbacks: list[Callback]) -> Trainer:
    return Trainer(
        max_epochs=epochs,
        accelerator="auto",
        devices=1,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
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
