"""The `[index]` section of vecall.toml."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator

from vecall.index.milvus.settings import MilvusSettings
from vecall.settings_base import SettingsModel


class IndexSettings(SettingsModel):
    """Engine of the index, and the recall and latency to reach. Parameters left out are found by measurement."""

    engine: Literal["auto", "hnsw", "ivf", "exact", "milvus"] = Field(
        "auto",
        description="auto: the fastest that reaches target_recall, by measurement; hnsw: graph; ivf: inverted file; "
        "exact: scan of all vectors; milvus: graph on a Milvus server",
    )
    target_recall: float = Field(0.98, gt=0, le=1, description="mean ANN recall at each of `ks`")
    target_worst: float = Field(0.9, ge=0, le=1, description="ANN recall of the worst 1 % of queries, at each of `ks`")
    ks: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (100, 500), min_length=1, description="values of k to tune for, ascending"
    )
    latency_ms: float = Field(10.0, gt=0, description="maximum median milliseconds of a search of one query")
    M: int | None = Field(None, ge=2, le=256, description="hnsw, milvus: links per vector and level")
    ef_construction: int | None = Field(
        None, ge=1, le=10_000, description="hnsw, milvus: candidates examined for a new link"
    )
    ef: int | None = Field(None, ge=1, description="hnsw, milvus: size of a search's candidate list")
    nlist: int | None = Field(None, ge=1, description="ivf: number of inverted lists")
    nprobe: int | None = Field(
        None, ge=1, description="ivf: lists that a search scans; if left out, each query scans those that it needs"
    )
    milvus: MilvusSettings = MilvusSettings()
    storage: Literal["fp16"] = Field("fp16", description="format of the stored vectors, which results are scored by")

    def resolve_paths(self, base_directory: Path) -> Self:
        """Return the settings with relative paths resolved against `base_directory`."""
        if not self.milvus.ca:
            return self
        ca = str(base_directory / self.milvus.ca)
        return self.model_copy(update={"milvus": self.milvus.model_copy(update={"ca": ca})})

    @field_validator("ks")
    @classmethod
    def _check_ascending(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        if list(ks) != sorted(set(ks)):
            raise ValueError(f"ks is {list(ks)}; expected distinct numbers in ascending order, such as [100, 500]")
        return ks
