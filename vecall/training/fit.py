"""Training loop on Lightning: early stopping, choice of the best epoch, resumption after an interruption."""

import json
import signal
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from vecall.errors import TrainingError
from vecall.runtime.memory import available_memory_bytes
from vecall.runtime.quiet_logger import quiet_logger
from vecall.towers.settings import ModelSettings
from vecall.towers.two_tower import TwoTower
from vecall.training.callbacks import MONITORED_METRIC, EpochEndCallback, ScorerValidator
from vecall.training.checkpoints import StreamedCheckpointIO, load_checkpoint, load_weights
from vecall.training.data import TooLittleDataError, TrainingData
from vecall.training.distributed import ProcessGroup, is_main, run_on_main
from vecall.training.loggers import EpochLogger, build_logger
from vecall.training.memory import check_memory
from vecall.training.module import TwoTowerModule
from vecall.training.plan import TrainingPlan, select_candidate_items
from vecall.training.settings import TrainingSettings
from vecall.training.spectral import compute_spectral_part, initialize_item_ids
from vecall.training.spectral_share import choose_spectral_share
from vecall.training.threads import use_fastest_thread_count

LAST_CHECKPOINT, BEST_CHECKPOINT = "last.ckpt", "best.ckpt"
_METRICS_FILE = "metrics.jsonl"
_MIN_MAPPED_BYTES = 2**24  # of a weight; smaller ones are copied


