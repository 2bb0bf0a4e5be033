"""vecall (矢量召回): the vector recall stage of recommender systems.

All public names are here. Each is imported on first access, so that only `fit`, `publish`, `publish_towers`,
`DenseTower` and `evaluate` load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from vecall.runtime.huge_pages import use_huge_pages
from vecall.runtime.missing_modules import explain_missing_module
from vecall.runtime.openmp import limit_spinning

if TYPE_CHECKING:
    from vecall.client import Client
    from vecall.config import Config, load_config
    from vecall.data.table_encoder import TableEncoder, fit_encoders
    from vecall.errors import (
        ConfigError,
        DataError,
        ExportError,
        InvalidReleaseError,
        QueryError,
        StoreError,
        TrainingError,
        VecallError,
    )
    from vecall.index.settings import IndexSettings
    from vecall.pipeline.evaluate import evaluate
    from vecall.pipeline.fit import fit
    from vecall.pipeline.publish import publish
    from vecall.pipeline.publish_towers import publish_towers
    from vecall.pipeline.publish_vectors import publish_vectors
    from vecall.recall.query import Query, Recalled
    from vecall.recall.recaller import Recaller, open_recaller
    from vecall.recall.recommend_query import Recommended
    from vecall.towers.dense import DenseTower

__version__ = "0.1.0"

_LAZY_IMPORTS = {
    "Client": "vecall.client",
    "Config": "vecall.config",
    "ConfigError": "vecall.errors",
    "DataError": "vecall.errors",
    "DenseTower": "vecall.towers.dense",
    "ExportError": "vecall.errors",
    "IndexSettings": "vecall.index.settings",
    "InvalidReleaseError": "vecall.errors",
    "Query": "vecall.recall.query",
    "QueryError": "vecall.errors",
    "Recalled": "vecall.recall.query",
    "Recaller": "vecall.recall.recaller",
    "Recommended": "vecall.recall.recommend_query",
    "StoreError": "vecall.errors",
    "TableEncoder": "vecall.data.table_encoder",
    "TrainingError": "vecall.errors",
    "VecallError": "vecall.errors",
    "evaluate": "vecall.pipeline.evaluate",
    "fit": "vecall.pipeline.fit",
    "fit_encoders": "vecall.data.table_encoder",
    "load_config": "vecall.config",
    "open_recaller": "vecall.recall.recaller",
    "publish": "vecall.pipeline.publish",
    "publish_towers": "vecall.pipeline.publish_towers",
    "publish_vectors": "vecall.pipeline.publish_vectors",
}

__all__ = [
    "Client",
    "Config",
    "ConfigError",
    "DataError",
    "DenseTower",
    "ExportError",
    "IndexSettings",
    "InvalidReleaseError",
    "Query",
    "QueryError",
    "Recalled",
    "Recaller",
    "Recommended",
    "StoreError",
    "TableEncoder",
    "TrainingError",
    "VecallError",
    "evaluate",
    "fit",
    "fit_encoders",
    "load_config",
    "open_recaller",
    "publish",
    "publish_towers",
    "publish_vectors",
]


def __getattr__(name: str) -> object:
    """Import a public name on first access (PEP 562)."""
    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"module 'vecall' has no attribute {name!r}")
    limit_spinning()  # before faiss or torch is loaded
    use_huge_pages()
    try:
        return getattr(import_module(_LAZY_IMPORTS[name]), name)
    except ModuleNotFoundError as error:
        message = explain_missing_module(error, needed_by=f"vecall.{name}", extra="train")
        raise ImportError(message, name=error.name) from error


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
