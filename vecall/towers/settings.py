"""Section `[model]` of vecall.toml: the architecture of the towers. Imports no torch."""

from typing import Literal, Self

from pydantic import Field, model_validator

from vecall.settings_base import SettingsModel

HistoryEncoderType = Literal["none", "mean", "attention", "causal", "set"]


class HistorySettings(SettingsModel):
    """Encoder of the user's history of item vectors."""

    encoder: HistoryEncoderType = Field(
        "mean",
        description="mean: learned mixture of means with several decays; attention: weighted by a learned query; "
        "causal: transformer; set: sum, whatever the order, trained on hidden parts of whole histories; none: the "
        "history is not read",
    )
    length: int = Field(50, ge=1, le=1000, description="L: number of newest items that are read")
    item_dropout: float = Field(0.0, ge=0, lt=1, description="share of a history's items that a training step drops")
    layers: int = Field(2, ge=1, le=16, description="causal only: transformer blocks")
    heads: int = Field(2, ge=1, le=64, description="causal only: attention heads; must divide dim / ensemble_size")


class ModelSettings(SettingsModel):
    """Architecture of both towers.

    A tower combines an id or history vector with its features: without `hidden` it adds them up, with `hidden` an MLP
    reads their concatenation.
    """

    preset: Literal["auto", "dssm", "set", "pooled", "sequence"] = Field(
        "auto",
        description="auto: chosen by short trainings, see training.minutes; set: sum of the history, for data without "
        "an order; pooled: mean over the history, for small data; sequence: causal transformer, from some ten thousand "
        "users on; dssm: MLP over features with BCE, a baseline",
    )
    dim: int = Field(128, ge=2, le=1024, description="D: dimension of user and item vectors")
    ensemble_size: int = Field(
        1,
        ge=1,
        le=16,
        description="number of models in one vector, dim / ensemble_size dimensions each; a score is their mean score",
    )
    hidden: tuple[int, ...] = Field((), description="widths of the hidden layers of the MLP, in both towers")
    norm: Literal["layer", "batch", "none"] = Field("layer", description="normalization in the hidden layers")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout in hidden layers and in the history encoder")
    init_std: float = Field(
        0.1, gt=0, description="standard deviation of initial embeddings; smaller ones learn faster at the same lr"
    )
    item_init: Literal["random", "spectral"] = Field(
        "random",
        description="initial embeddings of item ids; spectral: singular vectors of the interactions, at the scale of "
        "init_std",
    )
    max_trained_dim: int = Field(
        0,
        ge=0,
        le=1024,
        description="history.encoder = 'set' only: dimensions beyond these are not trained, but hold singular vectors "
        "of the interactions; 0: all are trained",
    )
    item_id: bool = Field(True, description="learn an embedding of each item id beside its features")
    id_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of item ids hidden in a training step, if items have features; above 0, items without "
        "interactions are represented by their features and are not used as negatives",
    )
    history: HistorySettings = HistorySettings()

    @property
    def trained_dim(self) -> int:
        """Dimensions of the part of vectors that is trained; without item ids or sets, all of them."""
        has_bound = self.max_trained_dim > 0 and self.history.encoder == "set" and self.item_id
        return min(self.dim, self.max_trained_dim) if has_bound else self.dim

    @property
    def spectral_dim(self) -> int:
        """Dimensions of the part of vectors that is not trained."""
        return self.dim - self.trained_dim

    @model_validator(mode="after")
    def _check_dimensions(self) -> Self:
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden: widths must be at least 1, got {list(self.hidden)}")
        if self.trained_dim % self.ensemble_size:
            part = "max_trained_dim" if self.spectral_dim else "dim"
            raise ValueError(f"ensemble_size must divide {part}, got {self.ensemble_size} and {self.trained_dim}")
        if self.history.encoder == "set" and self.history.item_dropout:
            raise ValueError(
                f"history.item_dropout is not for history.encoder = 'set', got {self.history.item_dropout}; set "
                "training.hidden_share instead"
            )
        member_dim = self.trained_dim // self.ensemble_size
        if self.history.encoder == "causal" and member_dim % self.history.heads:
            raise ValueError(
                f"history.heads must divide dim / ensemble_size, got {self.history.heads} and {member_dim}"
            )
        return self
