"""The `[evaluation]` section of vecall.toml."""

from itertools import pairwise

from pydantic import Field, field_validator

from vecall.settings_base import SettingsModel


class EvaluationSettings(SettingsModel):
    """Depths at which models are evaluated, and what stands beside them."""

    ks: tuple[int, ...] = Field((10, 50, 100, 200, 500), min_length=1, description="depths k of recall@k, ascending")
    baselines: bool = Field(
        True, description="whether fit evaluates popularity, EASE and co-occurrence beside the model, and compares"
    )

    @field_validator("ks")
    @classmethod
    def _validate_ks(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        if ks[0] < 1 or any(later <= earlier for earlier, later in pairwise(ks)):
            raise ValueError(f"expected ascending numbers of at least 1, such as [10, 100]; got {list(ks)}")
        return ks
