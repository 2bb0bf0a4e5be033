"""An index as its settings say; what they leave out is found by measuring."""

import logging
import math
from dataclasses import dataclass

import numpy as np

from vecall.arrays import HalfVectors, Vectors
from vecall.errors import ConfigError
from vecall.index.base import Index
from vecall.index.exact import ExactIndex
from vecall.index.hnsw import HnswIndex
from vecall.index.ivf import IvfPqIndex
from vecall.index.settings import IndexSettings
from vecall.index.tuning import TuningResult, tune

logger = logging.getLogger(__name__)

_MIN_APPROXIMATE_ITEMS = 2_000  # items; a scan of so few is as fast as any index, and exact
_MAX_TRIAL_ITEMS = 20_000  # items that structures are compared on
_MAX_TRIAL_QUERIES = 150  # queries likewise
_TUNING_SAMPLE_SIZE = 300  # queries; more narrow the confidence interval and cost an exact search each
_DEFAULT_M, _DEFAULT_EF_CONSTRUCTION = 16, 200


@dataclass(frozen=True)
class IndexSpec:
    """An approximate index in words.

    Attributes:
        engine: "hnsw" or "ivf".
        M: hnsw: links per vector and level.
        ef_construction: hnsw: places looked at for a vector's links.
    """

    engine: str
    M: int = _DEFAULT_M
    ef_construction: int = _DEFAULT_EF_CONSTRUCTION

    def build(self, vectors: Vectors | HalfVectors, settings: IndexSettings) -> Index:
        """The index; what the settings give stands above what was found."""
        if self.engine == "ivf":
            return IvfPqIndex.build(vectors, nlist=settings.nlist)
        m, ef_construction = settings.M or self.M, settings.ef_construction or self.ef_construction
        return HnswIndex.build(vectors, m=m, ef_construction=ef_construction)


@dataclass(frozen=True)
class BuiltIndex:
    """An index and what was found about it.

    Attributes:
        index: over all vectors.
        tuning: None where there is nothing to tune: the index is exact.
        build_params: what it was built with.
    """

    index: Index
    tuning: TuningResult | None
    build_params: dict[str, int]

    @property
    def engine(self) -> str:
        """`exact`, `hnsw` or `cells`."""
        return {ExactIndex: "exact", HnswIndex: "hnsw", IvfPqIndex: "ivf"}[type(self.index)]


def build_index(vectors: Vectors | HalfVectors, queries: Vectors | None, settings: IndexSettings) -> BuiltIndex:
    """Choose a structure, build it over all vectors, find its effort.

    Args:
        vectors: [N, D].
        queries: [Q, D] real user vectors, at least 2. Without, item vectors stand in for them.
        settings: what is given is kept.

    Raises:
        DataError: the vectors are empty, of another type or shape, or hold what half precision cannot.
        ConfigError: a parameter of another engine is given.
    """
    engine = _resolve_engine(settings)
    if engine == "exact" or (engine == "auto" and len(vectors) < _MIN_APPROXIMATE_ITEMS) or len(vectors) < 2:
        return BuiltIndex(ExactIndex.build(vectors), None, {})
    if queries is None:
        logger.info("no user vectors are given, so effort is found on item vectors, whose neighbours are nearer")
    asked = _subsample(vectors if queries is None else queries, _TUNING_SAMPLE_SIZE).astype(np.float32)
    structure = _select_spec(engine, vectors, asked, settings)
    index = structure.build(vectors, settings)
    width = settings.nprobe if structure.engine == "ivf" else settings.ef
    found = tune(
        index, asked, settings.ks, settings.target_recall, max_latency_ms=settings.latency_ms, fixed_width=width
    )
    if isinstance(index, IvfPqIndex):
        return BuiltIndex(index, found, {"nlist": index.nlist})
    m, ef_construction = settings.M or structure.M, settings.ef_construction or structure.ef_construction
    return BuiltIndex(index, found, {"M": m, "ef_construction": ef_construction})


def _resolve_engine(settings: IndexSettings) -> str:
    """The engine that is given, by its name or by one of its parameters."""
    hnsw_keys = [name for name in ("M", "ef_construction", "ef") if getattr(settings, name) is not None]
    ivf_keys = [name for name in ("nlist", "nprobe") if getattr(settings, name) is not None]
    wrong = {"hnsw": ivf_keys, "ivf": hnsw_keys, "exact": hnsw_keys + ivf_keys}.get(settings.engine, [])
    if wrong or (hnsw_keys and ivf_keys):
        given = wrong or hnsw_keys + ivf_keys
        raise ConfigError(
            f"index.{given[0]}: {', '.join(given)} cannot be given with engine {settings.engine!r}: M, ef_construction "
            "and ef are of hnsw, nlist and nprobe of ivf"
        )
    if settings.engine != "auto":
        return settings.engine
    return "hnsw" if hnsw_keys else "ivf" if ivf_keys else "auto"


def _select_spec(engine: str, vectors: Vectors | HalfVectors, queries: Vectors, settings: IndexSettings) -> IndexSpec:
    """The structure that answers a sample of the items fastest at the wanted ANN recall."""
    if engine == "hnsw":
        return IndexSpec("hnsw")
    if engine == "ivf":
        return IndexSpec("ivf")
    sample = _subsample(vectors, _MAX_TRIAL_ITEMS)
    contenders = [IndexSpec("hnsw"), IndexSpec("ivf")]
    results = [
        _benchmark_spec(one, sample, _subsample(queries, _MAX_TRIAL_QUERIES).astype(np.float32), settings)
        for one in contenders
    ]
    best = min(range(len(contenders)), key=lambda place: results[place])
    for structure, (misses, ms) in zip(contenders, results, strict=True):
        logger.info("on %d items %s: %.3f ms, %d of ks missed", len(sample), structure, ms, misses)
    return contenders[best]


def _benchmark_spec(
    spec: IndexSpec, vectors: Vectors | HalfVectors, queries: Vectors, settings: IndexSettings
) -> tuple[int, float]:
    """How many of the ks stay below the target, and the geometric mean of the median milliseconds."""
    index = spec.build(vectors, settings)
    points = tune(index, queries, settings.ks, settings.target_recall, is_trial=True).best_points
    misses = sum(point.recall - point.recall_ci95 < settings.target_recall for point in points)
    return misses, math.exp(float(np.mean([math.log(point.p50_ms) for point in points])))


def _subsample(vectors: Vectors | HalfVectors, max_rows: int) -> Vectors | HalfVectors:
    """Up to `max_rows` of them, evenly over all: of equal input always the same."""
    if len(vectors) <= max_rows:
        return vectors
    return vectors[np.linspace(0, len(vectors) - 1, max_rows).astype(np.int64)]
