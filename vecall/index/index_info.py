"""What a manifest says of a release's index."""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, JsonValue

from vecall.index.settings import IndexSettings
from vecall.settings_base import SettingsModel


class IndexInfo(SettingsModel):
    """Engine of the index, and the parameters that it was built and tuned with."""

    engine: str
    metric: Literal["inner_product"] = "inner_product"
    storage: Literal["fp16"] = "fp16"
    parameters: dict[str, JsonValue] = Field({}, description="of building and searching; empty for an exact index")
    costs: dict[str, float] = Field({}, description="fields of the planner's cost model, in milliseconds")
    settings: dict[str, JsonValue] = Field({}, description="keys of the [index] section that were set")

    @classmethod
    def of_build(cls, engine: str, parameters: Mapping[str, JsonValue], settings: IndexSettings) -> Self:
        """Describe an index by what it was built with; what was tuned comes later."""
        set_keys = settings.model_dump(mode="json", exclude_unset=True)
        return cls(engine=engine, parameters=dict(parameters), settings=set_keys)
