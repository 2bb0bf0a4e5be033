"""The pages: rendered here, with a little script for comfort."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
from fastapi import Depends, FastAPI, Request, Response
from starlette.staticfiles import StaticFiles

from vecall.arrays import Rows
from vecall.errors import QueryError
from vecall.live.snapshot import Snapshot
from vecall.recall.conditions import FILTER_OPS
from vecall.recall.query import Query
from vecall.service import openapi
from vecall.service.guard import Authenticator
from vecall.service.pool import RequestDeadline
from vecall.service.recall_service import RecallService
from vecall.service.responses import to_json_response
from vecall.service.ui.error_page import load_templates
from vecall.service.ui.form import ExploreForm, parse_item_ids
from vecall.service.ui.i18n import TEXTS, negotiate_language
from vecall.service.ui.presenters import build_item_cards, find_ids_with_prefix, sample_ids, search_items
from vecall.service.ui.projection import HEIGHT, WIDTH, draw

_MAX_SUGGESTIONS, _NEIGHBOR_COUNT, _MAX_HISTORY_CARDS = 12, 24, 50
_MAX_QUERY_FIELDS = 200  # of an address
_STATIC_DIR = Path(__file__).parent / "static"

TemplateContext = dict[str, Any]
# What an address asks for, the texts of the reader's language, a turn in the pool -> what the template shows.
ContextBuilder = Callable[[Mapping[str, list[str]], Mapping[str, str], RequestDeadline], TemplateContext]


def add_ui_routes(app: FastAPI, service: RecallService, authenticator: Authenticator) -> None:
    """The explorer, items, map, releases and the page of the API, for people."""
    pages = _PageContexts(service)
    for path, name, content in (
        ("/", "explore.html", pages.build_explore),
        ("/items", "items.html", pages.build_items),
        ("/map", "map.html", pages.map),
        ("/releases", "releases.html", pages.build_releases),
        ("/docs", "docs.html", partial(_build_api_docs, app)),
    ):
        app.add_api_route(
            path,
            pages.create_endpoint(name, content),
            include_in_schema=False,
            dependencies=[Depends(authenticator.require_read_key)],
            methods=["GET"],
        )

    @app.get("/page/users", include_in_schema=False, dependencies=[Depends(authenticator.require_read_key)])
    async def suggest_users(prefix: str = "") -> Response:
        ids = await service.ui_pool.run(lambda _: pages.suggest_user_ids(prefix[:100]))
        return to_json_response({"ids": [str(one) for one in ids]})  # as text: a browser rounds numbers beyond 2^53

    app.mount("/static", StaticFiles(directory=_STATIC_DIR))


class _PageContexts:
    """What each page shows, made beside recalls, in a pool of its own."""

    def __init__(self, service: RecallService) -> None:
        self._service = service

    def create_endpoint(
        self, template_name: str, build_context: ContextBuilder
    ) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint that renders a template with what `build_context` makes of a query string."""

        async def endpoint(request: Request) -> Response:
            given = _parse_query_string(request.url.query)
            language = negotiate_language((given.get("lang") or [""])[0], request.headers.get("accept-language", ""))
            texts = TEXTS[language]

            def render_page(deadline: RequestDeadline) -> str:
                usual = {"t": texts, "lang": language, "languages": TEXTS, "path": request.url.path, "given": given}
                state = {"release": self._service.snapshot.release.name, "problem": self._service.degraded_reason}
                return (
                    load_templates()
                    .get_template(template_name)
                    .render(usual | state | build_context(given, texts, deadline))
                )

            html = await self._service.ui_pool.run(render_page)
            return Response(html, media_type="text/html", headers={"Content-Language": language})

        return endpoint

    def suggest_user_ids(self, prefix: str) -> list[int | str]:
        """Known users whose id begins with a text."""
        users = self._service.snapshot.release.users
        if users is None:
            return []
        return (
            find_ids_with_prefix(users.ids, prefix, _MAX_SUGGESTIONS)
            if prefix
            else sample_ids(users.ids, _MAX_SUGGESTIONS)
        )

    def build_explore(
        self, query_params: Mapping[str, list[str]], _: Mapping[str, str], deadline: RequestDeadline
    ) -> TemplateContext:
        """The form, and what was recalled for it."""
        form, view = ExploreForm.from_query_params(query_params), self._service.snapshot
        content: TemplateContext = {
            "form": form,
            "attributes": view.release.attributes.columns,
            "operations": FILTER_OPS,
            "users": self.suggest_user_ids(""),
            "recalled": None,
            "error": None,
        }
        if form.has_query:
            try:
                content |= self._build_recall(form.to_query(view, self._service.settings.limits), deadline)
            except QueryError as error:
                content["error"] = str(error)
        return content

    def _build_recall(self, query: Query, deadline: RequestDeadline) -> TemplateContext:
        made = self._service.run_query(query, deadline)
        view, rows = made.snapshot, made.search_result.rows
        known = (
            view.to_rows(list(query.history))
            if query.history is not None
            else _find_stored_history(made.snapshot, query)
        )
        history = known[known >= 0][::-1][:_MAX_HISTORY_CARDS]
        scores = np.array(made.answer.scores, dtype=np.float32)
        stages = {"queue": deadline.queue_ms, **made.stage_ms}
        return {
            "recalled": build_item_cards(view, rows, scores),
            "history": build_item_cards(view, history),
            "answer": made.answer,
            "stages": stages,
            "slowest": max(*stages.values(), 0.001),
        }

    def build_items(
        self, query_params: Mapping[str, list[str]], _: Mapping[str, str], deadline: RequestDeadline
    ) -> TemplateContext:
        """Items whose title was searched, or one item and its neighbours."""
        view = self._service.snapshot
        asked, chosen = ((query_params.get(name) or [""])[0].strip()[:200] for name in ("q", "id"))
        content: TemplateContext = {"asked": asked, "found": None, "item": None, "neighbours": [], "error": None}
        if chosen:
            try:
                content |= self._build_neighbors(chosen, deadline)
            except QueryError as error:
                content["error"] = str(error)
        elif asked:
            content["found"] = build_item_cards(view, search_items(view, asked))
        return content

    def _build_neighbors(self, id_text: str, deadline: RequestDeadline) -> TemplateContext:
        view = self._service.snapshot
        ids = [id_text] if view.release.item_ids.id_type == "string" else parse_item_ids(view, "id", id_text)
        rows = view.to_rows(ids)[:1]
        if not len(rows) or not view.is_live(rows)[0]:
            raise QueryError(f"id: no item has the id {id_text!r:.80}", field="id")
        query = Query(vector=view.get_vectors(rows)[0], k=_NEIGHBOR_COUNT, exclude=ids)
        made = self._service.recaller.recall_with_trace(query, check_cancelled=deadline.raise_if_expired)
        scores = np.array(made.answer.scores, dtype=np.float32)
        return {
            "item": build_item_cards(view, rows)[0],
            "neighbours": build_item_cards(made.snapshot, made.search_result.rows, scores),
        }

    def map(self, given: Mapping[str, list[str]], texts: Mapping[str, str], _: RequestDeadline) -> TemplateContext:
        """A sample of the items in two dimensions."""
        view = self._service.snapshot
        asked = (given.get("colour") or [""])[0]
        drawn = draw(view, asked, unknown=texts["unknown_value"], others=texts["others"])
        return {"map": drawn, "attributes": view.release.attributes.columns, "width": WIDTH, "height": HEIGHT}

    def build_releases(
        self, _: Mapping[str, list[str]], __: Mapping[str, str], ___: RequestDeadline
    ) -> TemplateContext:
        """All releases of the store."""
        return self._service.list_releases()


def _parse_query_string(query_string: str) -> dict[str, list[str]]:
    try:
        return parse_qs(query_string, keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS)
    except ValueError:
        raise QueryError(f"the address: at most {_MAX_QUERY_FIELDS} fields are allowed") from None


def _find_stored_history(snapshot: Snapshot, query: Query) -> Rows:
    """Rows of the items that a user had taken when the release was made; none of who is not known."""
    users = snapshot.release.users
    row = None if users is None or query.user_id is None else users.ids.to_row(query.user_id)
    return (
        np.empty(0, dtype=np.int64) if users is None or row is None else snapshot.to_latest_rows(users.histories[row])
    )


def _build_api_docs(
    app: FastAPI, _: Mapping[str, list[str]], __: Mapping[str, str], ___: RequestDeadline
) -> TemplateContext:
    """The OpenAPI document, for its page."""
    document = openapi.build_openapi(app)
    return {"document": document, "schemas": document["components"]["schemas"]}
