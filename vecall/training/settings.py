"""The `[training]` section of vecall.toml. No torch here."""

from typing import Literal, Self

from pydantic import Field, model_validator

from vecall.settings_base import SettingsModel


class NegativeSettings(SettingsModel):
    """How many negatives a positive is told apart from, where not from the whole catalogue.

    For `bce` each positive has `uniform` negatives of its own; for `sampled_softmax_loss` the step draws `uniform`
    that all its positives share, and adds `in_batch` of the positives of others, and for each positive up to `hard`
    items that its user was shown and did not take, or did not like.
    """

    uniform: int = Field(1024, ge=0)
    in_batch: int = Field(0, ge=0)
    hard: int = Field(8, ge=0, description="sampled_softmax only: the full one has them all, bce learns their labels")


class TrainingSettings(SettingsModel):
    """Loss, optimiser and when to stop."""

    loss: Literal["auto", "softmax", "sampled_softmax", "bce"] = "auto"
    negatives: NegativeSettings = NegativeSettings()
    temperature: float | Literal["learned"] = Field(0.1, description="scores are divided by it; more is softer")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="softmax only: share of the target spread over all")
    mask_history: bool = Field(
        True, description="softmax: leave the items of a user's history out of the negatives of that user"
    )
    batch: int = Field(512, ge=1, description="B: positives a step")
    epochs: int = Field(4, ge=1, description="at most; the cosine schedule ends here")
    patience: int = Field(3, ge=1, description="epochs without a better validation score before the end")
    lr: float = Field(4e-3, gt=0, description="at its highest")
    lr_schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="cosine: warm up over 5 %, then fall to 2 %"
    )
    weight_decay: float = Field(0.01, ge=0)
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="decay a step of a mean of the weights, which is judged and kept; 0 is the last"
    )
    seed: int = Field(0, ge=0, lt=2**32)
    refit: bool = Field(False, description="train again on all interactions for the epochs that were chosen")

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if not isinstance(self.temperature, str) and self.temperature <= 0:
            raise ValueError(f"temperature is above 0 or 'learned', got {self.temperature}")
        if self.loss == "sampled_softmax" and self.negatives.uniform + self.negatives.in_batch == 0:
            raise ValueError("sampled_softmax needs negatives: set uniform, in_batch or both")
        return self
