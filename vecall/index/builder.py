"""Building the index that the settings describe; parameters that they leave out are found by measurement."""

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
from vecall.index.sampling import evenly_spaced_rows
from vecall.index.search_params import RecallTarget
from vecall.index.settings import IndexSettings
from vecall.index.tuning import TuningResult, tune

logger = logging.getLogger(__name__)

_MIN_APPROXIMATE_ITEMS = 2_000  # below, an exact scan is as fast as any index
_MAX_TRIAL_ITEMS = 20_000  # items on which engines are compared
_MAX_TRIAL_QUERIES = 150  # queries with which engines are compared
_TUNING_SAMPLE_SIZE = 300  # queries; more narrow the confidence interval and cost an exact search each
_DEFAULT_M, _DEFAULT_EF_CONSTRUCTION = 16, 200


@dataclass(frozen=True)
class IndexSpec:
    """Engine and build parameters of an approximate index.

    Attributes:
        engine: "hnsw" or "ivf".
        M: hnsw: links per vector and level.
        ef_construction: hnsw: candidates examined for a vector's links.
    """

    engine: str
    M: int = _DEFAULT_M
    ef_construction: int = _DEFAULT_EF_CONSTRUCTION

    def build(self, vectors: Vectors | HalfVectors, settings: IndexSettings) -> Index:
        """Build the index over [N, D] vectors; parameters set in `settings` take precedence."""
        if self.engine == "ivf":
            return IvfPqIndex.build(vectors, nlist=settings.nlist)
        m, ef_construction = settings.M or self.M, settings.ef_construction or self.ef_construction
        return HnswIndex.build(vectors, m=m, ef_construction=ef_construction)


@dataclass(frozen=True)
class BuiltIndex:
    """An index with its tuning result.

    Attributes:
        index: index over all vectors.
        tuning: measured search parameters; None for an exact index, which has none.
        build_params: parameters that the index was built with, by their name in the settings.
    """

    index: Index
    tuning: TuningResult | None
    build_params: dict[str, int]

    @property
    def engine(self) -> str:
        """Name of the engine: `exact`, `hnsw` or `ivf`."""
        return {ExactIndex: "exact", HnswIndex: "hnsw", IvfPqIndex: "ivf"}[type(self.index)]


def build_index(vectors: Vectors | HalfVectors, queries: Vectors | None, settings: IndexSettings) -> BuiltIndex:
    """Choose an engine, build the index over all vectors and tune its search parameters.

    Args:
        vectors: [N, D] item vectors.
        queries: [Q, D] real user vectors, Q >= 2. None uses item vectors instead.
        settings: parameters that are set are kept; the others are found.

    Raises:
        DataError: the vectors are empty, of a wrong type or shape, or not representable in half precision.
        ConfigError: a parameter belongs to another engine.
    """
    engine = _resolve_engine(settings)
    if engine == "exact" or (engine == "auto" and len(vectors) < _MIN_APPROXIMATE_ITEMS) or len(vectors) < 2:
        return BuiltIndex(ExactIndex.build(vectors), None, {})
    if queries is None:
        logger.info("no user vectors: tuning the index on item vectors, whose neighbours are closer")
    tuning_queries = _subsample(vectors if queries is None else queries, _TUNING_SAMPLE_SIZE).astype(np.float32)
    spec = _select_spec(engine, vectors, tuning_queries, settings)
    index = spec.build(vectors, settings)
    tuning = tune(
        index,
        tuning_queries,
        settings.ks,
        RecallTarget(settings.target_recall, settings.target_worst),
        max_latency_ms=settings.latency_ms,
        fixed_width=settings.nprobe if spec.engine == "ivf" else settings.ef,
    )
    if isinstance(index, IvfPqIndex):
        return BuiltIndex(index, tuning, {"nlist": index.nlist})
    m, ef_construction = settings.M or spec.M, settings.ef_construction or spec.ef_construction
    return BuiltIndex(index, tuning, {"M": m, "ef_construction": ef_construction})


def _resolve_engine(settings: IndexSettings) -> str:
    """Engine that the settings name, or that one of its parameters implies; else "auto"."""
    hnsw_keys = [name for name in ("M", "ef_construction", "ef") if getattr(settings, name) is not None]
    ivf_keys = [name for name in ("nlist", "nprobe") if getattr(settings, name) is not None]
    wrong_keys = {"hnsw": ivf_keys, "ivf": hnsw_keys, "exact": hnsw_keys + ivf_keys}.get(settings.engine, [])
    if wrong_keys or (hnsw_keys and ivf_keys):
        keys = wrong_keys or hnsw_keys + ivf_keys
        raise ConfigError(
            f"index.{keys[0]}: {', '.join(keys)} cannot be combined with engine {settings.engine!r}; M, "
            "ef_construction and ef belong to hnsw, nlist and nprobe to ivf: remove the keys of the other engine"
        )
    if settings.engine != "auto":
        return settings.engine
    return "hnsw" if hnsw_keys else "ivf" if ivf_keys else "auto"


def _select_spec(engine: str, vectors: Vectors | HalfVectors, queries: Vectors, settings: IndexSettings) -> IndexSpec:
    """Spec of the engine; for "auto" the fastest on a sample of the items, among those that miss the fewest targets."""
    if engine != "auto":
        return IndexSpec(engine)
    trial_vectors = _subsample(vectors, _MAX_TRIAL_ITEMS)
    trial_queries = _subsample(queries, _MAX_TRIAL_QUERIES).astype(np.float32)
    specs = [IndexSpec("hnsw"), IndexSpec("ivf")]
    results = [_benchmark_spec(spec, trial_vectors, trial_queries, settings) for spec in specs]
    for spec, (misses, ms) in zip(specs, results, strict=True):
        logger.info(
            "trial on %d items: %s takes %.3f ms, target missed at %d of %d ks",
            len(trial_vectors), spec.engine, ms, misses, len(settings.ks),
        )  # fmt: skip
    return specs[min(range(len(specs)), key=lambda position: results[position])]


def _benchmark_spec(
    spec: IndexSpec, vectors: Vectors | HalfVectors, queries: Vectors, settings: IndexSettings
) -> tuple[int, float]:
    """Number of ks at which the target is missed, and the geometric mean over ks of the median milliseconds."""
    index = spec.build(vectors, settings)
    target = RecallTarget(settings.target_recall, settings.target_worst)
    points = tune(index, queries, settings.ks, target, tune_filters=False, warn_if_missed=False).best_points
    misses = sum(not point.reaches_with_confidence(target) for point in points)
    return misses, math.exp(float(np.mean([math.log(point.p50_ms) for point in points])))


def _subsample(vectors: Vectors | HalfVectors, max_rows: int) -> Vectors | HalfVectors:
    """Up to `max_rows` of the vectors, evenly spaced."""
    return vectors if len(vectors) <= max_rows else vectors[evenly_spaced_rows(len(vectors), max_rows)]
