"""What happens after each epoch: it is judged, and a line of metrics is written."""

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
from vecall.training.module import TwoTowerModule, check_finite
from vecall.training.scoring import Scorer, TowerScorer

logger = logging.getLogger(__name__)

MONITORED_METRIC = "valid_score"

Validator = Callable[[Scorer], Mapping[str, float]]


class EpochMetricsCallback(Callback):
    """Judges after each epoch, writes a line of metrics, and shows the steps as they go."""

    def __init__(self, metrics_path: Path, validate: Validator | None) -> None:
        self._metrics_path, self._validate = metrics_path, validate
        self._losses: list[Tensor] = []
        self._progress_bar = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the lines of epochs that a break cut off, half a line too: they are run again."""
        del pl_module
        if self._metrics_path.exists():
            lines = self._metrics_path.read_text(encoding="utf-8").splitlines(keepends=True)
            self._metrics_path.write_text("".join(lines[: trainer.current_epoch]), encoding="utf-8")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A bar for each epoch."""
        del pl_module
        self._losses, self._epoch_start_time = [], time.perf_counter()
        bar = progress.track(f"epoch {trainer.current_epoch + 1}", int(trainer.num_training_batches))
        self._advance = self._progress_bar.enter_context(bar)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:  # noqa: ANN401
        """One step further."""
        del trainer, pl_module
        self._losses.append(outputs["loss"].detach())
        self._advance(1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge, log for early stopping, and write the line."""
        assert isinstance(pl_module, TwoTowerModule)  # noqa: S101 - ours; tells mypy
        line: dict[str, float] = {"epoch": trainer.current_epoch, "loss": torch.stack(self._losses).mean().item()}
        check_finite(line["loss"], trainer.current_epoch)
        pl_module.reset_unobserved_item_ids()
        if self._validate is not None:
            line |= self._validate(TowerScorer(pl_module.eval_towers, pl_module.data))
            pl_module.log(MONITORED_METRIC, line[MONITORED_METRIC])
        line["seconds"] = round(time.perf_counter() - self._epoch_start_time, 3)
        self._progress_bar.close()
        with self._metrics_path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")
        logger.info("epoch %d: %s", trainer.current_epoch + 1, {k: round(v, 4) for k, v in line.items()})

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The bar of an epoch that broke off ends too."""
        del trainer, pl_module, exception
        self._progress_bar.close()
