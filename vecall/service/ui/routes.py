"""Pages for people, rendered on the server; a little JavaScript adds comfort."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from vecall.arrays import Rows
from vecall.errors import QueryError
from vecall.live.snapshot import Snapshot
from vecall.recall.conditions import FILTER_OPS
from vecall.recall.query import Query
from vecall.service.endpoint import Endpoint, Handler
from vecall.service.execution import RequestDeadline
from vecall.service.recall_service import RecallService
from vecall.service.responses import to_json_response
from vecall.service.ui.error_page import load_templates
from vecall.service.ui.form import ExploreForm, parse_item_ids
from vecall.service.ui.i18n import TEXTS, negotiate_language
from vecall.service.ui.presenters import build_item_cards, find_ids_with_prefix, sample_ids, search_items

_MAX_SUGGESTIONS, _NEIGHBOR_COUNT, _MAX_HISTORY_CARDS = 12, 24, 50
_MAX_QUERY_FIELDS = 200  # of a query string
_MAX_PREFIX_LENGTH = 100
_STATIC_DIR = Path(__file__).parent / "static"

QueryParams = Mapping[str, list[str]]
TemplateContext = dict[str, Any]
ContextBuilder = Callable[[QueryParams, RequestDeadline], TemplateContext]


def build_ui_endpoints(service: RecallService, get_openapi_document: Callable[[], dict[str, Any]]) -> list[Endpoint]:
    """The explorer, the items, the releases and the API reference, and what their scripts call."""
    pages = _PageContexts(service, get_openapi_document)

    async def suggest_users(request: Request) -> Response:
        prefix = request.query_params.get("prefix", "")[:_MAX_PREFIX_LENGTH]
        ids = await service.ui_pool.run(lambda _: pages.suggest_user_ids(prefix))
        return to_json_response({"ids": [str(user_id) for user_id in ids]})  # browsers round integers beyond 2^53

    builders: dict[str, tuple[str, ContextBuilder]] = {
        "/": ("explore.html", pages.build_explore),
        "/items": ("items.html", pages.build_items),
        "/releases": ("releases.html", pages.build_releases),
        "/docs": ("docs.html", pages.build_api_docs),
    }
    return [
        *(
            Endpoint("GET", path, _create_page_handler(service, template_name, build_context), role="read")
            for path, (template_name, build_context) in builders.items()
        ),
        Endpoint("GET", "/ui/users", suggest_users, role="read"),
    ]


def mount_static_files() -> Mount:
    """Style sheet, script and icons."""
    return Mount("/static", StaticFiles(directory=_STATIC_DIR))


def _create_page_handler(service: RecallService, template_name: str, build_context: ContextBuilder) -> Handler:
    """A handler that renders a template in the reader's language."""

    async def handle_page(request: Request) -> Response:
        query_params = _parse_query_string(request.url.query)
        requested = (query_params.get("lang") or [""])[0]
        language = negotiate_language(requested, request.headers.get("accept-language", ""))

        def render_page(deadline: RequestDeadline) -> str:
            base = {
                "t": TEXTS[language],
                "lang": language,
                "languages": TEXTS,
                "path": request.url.path,
                "query_params": query_params,
                "release": service.snapshot.release.name,
                "degraded_reason": service.degraded_reason,
            }
            return load_templates().get_template(template_name).render(base | build_context(query_params, deadline))

        html = await service.ui_pool.run(render_page)
        return Response(html, media_type="text/html", headers={"Content-Language": language})

    return handle_page


