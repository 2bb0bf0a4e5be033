"""What each page shows: the context of its template."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vecall.arrays import Rows
from vecall.errors import EngineUnavailableError, QueryError
from vecall.live.snapshot import Snapshot
from vecall.recall.conditions import FILTER_OPS
from vecall.recall.engine_fallback import DEGRADED_ENGINE
from vecall.recall.query import Query
from vecall.recall.recommend_query import DEFAULT_CANDIDATES, RecommendRequest
from vecall.service.execution import RequestDeadline
from vecall.service.recall_service import RecallService
from vecall.service.ui.api_examples import CurlExamples
from vecall.service.ui.attributes import describe_attributes
from vecall.service.ui.form import ExploreForm, QueryParams, apply_row_buttons, parse_item_id
from vecall.service.ui.presenters import (
    ItemCard,
    build_item_cards,
    find_ids_with_prefix,
    sample_ids,
    search_items,
    suggest_items,
)
from vecall.service.ui.release_cards import build_release_cards
from vecall.service.ui.result_lists import build_result_lists

_MAX_SUGGESTIONS, _NEIGHBOR_COUNT, _MAX_HISTORY_CARDS = 12, 24, 20
_MIN_CHART_MS = 0.001  # avoids a division by zero

TemplateContext = dict[str, Any]


@dataclass(frozen=True)
class PageRequest:
    """A request for a page.

    Attributes:
        query_params: of its URL.
        base_url: scheme and host as the browser knows them, without a slash at the end.
        deadline: of the request.
    """

    query_params: QueryParams
    base_url: str
    deadline: RequestDeadline


ContextBuilder = Callable[[PageRequest], TemplateContext]


class PageContexts:
    """Builds the template context of each page.

    Args:
        service: whose items, users and releases are shown.
        get_openapi_document: returns the document that the API page shows.
        has_keys: whether the service needs API keys.
    """

    def __init__(
        self, service: RecallService, get_openapi_document: Callable[[], dict[str, Any]], *, has_keys: bool
    ) -> None:
        self._service, self._get_openapi_document, self._has_keys = service, get_openapi_document, has_keys

    def suggest_user_ids(self, prefix: str) -> list[int | str]:
        """Known users whose id starts with a prefix; a sample of all users for an empty one."""
        users = self._service.snapshot.release.users
        if users is None:
            return []
        if not prefix:
            return sample_ids(users.ids, _MAX_SUGGESTIONS)
        return find_ids_with_prefix(users.ids, prefix, _MAX_SUGGESTIONS)

    def build_explore(self, request: PageRequest) -> TemplateContext:
        """The form, and the result of its query."""
        query_params, snapshot = apply_row_buttons(request.query_params), self._service.snapshot
        form = ExploreForm.from_query_params(query_params)
        context: TemplateContext = {
            "query_params": query_params,
            "form": form,
            "attributes": describe_attributes(snapshot.release.attributes),
            "filter_ops": FILTER_OPS,
            "empty_rows": 2 if "add" in request.query_params else 1,
            "user_ids": self.suggest_user_ids(""),
            "has_towers": snapshot.release.encoder is not None,
            "result_cards": None,
            "final_cards": None,
            "channel_lists": [],
            "error": None,
        }
        if form.has_query:
            try:
                query = form.to_query(snapshot, self._service.settings.limits)
                context |= self._build_result(query, request.deadline)
            except (QueryError, EngineUnavailableError) as error:
                context["error"] = str(error)
        return context

    def _build_result(self, query: Query, deadline: RequestDeadline) -> TemplateContext:
        """What was recalled, by each channel if there are several, and the final list if there is a ranker."""
        final = None
        if self._service.recaller.ranker is not None:
            candidate_count = min(DEFAULT_CANDIDATES, self._service.settings.limits.max_k)
            final = self._service.run_recommendation(RecommendRequest(query, query.k, candidate_count), deadline)
        recall = self._service.run_query(query, deadline) if final is None else final.recall
        snapshot = recall.snapshot
        history = _find_history_rows(snapshot, query)
        newest_first = history[history >= 0][::-1]
        stage_ms = {"queue": deadline.queue_ms, **recall.stage_ms} | ({} if final is None else {"rank": final.rank_ms})
        longest_ms = max(*stage_ms.values(), _MIN_CHART_MS)
        return {
            **build_result_lists(recall, final, query.k),
            "history_cards": build_item_cards(snapshot, newest_first[:_MAX_HISTORY_CARDS]),
            "history_length": len(newest_first),
            "result": recall.answer if final is None else final.answer,
            "candidate_count": len(recall.search_result.rows),
            "stages": [(stage, ms, 100 * ms / longest_ms) for stage, ms in stage_ms.items()],
            "total_ms": sum(stage_ms.values()),
        }

    def build_items(self, request: PageRequest) -> TemplateContext:
        """Items whose title matches a text, an item with its neighbors and related items, or else popular items."""
        snapshot = self._service.snapshot
        text, id_text = ((request.query_params.get(name) or [""])[0] for name in ("q", "id"))
        text = text.strip()[:200]
        context: TemplateContext = {
            "search_text": text,
            "match_cards": None,
            "item": None,
            "neighbor_cards": [],
            "neighbor_error": None,
            "related_cards": None,
            "suggestion_cards": [],
            "has_popularity": snapshot.release.popularity is not None,
            "has_towers": snapshot.release.encoder is not None,
            "error": None,
        }
        if id_text.strip():
            try:
                context |= self._build_item(id_text, request.deadline)
            except QueryError as error:
                context["error"] = str(error)
        elif text:
            context["match_cards"] = build_item_cards(snapshot, search_items(snapshot, text))
        if context["item"] is None and not context["match_cards"]:
            context["suggestion_cards"] = build_item_cards(snapshot, suggest_items(snapshot, _NEIGHBOR_COUNT))
        return context

    def _build_item(self, id_text: str, deadline: RequestDeadline) -> TemplateContext:
        snapshot = self._service.snapshot
        ids = [parse_item_id(snapshot, id_text)]
        rows = snapshot.to_rows(ids)
        if not snapshot.is_live(rows)[0]:
            raise QueryError(f"id: no item has the id {id_text!r:.80}", field="id")
        neighbors = Query(vector=snapshot.get_vectors(rows)[0], k=_NEIGHBOR_COUNT, exclude=ids)
        related = Query(history=ids, k=_NEIGHBOR_COUNT, channels=["similar"])
        has_similar = snapshot.release.channels.similar is not None
        context: TemplateContext = {
            "item": build_item_cards(snapshot, rows, max_attributes=None)[0],
            "related_cards": self._recall_cards(related, deadline) if has_similar else None,
        }
        try:
            neighbor_cards = self._recall_cards(neighbors, deadline)
        except EngineUnavailableError as error:
            return context | {"neighbor_error": str(error)}
        return context | {"neighbor_cards": neighbor_cards}

    def _recall_cards(self, query: Query, deadline: RequestDeadline) -> list[ItemCard]:
        trace = self._service.recaller.recall_with_trace(query, check_cancelled=deadline.raise_if_expired)
        if DEGRADED_ENGINE in trace.answer.degraded:  # popular items are no neighbors
            raise EngineUnavailableError("the server that holds the index does not answer: try again")
        scores = np.array(trace.answer.scores, dtype=np.float32)
        return build_item_cards(trace.snapshot, trace.search_result.rows, scores)

    def build_releases(self, _: PageRequest) -> TemplateContext:
        """All releases of the store, and the live changes on the served one."""
        service, snapshot = self._service, self._service.snapshot
        current = service.store.find_current()
        return {
            "cards": build_release_cards(service.store.list_releases(skip_damaged=True)),
            "writable": service.settings.writable,
            "current": None if current is None else current.release,
            "live_items": len(snapshot),
            "live_delta": snapshot.delta.live_count,
            "live_tombstones": snapshot.tombstone_count,
        }

    def build_api_docs(self, request: PageRequest) -> TemplateContext:
        """The OpenAPI document, and commands that call the endpoints."""
        document = self._get_openapi_document()
        examples = CurlExamples(self._service.snapshot, request.base_url, has_keys=self._has_keys)
        return {
            "document": document,
            "schemas": document["components"]["schemas"],
            "has_keys": self._has_keys,
            "examples": {
                operation["operationId"]: examples.build(method.upper(), path)
                for path, operations in document["paths"].items()
                for method, operation in operations.items()
            },
        }


def _find_history_rows(snapshot: Snapshot, query: Query) -> Rows:
    """Rows of the query's history, else of the stored one, oldest first; -1 for unknown items."""
    if query.history is not None:
        return snapshot.to_rows(list(query.history))
    users = snapshot.release.users
    row = None if users is None or query.user_id is None else users.ids.to_row(query.user_id)
    if users is None or row is None:
        return np.empty(0, dtype=np.int64)
    return snapshot.to_latest_rows(users.histories[row])
