"""The pages: rendered here, with a little script for comfort."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
from fastapi import Depends, FastAPI, Request, Response
from starlette.staticfiles import StaticFiles

from vecall.errors import QueryError
from vecall.index.bitmap import Rows
from vecall.live.snapshot import Snapshot
from vecall.recall.conditions import FILTER_OPS
from vecall.recall.query import Query
from vecall.service import openapi
from vecall.service.guard import Guard
from vecall.service.pool import Turn
from vecall.service.recall_service import Serving
from vecall.service.responses import answer
from vecall.service.ui.error_page import templates
from vecall.service.ui.form import Form, item_ids
from vecall.service.ui.i18n import TEXTS, language_of
from vecall.service.ui.presenters import find_ids, find_items, shown, some_ids
from vecall.service.ui.projection import HEIGHT, WIDTH, draw

_SUGGESTED, _NEIGHBOURS, _HISTORY = 12, 24, 50
_MOST_FIELDS = 200  # of an address
_STATIC = Path(__file__).parent / "static"

Content = dict[str, Any]
# What an address asks for, the texts of the reader's language, a turn in the pool -> what the template shows.
Maker = Callable[[Mapping[str, list[str]], Mapping[str, str], Turn], Content]


def add_pages(app: FastAPI, serving: Serving, guard: Guard) -> None:
    """The explorer, items, map, releases and the page of the API, for people."""
    pages = _Pages(serving)
    for path, name, content in (
        ("/", "explore.html", pages.explore),
        ("/items", "items.html", pages.items),
        ("/map", "map.html", pages.map),
        ("/releases", "releases.html", pages.releases),
        ("/docs", "docs.html", partial(_described, app)),
    ):
        app.add_api_route(
            path,
            pages.page(name, content),
            include_in_schema=False,
            dependencies=[Depends(guard.reads)],
            methods=["GET"],
        )

    @app.get("/page/users", include_in_schema=False, dependencies=[Depends(guard.reads)])
    async def users(prefix: str = "") -> Response:
        ids = await serving.pages.run(lambda _: pages.users(prefix[:100]))
        return answer({"ids": [str(one) for one in ids]})  # as text: a browser rounds numbers beyond 2^53

    app.mount("/static", StaticFiles(directory=_STATIC))


class _Pages:
    """What each page shows, made beside recalls, in a pool of its own."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def page(self, name: str, content: Maker) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint that renders a template with what `content` makes of a query string."""

        async def endpoint(request: Request) -> Response:
            given = _parsed(request.url.query)
            language = language_of((given.get("lang") or [""])[0], request.headers.get("accept-language", ""))
            texts = TEXTS[language]

            def work(turn: Turn) -> str:
                usual = {"t": texts, "lang": language, "languages": TEXTS, "path": request.url.path, "given": given}
                state = {"release": self._serving.view.release.name, "problem": self._serving.problem}
                return templates().get_template(name).render(usual | state | content(given, texts, turn))

            html = await self._serving.pages.run(work)
            return Response(html, media_type="text/html", headers={"Content-Language": language})

        return endpoint

    def users(self, prefix: str) -> list[int | str]:
        """Known users whose id begins with a text."""
        users = self._serving.view.release.users
        if users is None:
            return []
        return find_ids(users.ids, prefix, _SUGGESTED) if prefix else some_ids(users.ids, _SUGGESTED)

    def explore(self, given: Mapping[str, list[str]], _: Mapping[str, str], turn: Turn) -> Content:
        """The form, and what was recalled for it."""
        form, view = Form.of(given), self._serving.view
        content: Content = {
            "form": form,
            "attributes": view.release.attributes.columns,
            "operations": FILTER_OPS,
            "users": self.users(""),
            "recalled": None,
            "error": None,
        }
        if form.asks:
            try:
                content |= self._recalled(form.query(view, self._serving.settings.limits), turn)
            except QueryError as error:
                content["error"] = str(error)
        return content

    def _recalled(self, query: Query, turn: Turn) -> Content:
        made = self._serving.answer(query, turn)
        view, rows = made.view, made.found.rows
        known = view.rows(list(query.history)) if query.history is not None else _stored_history(made.view, query)
        history = known[known >= 0][::-1][:_HISTORY]
        scores = np.array(made.recalled.scores, dtype=np.float32)
        stages = {"queue": turn.queued_ms, **made.ms}
        return {
            "recalled": shown(view, rows, scores),
            "history": shown(view, history),
            "answer": made.recalled,
            "stages": stages,
            "slowest": max(*stages.values(), 0.001),
        }

    def items(self, given: Mapping[str, list[str]], _: Mapping[str, str], turn: Turn) -> Content:
        """Items whose title was searched, or one item and its neighbours."""
        view = self._serving.view
        asked, chosen = ((given.get(name) or [""])[0].strip()[:200] for name in ("q", "id"))
        content: Content = {"asked": asked, "found": None, "item": None, "neighbours": [], "error": None}
        if chosen:
            try:
                content |= self._neighbours(chosen, turn)
            except QueryError as error:
                content["error"] = str(error)
        elif asked:
            content["found"] = shown(view, find_items(view, asked))
        return content

    def _neighbours(self, chosen: str, turn: Turn) -> Content:
        view = self._serving.view
        ids = [chosen] if view.release.items.id_type == "string" else item_ids(view, "id", chosen)
        rows = view.rows(ids)[:1]
        if not len(rows) or not view.has(rows)[0]:
            raise QueryError(f"id: no item has the id {chosen!r:.80}", field="id")
        query = Query(vector=view.vectors(rows)[0], k=_NEIGHBOURS, exclude=ids)
        made = self._serving.recaller.answer(query, between=turn.check)
        scores = np.array(made.recalled.scores, dtype=np.float32)
        return {"item": shown(view, rows)[0], "neighbours": shown(made.view, made.found.rows, scores)}

    def map(self, given: Mapping[str, list[str]], texts: Mapping[str, str], _: Turn) -> Content:
        """A sample of the items in two dimensions."""
        view = self._serving.view
        asked = (given.get("colour") or [""])[0]
        drawn = draw(view, asked, unknown=texts["unknown_value"], others=texts["others"])
        return {"map": drawn, "attributes": view.release.attributes.columns, "width": WIDTH, "height": HEIGHT}

    def releases(self, _: Mapping[str, list[str]], __: Mapping[str, str], ___: Turn) -> Content:
        """All releases of the store."""
        return self._serving.releases()


def _parsed(query: str) -> dict[str, list[str]]:
    try:
        return parse_qs(query, keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise QueryError(f"the address: at most {_MOST_FIELDS} fields are allowed") from None


def _stored_history(view: Snapshot, query: Query) -> Rows:
    """Rows of the items that a user had taken when the release was made; none of who is not known."""
    users = view.release.users
    row = None if users is None or query.user_id is None else users.ids.row(query.user_id)
    return np.empty(0, dtype=np.int64) if users is None or row is None else view.current(users.histories[row])


def _described(app: FastAPI, _: Mapping[str, list[str]], __: Mapping[str, str], ___: Turn) -> Content:
    """The OpenAPI document, for its page."""
    document = openapi.document(app)
    return {"document": document, "schemas": document["components"]["schemas"]}