@dataclass(frozen=True)
class TrainResult:
    """Trained towers and the course of the training.

    Attributes:
        towers: Towers with the weights of the best epoch, or of the last epoch without validation.
        best_epoch: Epoch of the weights, counted from 0.
        epochs: Number of epochs run.
        seconds: Wall time, without the time before an interruption.
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
    validate: ScorerValidator | None = None,
    max_epochs: int | None = None,
    init_weights: Callable[[TwoTower], None] | None = None,
    spectral_share: float | None = None,
    group: ProcessGroup | None = None,
) -> TrainResult:
    """Train towers, or resume an interrupted training.

    Args:
        data: Training data.
        model_settings: Architecture of the towers.
        training_settings: Loss, optimizer and stopping rule.
        directory: Takes `metrics.jsonl`, `threads.json` and the checkpoints; training resumes from its `last.ckpt`.
        validate: Evaluates the towers after each epoch; its `valid_score` stops training early and chooses the best
            epoch. None: training runs for all epochs.
        max_epochs: Stop after fewer epochs than `training_settings.epochs`; the learning rate schedule stays that of
            all epochs.
        init_weights: Sets the initial weights of the new towers.
        spectral_share: Weight of the spectral part, where there is one; None: chosen by `validate`, if that is given.
        group: Processes that train together; all of them call this, and the first writes the files. None for a single
            process.

    Raises:
        TrainingError: There is too little to learn from, the loss is not finite, or the checkpoint in `directory`
            belongs to other tables or another number of processes; or memory is too small.
    """
    _check_trainable(data)
    check_fits = partial(check_training_memory, data, model_settings, training_settings, group=group)
    run_on_main(group, partial(check_fits, validates=validate is not None, is_warm_start=init_weights is not None))
    start = time.perf_counter()
    is_resumed = run_on_main(group, (directory / LAST_CHECKPOINT).exists)
    towers = _build_towers(data, model_settings, training_settings.seed, init_weights, group, is_resumed=is_resumed)
    plan = run_on_main(group, partial(_resolve_plan, directory, training_settings, towers, data, group))
    module = TwoTowerModule(towers, data, training_settings, plan, group)
    logger = _build_logger(model_settings, training_settings, directory) if is_main(group) else None
    callbacks = _build_callbacks(directory, validate, training_settings.patience, logger, group)
    build_trainer = partial(
        _build_trainer,
        directory,
        max_epochs or training_settings.epochs,
        training_settings.precision,
        callbacks,
        group,
    )
    with logger or nullcontext():
        n_epochs = _run_trainer(build_trainer, module, directory, group)
    best_epoch = _load_final_weights(module, directory / (BEST_CHECKPOINT if validate else LAST_CHECKPOINT), group)
    final_towers = module.eval_towers.eval()
    score = None if validate is None else run_on_main(group, partial(_read_score, directory, best_epoch))
    choose_spectral_share(final_towers, data, validate, spectral_share, score)
    return TrainResult(final_towers, best_epoch, n_epochs, time.perf_counter() - start)


def _run_trainer(
    build_trainer: Callable[[], Trainer], module: TwoTowerModule, directory: Path, group: ProcessGroup | None
) -> int:
    """Train the module from the last checkpoint of a directory, or from the start; return the number of epochs."""
    last = directory / LAST_CHECKPOINT
    is_resumed = run_on_main(group, last.exists)
    if is_resumed:
        _check_checkpoint_matches(module, last)
    with (
        quiet_logger("lightning.pytorch"),
        warnings.catch_warnings(),
        use_fastest_thread_count(module, directory, group),
    ):
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")  # Lightning's own use of torch
        warnings.filterwarnings("ignore", ".*sync_dist=True")  # the logged metrics are equal in all processes
        trainer = build_trainer()
        trainer.fit(module, ckpt_path=last if is_resumed else None, weights_only=True)
    return trainer.current_epoch


def _build_towers(
    data: TrainingData,
    settings: ModelSettings,
    seed: int,
    init_weights: Callable[[TwoTower], None] | None,
    group: ProcessGroup | None,
    *,
    is_resumed: bool,
) -> TwoTower:
    """Build towers with their initial weights and spectral part, or random ones where a checkpoint replaces them."""
    torch.manual_seed(seed)
    towers = TwoTower(settings, data.item_specs, data.user_specs, data.n_items)
    if is_resumed:
        return towers
    if init_weights is not None:
        init_weights(towers)
    elif settings.item_init == "spectral":
        initialize_item_ids(towers, data.histories, seed)
    compute_spectral_part(towers, data.histories, seed)
    if group is not None and not group.shares_memory:
        group.broadcast_weights(towers)  # libraries of other machines may round otherwise
    return towers


def _check_trainable(data: TrainingData) -> None:
    if len(data.observed_items) < 2 or len(data.histories.values) == 0:
        raise TooLittleDataError(
            f"training needs at least 1 positive and 2 items that users took or disliked, got "
            f"{len(data.histories.values)} and {len(data.observed_items)} of {data.n_items} items"
        )


def check_training_memory(
    data: TrainingData,
    model_settings: ModelSettings,
    training_settings: TrainingSettings,
    *,
    validates: bool,
    is_warm_start: bool = False,
    group: ProcessGroup | None,
) -> None:
    """Refuse a training that does not fit in memory, with all its processes on this machine; a GPU has its own.

    Args:
        data: Training data.
        model_settings: Architecture of the towers.
        training_settings: Loss, optimizer and schedule.
        validates: Whether epochs are validated.
        is_warm_start: Whether the initial weights are those of another run.
        group: The processes; None for a single one.

    Raises:
        TrainingError: It needs more memory than there is; the message names settings that would fit.
    """
    if torch.cuda.is_available():
        return
    processes, shares_tables = (1, False) if group is None else (group.size, group.shares_memory)
    available_bytes = available_memory_bytes() // processes
    if is_warm_start:
        model_settings = model_settings.model_copy(update={"item_init": "random"})  # there is no spectral start
    check_memory(
        data,
        model_settings,
        training_settings,
        available_bytes,
        processes=processes,
        shares_tables=shares_tables,
        validates=validates,
    )


def _release_optimizer(module: TwoTowerModule) -> None:
    """Free moments and gradients: trainer and optimizer refer to themselves, and outlive the training."""
    module.release_tables()
    module.zero_grad(set_to_none=True)
    for optimizer in module.trainer.optimizers:
        optimizer.state.clear()


def _load_final_weights(module: TwoTowerModule, checkpoint: Path, group: ProcessGroup | None) -> int:
    """Replace the module's weights by those of a checkpoint of this training; return the epoch of the checkpoint.

    Large weights stay mapped from the file, which may be deleted: with copies, a table would be in memory twice.
    """
    _release_optimizer(module)
    if group is not None:
        group.barrier()  # until the first process has written it
    best = load_checkpoint(checkpoint)
    weights = {
        name: weight if weight.nbytes >= _MIN_MAPPED_BYTES else weight.clone()
        for name, weight in best["state_dict"].items()
    }
    for name, parameter in module.named_parameters():
        parameter.data = weights[name]  # the optimizer still has the old parameters, and would keep their weights
    module.load_state_dict(weights, assign=True)
    return int(best["epoch"])


def count_finished_epochs(directory: Path) -> int:
    """Return how many epochs of a training have ended, by the lines of its metrics; 0 of none."""
    path = directory / _METRICS_FILE
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def _read_score(directory: Path, epoch: int) -> float:
    """Read the validation score of an epoch that has ended."""
    line = (directory / _METRICS_FILE).read_text(encoding="utf-8").splitlines()[epoch]
    return float(json.loads(line)[MONITORED_METRIC])


def _resolve_plan(
    directory: Path, settings: TrainingSettings, towers: TwoTower, data: TrainingData, group: ProcessGroup | None
) -> TrainingPlan:
    directory.mkdir(parents=True, exist_ok=True)
    n_candidates = len(select_candidate_items(towers, data))
    processes, shares_tables = (1, False) if group is None else (group.size, group.shares_memory)
    return TrainingPlan.read_or_make(directory, settings, towers, n_candidates, processes, shares_tables=shares_tables)


def _check_checkpoint_matches(module: TwoTowerModule, checkpoint: Path) -> None:
    old_shapes = {name: weight.shape for name, weight in load_weights(checkpoint).items()}
    if old_shapes != {name: weight.shape for name, weight in module.state_dict().items()}:
        raise TrainingError(
            f"{checkpoint.parent}: this interrupted training used tables with other items or values; "
            "delete it, or choose another --run"
        )


class _ResumableEarlyStopping(EarlyStopping):
    """Early stopping that stays stopped if the run is interrupted between the stop and its end."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop if the checkpoint was written after the last epoch that `patience` allows."""
        del pl_module
        trainer.should_stop = self.wait_count >= self.patience


