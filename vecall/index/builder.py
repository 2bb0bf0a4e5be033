"""Building the index that the settings describe; parameters that they leave out are found by measurement."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import JsonValue

from vecall.arrays import HalfVectors, Vectors
from vecall.errors import ConfigError
from vecall.index.base import Index
from vecall.index.dropping import drop_on_error
from vecall.index.engine import BuildContext, Engine, ReleaseDraft
from vecall.index.engines import ENGINES
from vecall.index.index_info import IndexInfo
from vecall.index.sampling import evenly_spaced_rows
from vecall.index.search_params import RecallTarget, TuningPoint
from vecall.index.settings import IndexSettings
from vecall.index.tuning import TuningResult, add_filtered_table, tune, warn_of_missed_targets

logger = logging.getLogger(__name__)

_MIN_APPROXIMATE_ITEMS = 2_000  # below, an exact scan is as fast as any index
_MAX_TRIAL_ITEMS = 20_000  # items on which engines are compared
_MAX_TRIAL_QUERIES = 150  # queries with which engines are compared
_SECOND_ENGINES = {"hnsw": "ivf"}  # of one that misses its target; lists are built in a fraction of a graph's time
_TUNING_SAMPLE_SIZE = 300  # queries; more narrow the confidence interval and cost an exact search each


@dataclass(frozen=True)
class BuiltIndex:
    """An index with its tuning result.

    Attributes:
        index: index over all vectors.
        engine: name of its engine.
        tuning: measured search parameters; None for an exact index, which has none.
        build_params: what it was built with, see `EngineBuild.parameters`.
    """

    index: Index
    engine: str
    tuning: TuningResult | None
    build_params: Mapping[str, JsonValue]


def build_index(
    vectors: Vectors | HalfVectors,
    queries: Vectors | None,
    settings: IndexSettings,
    draft: ReleaseDraft | None = None,
) -> BuiltIndex:
    """Choose an engine, build the index over all vectors and tune its search parameters.

    Args:
        vectors: [N, D] item vectors.
        queries: [Q, D] real user vectors, Q >= 2. None uses item vectors instead.
        settings: parameters that are set are kept; the others are found.
        draft: the release that the index is for; without one, an exact index replaces that of a remote engine.

    Raises:
        DataError: the vectors are empty, of a wrong type or shape, or not representable in half precision.
        ConfigError: a parameter belongs to another engine.
        EngineUnavailableError: the engine's server does not answer.
    """
    engine, context = _find_engine(settings), BuildContext(settings, draft)
    if len(vectors) < (_MIN_APPROXIMATE_ITEMS if engine is None else 2):
        engine = ENGINES["exact"]
    elif engine is not None and engine.is_remote and draft is None:
        logger.info("engine %s keeps published releases only: searching exactly", engine.name)
        engine = ENGINES["exact"]
    if engine is not None and engine.is_exact:
        return BuiltIndex(engine.build(vectors, context).index, engine.name, None, {})
    if queries is None:
        logger.info("no user vectors: tuning the index on item vectors, whose neighbours are closer")
    tuning_queries = _subsample(vectors if queries is None else queries, _TUNING_SAMPLE_SIZE).astype(np.float32)
    if engine is not None:
        return _build_and_tune(engine, vectors, tuning_queries, context)
    engine = _select_engine(vectors, tuning_queries, settings)
    second = ENGINES.get(_SECOND_ENGINES.get(engine.name, ""))
    if second is None:
        return _build_and_tune(engine, vectors, tuning_queries, context)
    built = _build_and_tune(engine, vectors, tuning_queries, context, is_provisional=True)
    return _replace_if_missed(built, second, vectors, tuning_queries, context)


def _build_and_tune(
    engine: Engine,
    vectors: Vectors | HalfVectors,
    queries: Vectors,
    context: BuildContext,
    *,
    is_provisional: bool = False,
) -> BuiltIndex:
    """Build an index and tune it; a provisional one not for filtered results, and without warnings."""
    settings = context.settings
    build = engine.build(vectors, context)
    with drop_on_error(IndexInfo.of_build(engine.name, build.parameters, settings), context.draft):
        tuning = tune(
            build.index,
            queries,
            _limit_ks(settings.ks, engine.max_k),
            RecallTarget(settings.target_recall, settings.target_worst),
            sweep=engine.sweep,
            max_latency_ms=settings.latency_ms,
            fixed_width=engine.get_fixed_width(settings),
            tune_filters=not is_provisional,
            warn_if_missed=not is_provisional,
        )
    return BuiltIndex(build.index, engine.name, tuning, build.parameters)


def _replace_if_missed(
    built: BuiltIndex, second: Engine, vectors: Vectors | HalfVectors, queries: Vectors, context: BuildContext
) -> BuiltIndex:
    """Return an index of the second engine if the first one misses its target over all vectors and that one is better.

    A trial on a sample does not show how a graph fares over all of them.

    Args:
        built: provisional index of the first engine.
        second: the other engine.
        vectors: as for `build_index`.
        queries: those to tune on.
        context: of the build.
    """
    target = RecallTarget(context.settings.target_recall, context.settings.target_worst)
    tuning = built.tuning
    assert tuning is not None  # noqa: S101 - for mypy: no engine that is chosen is exact
    if misses := _rate(tuning.best_points, target)[0]:
        logger.info(
            "%s misses its target at %d of %d ks over all %d items: trying %s",
            built.engine, misses, len(tuning.best_points), len(vectors), second.name,
        )  # fmt: skip
        other = _build_and_tune(second, vectors, queries, context, is_provisional=True)
        assert other.tuning is not None  # noqa: S101 - likewise
        if _rate(other.tuning.best_points, target) < _rate(tuning.best_points, target):
            built, tuning = other, other.tuning
    warn_of_missed_targets(tuning, target, context.settings.latency_ms)
    return replace(built, tuning=add_filtered_table(tuning, built.index, queries, target))


def _limit_ks(ks: tuple[int, ...], max_k: int | None) -> tuple[int, ...]:
    return ks if max_k is None else tuple(k for k in ks if k <= max_k) or (max_k,)


def _find_engine(settings: IndexSettings) -> Engine | None:
    """Engine that the settings name, or that the parameters imply which are set; None for "auto".

    Raises:
        ConfigError: a parameter belongs to another engine.
    """
    keys_by_engine = {engine.name: engine.settings_keys for engine in ENGINES.values() if engine.settings_keys}
    known_keys = dict.fromkeys(key for keys in keys_by_engine.values() for key in keys)
    set_keys = [key for key in known_keys if getattr(settings, key) is not None]
    if settings.engine == "auto" and not set_keys:
        return None
    local_engines = [engine for engine in ENGINES.values() if not engine.is_remote]
    candidates = local_engines if settings.engine == "auto" else [ENGINES[settings.engine]]
    for engine in candidates:
        if set(set_keys) <= set(engine.settings_keys):
            return engine
    keys = [key for key in set_keys if len(candidates) > 1 or key not in candidates[0].settings_keys]
    owners = "; ".join(f"{name} has {', '.join(engine_keys)}" for name, engine_keys in keys_by_engine.items())
    raise ConfigError(
        f"index.{keys[0]}: {', '.join(keys)} cannot be combined with engine {settings.engine!r}: {owners}. Remove the "
        "keys of the other engine"
    )


def _select_engine(vectors: Vectors | HalfVectors, queries: Vectors, settings: IndexSettings) -> Engine:
    """Fastest engine on a sample of the items, among those that miss the fewest targets."""
    trial_vectors = _subsample(vectors, _MAX_TRIAL_ITEMS)
    trial_queries = _subsample(queries, _MAX_TRIAL_QUERIES).astype(np.float32)
    engines = [engine for engine in ENGINES.values() if not engine.is_exact and not engine.is_remote]
    results = [_benchmark_engine(engine, trial_vectors, trial_queries, settings) for engine in engines]
    for engine, (misses, ms) in zip(engines, results, strict=True):
        logger.info(
            "trial on %d items: %s takes %.3f ms, target missed at %d of %d ks",
            len(trial_vectors), engine.name, ms, misses, len(settings.ks),
        )  # fmt: skip
    return engines[min(range(len(engines)), key=lambda position: results[position])]


def _benchmark_engine(
    engine: Engine, vectors: Vectors | HalfVectors, queries: Vectors, settings: IndexSettings
) -> tuple[int, float]:
    """Number of ks at which the target is missed, and the geometric mean over ks of the median milliseconds."""
    index = engine.build(vectors, BuildContext(settings)).index
    target = RecallTarget(settings.target_recall, settings.target_worst)
    points = tune(
        index, queries, settings.ks, target, sweep=engine.sweep, tune_filters=False, warn_if_missed=False
    ).best_points
    return _rate(points, target)


def _rate(points: Sequence[TuningPoint], target: RecallTarget) -> tuple[int, float]:
    """Number of ks at which the target is missed, and the geometric mean over ks of the median milliseconds."""
    misses = sum(not point.reaches_with_confidence(target) for point in points)
    return misses, math.exp(float(np.mean([math.log(point.p50_ms) for point in points])))


def _subsample(vectors: Vectors | HalfVectors, max_rows: int) -> Vectors | HalfVectors:
    """Up to `max_rows` of the vectors, evenly spaced."""
    return vectors if len(vectors) <= max_rows else vectors[evenly_spaced_rows(len(vectors), max_rows)]
