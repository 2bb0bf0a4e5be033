"""Section `[training]` of vecall.toml. Imports no torch."""

from typing import Literal, Self

from pydantic import Field, model_validator

from vecall.settings_base import SettingsModel

LoggerType = Literal["none", "tensorboard", "mlflow"]


class NegativeSettings(SettingsModel):
    """Number of negatives for a loss that does not use the whole catalogue.

    With `bce` each positive has `uniform` negatives of its own. With `sampled_softmax` all positives of a step share
    `uniform` sampled items and `in_batch` of the step's positives, and each positive has up to `hard` items of its own
    that its user saw and did not take, or did not like.
    """

    uniform: int = Field(512, ge=0, description="negatives drawn uniformly from the catalogue")
    in_batch: int = Field(
        512, ge=0, description="sampled_softmax only: positives of the same step used as negatives, at most all of them"
    )
    hard: int = Field(
        8,
        ge=0,
        description="sampled_softmax only: hard negatives of each positive; softmax uses all items, and bce has them "
        "as samples with label 0",
    )


class TrainingSettings(SettingsModel):
    """Loss, optimizer and stopping rule."""

    loss: Literal["auto", "softmax", "sampled_softmax", "bce"] = Field(
        "auto", description="auto: softmax over all items, sampled_softmax if these are too many for a training step"
    )
    negatives: NegativeSettings = NegativeSettings()
    temperature: float | Literal["learned"] = Field(
        0.1, description="divides the scores; higher values make the softmax softer"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="softmax losses only: share of the target spread over all items"
    )
    mask_history: bool = Field(
        True, description="softmax losses only: exclude the items of a user's history from the negatives of that user"
    )
    hidden_share: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="history.encoder = 'set' only: share of a history's items with a weight above 0 that a training "
        "step hides and predicts",
    )
    batch: int = Field(
        512, ge=1, description="B: positives of a training step; with history.encoder = 'set', users of a step"
    )
    epochs: int = Field(4, ge=1, description="maximum number of epochs; the cosine schedule ends here")
    patience: int = Field(3, ge=1, description="stop after this many epochs without a better validation score")
    lr: float = Field(4e-3, gt=0, description="highest learning rate")
    lr_schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="cosine: rise over the first 5 % of the steps, then fall to 2 % of lr"
    )
    weight_decay: float = Field(0.01, ge=0, description="weight decay of AdamW")
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay per step of the moving average of the weights, which is evaluated and saved; 0: no average",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="seed of initial weights and of all random draws")
    refit: bool = Field(False, description="train again on all interactions for the best number of epochs")
    devices: int = Field(
        1,
        ge=1,
        description="number of processes that train together, each on a part of every batch: on a GPU each, or on CPU "
        "cores; under torchrun 1 or torchrun's number",
    )
    precision: Literal["32", "bf16"] = Field(
        "32",
        description="number format of the towers' computations: 32 bits, or bfloat16 with weights, scores and losses "
        "in 32 bits, which is faster on a GPU",
    )
    minutes: float = Field(
        0.0,
        ge=0,
        description="model.preset = 'auto' only: what choosing a preset may take on a slow core; 0: what 60 % of the "
        "interactions take, at most 1 below 200,000 rows and at most 20 beyond",
    )
    logger: LoggerType = Field(
        "none",
        description="logs the metrics of epochs beside metrics.jsonl, into RUN/tensorboard or RUN/mlflow; needs the "
        "extra of its name",
    )

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if not isinstance(self.temperature, str) and self.temperature <= 0:
            raise ValueError(f"temperature must be above 0 or 'learned', got {self.temperature}")
        if self.loss == "sampled_softmax" and self.negatives.uniform + self.negatives.in_batch == 0:
            raise ValueError(
                "loss = 'sampled_softmax' needs negatives: set negatives.uniform, negatives.in_batch or both above 0"
            )
        return self
