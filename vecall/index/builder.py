"""An index as its settings say; what they leave out is found by measuring."""

import logging
import math
from dataclasses import dataclass

import numpy as np

from vecall.errors import ConfigError
from vecall.index.base import Codes, Index, Vectors
from vecall.index.exact import ExactIndex
from vecall.index.hnsw import HnswIndex
from vecall.index.ivf import CellsIndex
from vecall.index.settings import IndexSettings
from vecall.index.tuning import Tuning, tune

logger = logging.getLogger(__name__)

_SCANNED_BELOW = 2_000  # items; a scan of so few is as fast as any index, and exact
_TRIED_ON = 20_000  # items that structures are compared on
_TRIED_WITH = 150  # queries likewise
_TUNED_WITH = 300  # queries; more narrow the confidence interval and cost an exact search each
_USUAL_M, _USUAL_EF_CONSTRUCTION = 16, 200


@dataclass(frozen=True)
class Structure:
    """An approximate index in words.

    Attributes:
        engine: "hnsw" or "cells".
        M: hnsw: links per vector and level.
        ef_construction: hnsw: places looked at for a vector's links.
    """

    engine: str
    M: int = _USUAL_M
    ef_construction: int = _USUAL_EF_CONSTRUCTION

    def build(self, vectors: Vectors | Codes, settings: IndexSettings) -> Index:
        """The index; what the settings give stands above what was found."""
        if self.engine == "cells":
            return CellsIndex.build(vectors, cells=settings.cells)
        m, ef_construction = settings.M or self.M, settings.ef_construction or self.ef_construction
        return HnswIndex.build(vectors, m=m, ef_construction=ef_construction)


@dataclass(frozen=True)
class Built:
    """An index and what was found about it.

    Attributes:
        index: over all vectors.
        tuning: None where there is nothing to tune: the index is exact.
        parameters: what it was built with.
    """

    index: Index
    tuning: Tuning | None
    parameters: dict[str, int]

    @property
    def engine(self) -> str:
        """`exact`, `hnsw` or `cells`."""
        return {ExactIndex: "exact", HnswIndex: "hnsw", CellsIndex: "cells"}[type(self.index)]


def build_index(vectors: Vectors | Codes, queries: Vectors | None, settings: IndexSettings) -> Built:
    """Choose a structure, build it over all vectors, find its effort.

    Args:
        vectors: [N, D].
        queries: [Q, D] real user vectors, at least 2. Without, item vectors stand in for them.
        settings: what is given is kept.

    Raises:
        DataError: the vectors are empty, of another type or shape, or hold what half precision cannot.
        ConfigError: a parameter of another engine is given.
    """
    engine = _engine_asked(settings)
    if engine == "exact" or (engine == "auto" and len(vectors) < _SCANNED_BELOW) or len(vectors) < 2:
        return Built(ExactIndex.build(vectors), None, {})
    if queries is None:
        logger.info("no user vectors are given, so effort is found on item vectors, whose neighbours are nearer")
    asked = _some(vectors if queries is None else queries, _TUNED_WITH).astype(np.float32)
    structure = _chosen(engine, vectors, asked, settings)
    index = structure.build(vectors, settings)
    width = settings.probes if structure.engine == "cells" else settings.ef
    found = tune(index, asked, settings.ks, settings.target_recall, latency_ms=settings.latency_ms, width=width)
    if isinstance(index, CellsIndex):
        return Built(index, found, {"cells": index.cells})
    m, ef_construction = settings.M or structure.M, settings.ef_construction or structure.ef_construction
    return Built(index, found, {"M": m, "ef_construction": ef_construction})


def _engine_asked(settings: IndexSettings) -> str:
    """The engine that is given, by its name or by one of its parameters."""
    of_graph = [name for name in ("M", "ef_construction", "ef") if getattr(settings, name) is not None]
    of_cells = [name for name in ("cells", "probes") if getattr(settings, name) is not None]
    wrong = {"hnsw": of_cells, "cells": of_graph, "exact": of_graph + of_cells}.get(settings.engine, [])
    if wrong or (of_graph and of_cells):
        given = wrong or of_graph + of_cells
        raise ConfigError(
            f"index.{given[0]}: {', '.join(given)} cannot be given with engine {settings.engine!r}: M, ef_construction "
            "and ef are of hnsw, cells and probes of cells"
        )
    if settings.engine != "auto":
        return settings.engine
    return "hnsw" if of_graph else "cells" if of_cells else "auto"


def _chosen(engine: str, vectors: Vectors | Codes, queries: Vectors, settings: IndexSettings) -> Structure:
    """The structure that answers a sample of the items fastest at the wanted ANN recall."""
    if engine == "hnsw":
        return Structure("hnsw")
    if engine == "cells":
        return Structure("cells")
    sample = _some(vectors, _TRIED_ON)
    contenders = [Structure("hnsw"), Structure("cells")]
    results = [_try(one, sample, _some(queries, _TRIED_WITH).astype(np.float32), settings) for one in contenders]
    best = min(range(len(contenders)), key=lambda place: results[place])
    for structure, (misses, ms) in zip(contenders, results, strict=True):
        logger.info("on %d items %s: %.3f ms, %d of ks missed", len(sample), structure, ms, misses)
    return contenders[best]


def _try(
    structure: Structure, vectors: Vectors | Codes, queries: Vectors, settings: IndexSettings
) -> tuple[int, float]:
    """How many of the ks stay below the target, and the geometric mean of the median milliseconds."""
    index = structure.build(vectors, settings)
    points = tune(index, queries, settings.ks, settings.target_recall, quiet=True).points
    misses = sum(point.recall - point.recall_ci95 < settings.target_recall for point in points)
    return misses, math.exp(float(np.mean([math.log(point.p50_ms) for point in points])))


def _some(vectors: Vectors | Codes, most: int) -> Vectors | Codes:
    """Up to `most` of them, evenly over all: of equal input always the same."""
    if len(vectors) <= most:
        return vectors
    return vectors[np.linspace(0, len(vectors) - 1, most).astype(np.int64)]
