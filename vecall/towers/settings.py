"""The `[model]` section of vecall.toml: what the towers look like. No torch here."""

from typing import Literal, Self

from pydantic import Field, model_validator

from vecall.settings_base import SettingsModel

HistoryEncoderType = Literal["none", "mean", "attention", "causal"]


class HistorySettings(SettingsModel):
    """How the user tower reads a history of item vectors."""

    encoder: HistoryEncoderType = "mean"
    length: int = Field(50, ge=1, le=1000, description="L: how many of the newest items are read")
    item_dropout: float = Field(0.0, ge=0, lt=1, description="share of a history's items that a step does not see")
    layers: int = Field(2, ge=1, le=16, description="causal only: transformer blocks")
    heads: int = Field(2, ge=1, le=64, description="causal only: of attention; they divide dim / members")


class ModelSettings(SettingsModel):
    """Both towers. Without `hidden` a side is the sum of its parts; with it, an MLP over the parts side by side."""

    preset: Literal["dssm", "pooled", "sequence"] = "pooled"
    dim: int = Field(128, ge=2, le=1024, description="D: dimension of the vectors that are compared")
    ensemble_size: int = Field(
        1, ge=1, le=16, description="models side by side in a vector, dim / members each; a score is the mean of theirs"
    )
    hidden: tuple[int, ...] = Field((), description="widths of the MLP's hidden layers, both towers")
    norm: Literal["layer", "batch", "none"] = "layer"
    dropout: float = Field(0.0, ge=0, lt=1, description="in hidden layers and in what reads the history")
    init_std: float = Field(
        0.1, gt=0, description="standard deviation that embeddings begin with; smaller ones turn faster at the same lr"
    )
    item_id: bool = Field(True, description="an embedding per item beside its features")
    id_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of ids hidden in a step, where items have features; above 0, items that no one took yet are "
        "known by their features and are no negatives",
    )
    history: HistorySettings = HistorySettings()

    @model_validator(mode="after")
    def _check_dimensions(self) -> Self:
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden: widths are at least 1, got {list(self.hidden)}")
        if self.dim % self.ensemble_size:
            raise ValueError(f"members must divide dim, got {self.ensemble_size} and {self.dim}")
        width = self.dim // self.ensemble_size
        if self.history.encoder == "causal" and width % self.history.heads:
            raise ValueError(f"history.heads must divide dim / members, got {self.history.heads} and {width}")
        return self
