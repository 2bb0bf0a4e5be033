"""The recall stage itself: one release, any number of queries, from any number of threads. No torch."""

import time
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import polars as pl

from vecall.data.vocabulary import Id
from vecall.errors import QueryError
from vecall.recall.filters import mask_of
from vecall.recall.search import Found, find
from vecall.recall.types import Plan, Query, Recalled
from vecall.recall.understand import Ask, understand
from vecall.release.bundle import Release, open_release
from vecall.release.store import Store


class Recaller:
    """Answers queries from one release. A context manager."""

    def __init__(self, release: Release) -> None:
        self._release = release

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing has to be closed: files are mapped and go with the object."""

    @property
    def release(self) -> str:
        """Name of the release that answers."""
        return self._release.name

    def parse_user_id(self, text: str) -> Id:
        """A user id written as text, such as on a command line, in the type that this release's ids have.

        Raises:
            QueryError: ids are integers, and the text is none.
        """
        users = self._release.users
        if users is None or users.ids.id_type == "string":
            return text
        try:
            return int(text)
        except ValueError:
            raise QueryError(f"user_id: ids here are integers, got {text!r}", field="user_id") from None

    def recall(self, query: Query) -> Recalled:
        """The k items that the user most likely wants.

        Returns:
            Exactly k items that pass `where` and are not excluded, or all of them where there are fewer.

        Raises:
            QueryError: the query does not go with this release.
        """
        return self._answer(query)[2]

    def candidates(self, query: Query) -> pl.DataFrame:
        """The same items as a table for ranking: `id`, `score`, `rank` (from 1), `channel` and the attributes.

        Raises:
            QueryError: the query does not go with this release.
        """
        ask, found, answer = self._answer(query)
        channel = "vector" if ask.vector is not None else "popular"
        id_type = pl.Int64 if self._release.items.id_type == "integer" else pl.String
        table = pl.DataFrame(
            {
                "id": pl.Series(answer.ids, dtype=id_type),
                "score": pl.Series(answer.scores, dtype=pl.Float32),
                "rank": np.arange(1, len(answer.ids) + 1),
                "channel": pl.Series([channel] * len(answer.ids), dtype=pl.String),
            }
        )
        return table.hstack(self._release.attributes[found.rows])

    def _answer(self, query: Query) -> tuple[Ask, Found, Recalled]:
        times = [time.perf_counter()]
        ask = understand(query, self._release)
        times.append(time.perf_counter())
        allowed = mask_of(query.where, self._release.attributes) if query.where else None
        times.append(time.perf_counter())
        found = find(self._release, ask, allowed, query.k)
        times.append(time.perf_counter())
        ids = self._release.items.ids(found.rows)
        times.append(time.perf_counter())
        plan = None
        if query.explain:
            stages = zip(("encode", "plan", "search", "merge"), np.diff(times) * 1e3, strict=True)
            plan = Plan(
                path=found.path,
                matches=found.matches,
                excluded=found.matches - found.available,
                delta=0,
                effort=found.effort,
                ms={stage: round(float(ms), 3) for stage, ms in stages},
            )
        answer = Recalled(
            release=self._release.name,
            ids=ids,
            scores=found.scores.tolist(),
            exhausted=len(ids) == found.available,
            fallback=ask.fallback,
            unknown=ask.unknown,
            plan=plan,
        )
        return ask, found, answer


def open_recaller(store: str | Path, *, release: str | None = None) -> Recaller:
    """Open a store for recall, once every byte of the release was verified. Loads no torch.

    Args:
        store: the store's folder.
        release: None is the current one.

    Raises:
        StoreError: there is no such store or release.
        ReleaseRefused: a file is damaged, missing or too many.
    """
    return Recaller(open_release(Store.open(Path(store)), release))
