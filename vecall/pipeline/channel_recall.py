"""What each channel recalls for held-out cases, asked by the code that serves it, of a release in memory.

The release has the vectors of the model that is evaluated, and tables of channels that are built from the training part
alone, as the model and the baselines are: no channel knows a held-out interaction.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall import progress
from vecall.arrays import Rows
from vecall.channels.merge_plan import MergePlan
from vecall.channels.settings import ChannelName, ChannelsSettings
from vecall.data.dataset import Dataset
from vecall.data.ragged import EvalCases, count_rows
from vecall.data.split import TRAIN, Split
from vecall.evaluation.compare import ServedModel
from vecall.evaluation.sampling import sample_cases
from vecall.index.index_info import IndexInfo
from vecall.live.snapshot import Snapshot
from vecall.pipeline.channel_building import build_channel_tables
from vecall.recall.candidate_set import build_candidate_set
from vecall.recall.channels.available import CHANNELS, list_available_channels
from vecall.recall.channels.base import ChannelQuery
from vecall.recall.query import UnknownInputs
from vecall.recall.resolve import ResolvedQuery
from vecall.recall.search import search_candidates
from vecall.release.manifest import Manifest
from vecall.release.release import Release
from vecall.release.users import UserTable

_MAX_SCANNED_PAIRS = 10**10  # users x items, by which fewer users are asked of a large catalogue
_MIN_USERS = 1_000
_WARM_UP_CASES = 3  # asked before the clock runs
_NO_ROWS: Rows = np.empty(0, dtype=np.int64)
_ALL_KNOWN = UnknownInputs()


@dataclass(frozen=True)
class ChannelRankings:
    """What channels recall for n cases.

    Attributes:
        rows: By channel [n, K] int32 rows, best first; -1 after the last.
        milliseconds: By channel [n] time of each query.
        has_vector: [n] whether the user has a vector; popular items replace those of `vector` where not.
    """

    rows: Mapping[ChannelName, Rows]
    milliseconds: Mapping[ChannelName, NDArray[np.float64]]
    has_vector: NDArray[np.bool_]

    def select_rows_to_merge(self, plan: MergePlan) -> Mapping[ChannelName, Rows]:
        """Return the rows that `search_channels` merges: it asks `popular` once where that replaces `vector`."""
        if "vector" not in plan.weights or "popular" not in self.rows:
            return self.rows
        return {**self.rows, "popular": np.where(self.has_vector[:, None], self.rows["popular"], -1)}


@dataclass(frozen=True)
class ChannelRecaller:
    """Asks the channels of a release for held-out cases.

    Attributes:
        snapshot: What is searched.
        served_model: Encodes the users.
        user_features: [U] rows with a column per user feature.
        channels: Channels that the release has and the settings do not turn off, `vector` first.
    """

    snapshot: Snapshot
    served_model: ServedModel
    user_features: pl.DataFrame
    channels: tuple[ChannelName, ...]

    @classmethod
    def build(cls, settings: ChannelsSettings, dataset: Dataset, split: Split, served_model: ServedModel) -> Self:
        """Build the tables of the channels from the training part of a split, and a release of them.

        Args:
            settings: The channels.
            dataset: Items and users.
            split: Its training part is read.
            served_model: The model and its index.
        """
        positives = dataset.interactions.positives
        train = positives.filter(split.positive_parts == TRAIN)
        tables = build_channel_tables(settings, dataset, train, ends_with_positives=True)
        catalogue, index = dataset.catalogue, served_model.index
        manifest = Manifest(
            name="evaluation",
            created=datetime.now(UTC),
            parent=None,
            files={},
            items=index.vectors.size,
            dim=index.vectors.dim,
            id_type=catalogue.items.id_type,
            index=IndexInfo(engine=served_model.engine),
        )
        release = Release(
            manifest=manifest,
            item_ids=catalogue.items,
            index=index,
            search_param_curve=served_model.search_param_curve,
            cost_model=served_model.cost_model,
            attributes=catalogue.item_attributes,
            popularity=count_rows(split.counted_train.values, index.vectors.size).astype(np.float32),
            users=UserTable(catalogue.users, catalogue.user_features, split.train),
            encoder=None,
            golden_queries=None,
            channels=tables,
        )
        channels = [name for name in list_available_channels(release) if getattr(settings, name, None) is not False]
        return cls(Snapshot.from_release(release), served_model, catalogue.user_features, tuple(channels))

    def restrict(self, plan: MergePlan) -> MergePlan:
        """Return a plan without the channels that are not there."""
        return plan.restrict(self.channels)

    def rank(
        self, cases: EvalCases, k: int, *, exclude_seen: bool, channels: Sequence[ChannelName] | None = None
    ) -> ChannelRankings:
        """Ask channels for each of n cases.

        Args:
            cases: n cases.
            k: Rows that each channel is asked for, at least 1.
            exclude_seen: Whether the items of the history are excluded.
            channels: Those that are asked; None for all.
        """
        names = self.channels if channels is None else channels
        queries = self.build_queries(cases, exclude_seen=exclude_seen)
        for query in queries[:_WARM_UP_CASES]:
            self._ask(query, k, names)
        rows = {name: np.full((len(cases), k), -1, dtype=np.int32) for name in names}
        milliseconds = {name: np.zeros(len(cases)) for name in names}
        with progress.track("recalling by channel", len(cases)) as advance:
            for case, query in enumerate(queries):
                for name, (found, seconds) in self._ask(query, k, names).items():
                    rows[name][case, : len(found)] = found
                    milliseconds[name][case] = 1e3 * seconds
                advance(1)
        has_vector = np.array([query.query_matrix is not None for query in queries], dtype=np.bool_)
        return ChannelRankings(rows, milliseconds, has_vector)

    def build_queries(self, cases: EvalCases, *, exclude_seen: bool) -> list[ResolvedQuery]:
        """Return what `resolve_query` would of a request with the history and the features of each case."""
        vectors = self.served_model.encode_users(cases)
        is_unknown = self.served_model.get_unknown_user_mask(cases)
        features = select_user_features(self.user_features, cases)
        queries = []
        for case in range(len(cases)):
            history = cases.histories[case].astype(np.int64)
            queries.append(
                ResolvedQuery(
                    query_matrix=None if is_unknown[case] else vectors[case : case + 1],
                    excluded_rows=np.unique(history) if exclude_seen else _NO_ROWS,
                    fallback="popular" if is_unknown[case] else None,
                    unknown=_ALL_KNOWN,
                    history=history,
                    user_features=features[case] if features.width else None,
                )
            )
        return queries

    def _ask(
        self, resolved_query: ResolvedQuery, k: int, names: Sequence[ChannelName]
    ) -> dict[ChannelName, tuple[Rows, float]]:
        """Return rows and seconds of some channels; `search_channels` asks them in the same order."""
        candidates = build_candidate_set(self.snapshot, resolved_query.excluded_rows, None)
        query = ChannelQuery(self.snapshot, resolved_query, candidates)
        answers: dict[ChannelName, tuple[Rows, float]] = {}
        for name in names:
            start = time.perf_counter()
            if name == "vector":
                rows = search_candidates(self.snapshot, resolved_query.query_matrix, candidates, k).rows
            else:
                rows = CHANNELS[name](query, k)[0]
            answers[name] = rows, time.perf_counter() - start
        return answers


def sample_scanned_cases(cases: EvalCases, n_items: int, max_users: int) -> EvalCases:
    """Return at most `max_users` cases; fewer, but at least 1,000, where scans of N items for them would take too long.

    Args:
        cases: Held-out cases.
        n_items: N.
        max_users: Upper bound.
    """
    return sample_cases(cases, min(max_users, max(_MIN_USERS, _MAX_SCANNED_PAIRS // n_items)))


def select_user_features(user_features: pl.DataFrame, cases: EvalCases) -> pl.DataFrame:
    """Return a row per case with the features of its user, and with its context where it has one."""
    features = user_features[cases.users]
    return features if cases.context is None else features.with_columns(cases.context.get_columns())
