"""The HTTP application: endpoints, and what their OpenAPI document says."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from vecall import __version__
from vecall.errors import StoreError, VecallError
from vecall.service import openapi, schemas
from vecall.service.auth import Keys
from vecall.service.guard import Guard
from vecall.service.middleware import Door
from vecall.service.parsing import read
from vecall.service.recall_service import Serving
from vecall.service.recalls import Recalls, check_ready
from vecall.service.responses import Refusal, answer, refusal_of
from vecall.service.ui.error_page import error_response
from vecall.service.ui.routes import add_pages

Change = Callable[[bytes], dict[str, Any]]

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def make_app(serving: Serving, keys: Keys) -> FastAPI:
    """The application over a store that is being served. It starts and closes `serving`.

    Args:
        serving: opened, not started.
        keys: of those who are let in; without any, all are.
    """

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        serving.start()
        yield
        await asyncio.to_thread(serving.close)  # what is still worked on may need the loop to end

    guard = Guard(keys, serving.settings)
    recalls = Recalls(serving, guard)
    app = FastAPI(
        title="vecall",
        version=__version__,
        summary="Vector recall: the items that a user most likely wants.",
        lifespan=life,
        docs_url=None,  # it would load scripts from elsewhere
        redoc_url=None,
        openapi_url=None,
    )
    _add_health(app, serving)
    _add_recall(app, recalls)
    _add_metrics(app, serving, guard)
    _add_changes(app, serving, guard)
    _add_releases(app, serving, guard)
    add_pages(app, serving, guard)
    _add_error_handlers(app)
    app.add_middleware(Door, recalls=recalls, serving=serving, guard=guard)
    return app


def _add_health(app: FastAPI, serving: Serving) -> None:
    @app.get("/healthz", tags=["state"], summary="Does the process answer?", response_model=schemas.Health)
    async def healthz() -> Response:
        return answer({"status": "ok"})

    @app.get(
        "/readyz",
        tags=["state"],
        summary="Are recalls answered?",
        response_model=schemas.Readiness,
        responses=openapi.errors(503),
    )
    async def readyz() -> Response:
        check_ready(serving)
        view = serving.view
        told = {"ready": True, "release": view.release.name, "why": serving.problem, "refused": len(view.refused)}
        return answer(told)

    @app.get("/openapi.json", include_in_schema=False)
    async def document() -> Response:
        return answer(openapi.document(app))


def _add_recall(app: FastAPI, recalls: Recalls) -> None:
    @app.post(
        recalls.path,
        tags=["recall"],
        summary="The k items that a user most likely wants",
        response_model=schemas.RecallAnswer,
        responses=openapi.errors(400, 401, 403, 408, 413, 415, 422, 429, 503),
        openapi_extra=openapi.body(schemas.RecallRequest),
    )
    async def recall(request: Request) -> Response:  # for the document: the door asks `recalls` itself
        return await recalls.answer(request.headers, request.receive)


def _add_metrics(app: FastAPI, serving: Serving, guard: Guard) -> None:
    @app.get(
        "/metrics",
        tags=["state"],
        summary="Metrics for Prometheus",
        response_class=Response,
        responses=openapi.errors(401, 403) | {200: {"content": {"text/plain": {}}}},
        openapi_extra=openapi.KEY,
        dependencies=[Depends(guard.reads)],
    )
    def metrics() -> Response:
        return Response(serving.metrics(), media_type=_METRICS_TYPE)


def _add_changes(app: FastAPI, serving: Serving, guard: Guard) -> None:
    async def changes(request: Request) -> None:
        await guard.administers(request)
        if not serving.settings.writable:
            raise Refusal(
                403, "forbidden", "this process only reads; send changes to the one that was started to write"
            )

    def add(path: str, summary: str, asked: type[schemas.Body], told: type[BaseModel], change: Change) -> None:
        async def endpoint(request: Request) -> Response:
            content = await guard.body(request.headers, request.receive, serving.settings.limits.batch_body)
            return answer(await serving.changes.run(lambda _: change(content)))

        app.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            tags=["changes"],
            summary=summary,
            response_model=told,
            responses=openapi.errors(400, 401, 403, 408, 409, 413, 415, 422, 429, 503, 507),
            openapi_extra=openapi.body(asked),
            dependencies=[Depends(changes)],
        )

    add("/v1/items", "Add or replace items, all or none", schemas.UpsertRequest, schemas.UpsertAnswer, serving.upsert)
    add("/v1/items/delete", "Delete items, all or none", schemas.DeleteRequest, schemas.DeleteAnswer, serving.delete)


def _add_releases(app: FastAPI, serving: Serving, guard: Guard) -> None:
    @app.get(
        "/v1/releases",
        tags=["releases"],
        summary="All releases, newest first",
        response_model=schemas.ReleasesAnswer,
        responses=openapi.errors(401, 403, 409),
        openapi_extra=openapi.KEY,
        dependencies=[Depends(guard.reads)],
    )
    def releases() -> Response:
        return answer(serving.releases())

    @app.post(
        "/v1/releases/activate",
        tags=["releases"],
        summary="Go over to another release, once it has proved itself",
        response_model=schemas.ActivateAnswer,
        responses=openapi.errors(400, 401, 403, 404, 408, 409, 413, 415, 422, 503),
        openapi_extra=openapi.body(schemas.ActivateRequest),
        dependencies=[Depends(guard.administers)],
    )
    async def activate(request: Request) -> Response:
        content = await guard.body(request.headers, request.receive, serving.settings.limits.body)
        name = read(schemas.ActivateRequest, content).name
        try:
            serving.store.folder(name)
        except StoreError:  # its text has the store's path
            raise Refusal(404, "not_found", f"there is no release {name!r}: see /v1/releases", field="name") from None
        return answer(await serving.swaps.run(lambda _: serving.activate(name)))


def _add_error_handlers(app: FastAPI) -> None:
    async def ours(request: Request, error: Any) -> Response:  # noqa: ANN401 - as registered
        return error_response(refusal_of(error), request.scope)

    async def of_framework(request: Request, error: Any) -> Response:  # noqa: ANN401
        codes = {404: "not_found", 405: "method_not_allowed"}
        text = f"{request.method} {request.url.path:.100}: {error.detail}; see /docs"
        code = codes.get(error.status_code, "invalid")
        return error_response(Refusal(error.status_code, code, text, headers=error.headers), request.scope)

    async def of_parameters(request: Request, error: Any) -> Response:  # noqa: ANN401
        first = error.errors()[0]
        field = str(first["loc"][-1])
        return error_response(Refusal(422, "invalid", f"{field}: {first['msg']}", field=field), request.scope)

    app.add_exception_handler(VecallError, ours)
    app.add_exception_handler(HTTPException, of_framework)
    app.add_exception_handler(RequestValidationError, of_parameters)
