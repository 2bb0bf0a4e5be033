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
from vecall.training.module import Recipe, check_finite
from vecall.training.scoring import Scorer, TowerScorer

logger = logging.getLogger(__name__)

MONITOR = "valid_score"

Validate = Callable[[Scorer], Mapping[str, float]]


class EpochLog(Callback):
    """Judges after each epoch, writes a line of metrics, and shows the steps as they go."""

    def __init__(self, file: Path, validate: Validate | None) -> None:
        self._file, self._validate = file, validate
        self._losses: list[Tensor] = []
        self._bar = ExitStack()

    def on_train_start(self, trainer: Trainer, recipe: LightningModule) -> None:
        """Forget the lines of epochs that a break cut off, half a line too: they are run again."""
        del recipe
        if self._file.exists():
            lines = self._file.read_text(encoding="utf-8").splitlines(keepends=True)
            self._file.write_text("".join(lines[: trainer.current_epoch]), encoding="utf-8")

    def on_train_epoch_start(self, trainer: Trainer, recipe: LightningModule) -> None:
        """A bar for each epoch."""
        del recipe
        self._losses, self._began = [], time.perf_counter()
        bar = progress.task(f"epoch {trainer.current_epoch + 1}", int(trainer.num_training_batches))
        self._advance = self._bar.enter_context(bar)

    def on_train_batch_end(self, trainer: Trainer, recipe: LightningModule, outputs: Any, *_: Any) -> None:  # noqa: ANN401
        """One step further."""
        del trainer, recipe
        self._losses.append(outputs["loss"].detach())
        self._advance(1)

    def on_train_epoch_end(self, trainer: Trainer, recipe: LightningModule) -> None:
        """Judge, log for early stopping, and write the line."""
        assert isinstance(recipe, Recipe)  # noqa: S101 - ours; tells mypy
        line: dict[str, float] = {"epoch": trainer.current_epoch, "loss": torch.stack(self._losses).mean().item()}
        check_finite(line["loss"], trainer.current_epoch)
        recipe.settle()
        if self._validate is not None:
            line |= self._validate(TowerScorer(recipe.kept, recipe.problem))
            recipe.log(MONITOR, line[MONITOR])
        line["seconds"] = round(time.perf_counter() - self._began, 3)
        self._bar.close()
        with self._file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")
        logger.info("epoch %d: %s", trainer.current_epoch + 1, {k: round(v, 4) for k, v in line.items()})

    def on_exception(self, trainer: Trainer, recipe: LightningModule, exception: BaseException) -> None:
        """The bar of an epoch that broke off ends too."""
        del trainer, recipe, exception
        self._bar.close()