class _PageContexts:
    """Builds the template context of each page."""

    def __init__(self, service: RecallService, get_openapi_document: Callable[[], dict[str, Any]]) -> None:
        self._service, self._get_openapi_document = service, get_openapi_document

    def suggest_user_ids(self, prefix: str) -> list[int | str]:
        """Known users whose id starts with a prefix; a sample of all users for an empty one."""
        users = self._service.snapshot.release.users
        if users is None:
            return []
        if not prefix:
            return sample_ids(users.ids, _MAX_SUGGESTIONS)
        return find_ids_with_prefix(users.ids, prefix, _MAX_SUGGESTIONS)

    def build_explore(self, query_params: QueryParams, deadline: RequestDeadline) -> TemplateContext:
        """The form, and the result of its query."""
        form, snapshot = ExploreForm.from_query_params(query_params), self._service.snapshot
        context: TemplateContext = {
            "form": form,
            "attribute_names": snapshot.release.attributes.columns,
            "filter_ops": FILTER_OPS,
            "user_ids": self.suggest_user_ids(""),
            "result_cards": None,
            "error": None,
        }
        if form.has_query:
            try:
                context |= self._build_recall(form.to_query(snapshot, self._service.settings.limits), deadline)
            except QueryError as error:
                context["error"] = str(error)
        return context

    def _build_recall(self, query: Query, deadline: RequestDeadline) -> TemplateContext:
        trace = self._service.run_query(query, deadline)
        snapshot = trace.snapshot
        history = _find_history_rows(snapshot, query)
        newest_first = history[history >= 0][::-1][:_MAX_HISTORY_CARDS]
        scores = np.array(trace.answer.scores, dtype=np.float32)
        stage_ms = {"queue": deadline.queue_ms, **trace.stage_ms}
        return {
            "result_cards": build_item_cards(snapshot, trace.search_result.rows, scores),
            "history_cards": build_item_cards(snapshot, newest_first),
            "result": trace.answer,
            "stage_ms": stage_ms,
            "max_stage_ms": max(*stage_ms.values(), 0.001),
        }

    def build_items(self, query_params: QueryParams, deadline: RequestDeadline) -> TemplateContext:
        """Items whose title matches a text, or one item and its nearest neighbors."""
        snapshot = self._service.snapshot
        text, id_text = ((query_params.get(name) or [""])[0].strip()[:200] for name in ("q", "id"))
        context: TemplateContext = {
            "search_text": text,
            "match_cards": None,
            "item": None,
            "neighbor_cards": [],
            "error": None,
        }
        if id_text:
            try:
                context |= self._build_neighbors(id_text, deadline)
            except QueryError as error:
                context["error"] = str(error)
        elif text:
            context["match_cards"] = build_item_cards(snapshot, search_items(snapshot, text))
        return context

    def _build_neighbors(self, id_text: str, deadline: RequestDeadline) -> TemplateContext:
        snapshot = self._service.snapshot
        is_text = snapshot.release.item_ids.id_type == "string"
        ids = [id_text] if is_text else parse_item_ids(snapshot, "id", id_text)
        rows = snapshot.to_rows(ids)[:1]
        if not len(rows) or not snapshot.is_live(rows)[0]:
            raise QueryError(f"id: no item has the id {id_text!r:.80}", field="id")
        query = Query(vector=snapshot.get_vectors(rows)[0], k=_NEIGHBOR_COUNT, exclude=ids)
        trace = self._service.recaller.recall_with_trace(query, check_cancelled=deadline.raise_if_expired)
        scores = np.array(trace.answer.scores, dtype=np.float32)
        return {
            "item": build_item_cards(snapshot, rows)[0],
            "neighbor_cards": build_item_cards(trace.snapshot, trace.search_result.rows, scores),
        }

    def build_releases(self, _: QueryParams, __: RequestDeadline) -> TemplateContext:
        """All releases of the store."""
        return self._service.list_releases()

    def build_api_docs(self, _: QueryParams, __: RequestDeadline) -> TemplateContext:
        """The OpenAPI document."""
        document = self._get_openapi_document()
        return {"document": document, "schemas": document["components"]["schemas"]}


def _parse_query_string(query_string: str) -> dict[str, list[str]]:
    try:
        return parse_qs(query_string, keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS)
    except ValueError:
        raise QueryError(f"the query string: at most {_MAX_QUERY_FIELDS} fields are allowed") from None


def _find_history_rows(snapshot: Snapshot, query: Query) -> Rows:
    """Rows of the query's history, else of the stored one, oldest first; -1 for items that are not here."""
    if query.history is not None:
        return snapshot.to_rows(list(query.history))
    users = snapshot.release.users
    row = None if users is None or query.user_id is None else users.ids.to_row(query.user_id)
    if users is None or row is None:
        return np.empty(0, dtype=np.int64)
    return snapshot.to_latest_rows(users.histories[row])
