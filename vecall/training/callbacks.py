"""Lightning callback of the end of an epoch: prepares the towers, validates them and writes `metrics.jsonl`."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from vecall import progress
from vecall.training.distributed import ProcessGroup, is_main
from vecall.training.loggers import EpochLogger
from vecall.training.losses import check_finite
from vecall.training.module import TwoTowerModule
from vecall.training.scoring import Scorer, TowerScorer

logger = logging.getLogger(__name__)

MONITORED_METRIC = "valid_score"

# Takes a scorer of the towers and returns metrics by name, among them `MONITORED_METRIC`; larger is better.
ScorerValidator = Callable[[Scorer], Mapping[str, float]]


class EpochEndCallback(Callback):
    """Validates up-to-date towers and appends a line to the metrics file after each epoch; shows its progress.

    Ids are reset here and not in the module's hook of the same name, because Lightning calls that after the callbacks.

    Args:
        metrics_path: JSON Lines file with the number (from 0), the loss, the validation metrics and the seconds of each
            epoch.
        validate: Computes the validation metrics; None for no validation.
        logger: Logs the metrics of each epoch too; None for no logger.
        group: Processes that train together, the first of which writes the file; None for a single process.
    """

    def __init__(
        self,
        metrics_path: Path,
        validate: ScorerValidator | None,
        logger: EpochLogger | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        self._metrics_path, self._validate, self._logger, self._group = metrics_path, validate, logger, group
        self._losses: list[Tensor] = []
        self._progress_bar = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the lines, and half lines, of epochs that an interruption cut off: these epochs run again."""
        del pl_module
        if is_main(self._group) and self._metrics_path.exists():
            lines = self._metrics_path.read_text(encoding="utf-8").splitlines(keepends=True)
            self._metrics_path.write_text("".join(lines[: trainer.current_epoch]), encoding="utf-8")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a progress bar for the epoch."""
        del pl_module
        self._losses, self._epoch_start_time = [], time.perf_counter()
        task = progress.track(f"epoch {trainer.current_epoch + 1}", int(trainer.num_training_batches))
        self._advance = self._progress_bar.enter_context(task)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:  # noqa: ANN401
        """Record the loss of the step and advance the progress bar."""
        del trainer, pl_module
        self._losses.append(outputs["loss"].detach())
        self._advance(1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset untrained ids, validate, log the monitored metric for early stopping, and write the epoch's line.

        Raises:
            TrainingError: The mean loss is not finite.
        """
        assert isinstance(pl_module, TwoTowerModule)  # noqa: S101 - for mypy
        metrics: dict[str, float] = {"epoch": trainer.current_epoch, "loss": self._compute_mean_loss()}
        check_finite(metrics["loss"], trainer.current_epoch)
        pl_module.flush_tables()
        if self._group is not None:
            self._group.average_batch_norm(pl_module)
        pl_module.reset_non_candidate_ids()
        if self._validate is not None:
            metrics |= self._validate(TowerScorer(pl_module.eval_towers, pl_module.data))
            pl_module.log(MONITORED_METRIC, metrics[MONITORED_METRIC], logger=False)
        metrics["seconds"] = round(time.perf_counter() - self._epoch_start_time, 3)
        self._progress_bar.close()
        if is_main(self._group):
            self._write(metrics)

    def _compute_mean_loss(self) -> float:
        losses = torch.stack(self._losses)
        return (losses if self._group is None else self._group.mean(losses)).mean().item()

    def _write(self, metrics: Mapping[str, float]) -> None:
        epoch = int(metrics["epoch"])
        with self._metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
        if self._logger is not None:
            self._logger.log({name: value for name, value in metrics.items() if name != "epoch"}, epoch)
        rounded = {name: round(value, 4) for name, value in metrics.items() if name != "epoch"}
        logger.info("finished epoch %d: %s", epoch + 1, rounded)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the progress bar of the interrupted epoch."""
        del trainer, pl_module, exception
        self._progress_bar.close()