class _TerminationHandler(Callback):
    """Leaves SIGTERM to the handler that was there before the training, which by default ends the process.

    Lightning takes note of the signal and goes on until the next step, which a validation of many items delays for an
    hour. What is on disk is complete at any time: the training is resumed from its last epoch.
    """

    def __init__(self) -> None:
        self._handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the handler, which Lightning has replaced by now."""
        del trainer, pl_module
        if threading.current_thread() is threading.main_thread() and self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)


def _build_logger(
    model_settings: ModelSettings, training_settings: TrainingSettings, directory: Path
) -> EpochLogger | None:
    settings = {"model": model_settings.model_dump(mode="json"), "training": training_settings.model_dump(mode="json")}
    return build_logger(training_settings.logger, directory, settings)


def _build_callbacks(
    directory: Path,
    validate: ScorerValidator | None,
    patience: int,
    logger: EpochLogger | None,
    group: ProcessGroup | None,
) -> list[Callback]:
    epoch_end = EpochEndCallback(directory / _METRICS_FILE, validate, logger, group)
    callbacks: list[Callback] = [_TerminationHandler(), epoch_end]
    if validate is not None:
        callbacks.append(
            _ResumableEarlyStopping(MONITORED_METRIC, mode="max", patience=patience, check_on_train_epoch_end=True)
        )
    if not is_main(group):
        return callbacks
    if validate is not None:
        callbacks.append(_build_checkpoint_callback(directory, BEST_CHECKPOINT, monitor=MONITORED_METRIC))
    # After the best checkpoint, so that the last one holds the state of that callback too.
    return [*callbacks, _build_checkpoint_callback(directory, LAST_CHECKPOINT)]


def _build_checkpoint_callback(directory: Path, filename: str, *, monitor: str | None = None) -> ModelCheckpoint:
    """Write a checkpoint after each epoch, or with `monitor` only after an epoch with a new highest value of it."""
    return ModelCheckpoint(
        directory,
        filename=filename.removesuffix(".ckpt"),
        monitor=monitor,
        mode="max",
        save_top_k=1,
        save_on_train_epoch_end=True,
        save_weights_only=filename == BEST_CHECKPOINT,  # only the last one is resumed from
        enable_version_counter=False,
    )


def _build_trainer(
    directory: Path,
    max_epochs: int,
    precision: str,
    callbacks: list[Callback],
    group: ProcessGroup | None,
) -> Trainer:
    """Build the trainer of this process alone: it does not know of others."""
    return Trainer(
        max_epochs=max_epochs,
        # "auto" would take devices of other kinds, too
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
        devices=1 if group is None or not torch.cuda.is_available() else [torch.cuda.current_device()],
        precision="bf16-mixed" if precision == "bf16" else "32-true",
        callbacks=callbacks,
        logger=False,  # the callback of the end of an epoch logs
        log_every_n_steps=1,  # of values logged in a step, of which there are none; more than the steps is a warning
        enable_checkpointing=is_main(group),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=directory,
        plugins=[StreamedCheckpointIO()],
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
    )
