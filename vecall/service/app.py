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
from vecall.service.auth import ApiKeys
from vecall.service.guard import Authenticator
from vecall.service.middleware import RequestMiddleware
from vecall.service.parsing import parse_body
from vecall.service.recall_service import RecallService
from vecall.service.recalls import RecallEndpoint, require_ready
from vecall.service.responses import HttpError, to_http_error, to_json_response
from vecall.service.ui.error_page import render_error
from vecall.service.ui.routes import add_ui_routes

WriteHandler = Callable[[bytes], dict[str, Any]]

_METRICS_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def create_app(service: RecallService, api_keys: ApiKeys) -> FastAPI:
    """The application over a store that is being served. It starts and closes `service`.

    Args:
        service: opened, not started.
        api_keys: of those who are let in; without any, all are.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.close)  # what is still worked on may need the loop to end

    guard = Authenticator(api_keys, service.settings)
    recalls = RecallEndpoint(service, guard)
    app = FastAPI(
        title="vecall",
        version=__version__,
        summary="Vector recall: the items that a user most likely wants.",
        lifespan=lifespan,
        docs_url=None,  # it would load scripts from elsewhere
        redoc_url=None,
        openapi_url=None,
    )
    _add_health_routes(app, service)
    _add_recall_route(app, recalls)
    _add_metrics_route(app, service, guard)
    _add_item_routes(app, service, guard)
    _add_release_routes(app, service, guard)
    add_ui_routes(app, service, guard)
    _add_error_handlers(app)
    app.add_middleware(RequestMiddleware, recalls=recalls, serving=service, guard=guard)
    return app


def _add_health_routes(app: FastAPI, service: RecallService) -> None:
    @app.get("/healthz", tags=["state"], summary="Does the process answer?", response_model=schemas.HealthResponse)
    async def healthz() -> Response:
        return to_json_response({"status": "ok"})

    @app.get(
        "/readyz",
        tags=["state"],
        summary="Are recalls answered?",
        response_model=schemas.ReadinessResponse,
        responses=openapi.describe_errors(503),
    )
    async def readyz() -> Response:
        require_ready(service)
        view = service.snapshot
        told = {
            "ready": True,
            "release": view.release.name,
            "why": service.degraded_reason,
            "refused": len(view.rejected_seqs),
        }
        return to_json_response(told)

    @app.get("/openapi.json", include_in_schema=False)
    async def get_openapi_document() -> Response:
        return to_json_response(openapi.build_openapi(app))


def _add_recall_route(app: FastAPI, recall_endpoint: RecallEndpoint) -> None:
    @app.post(
        recall_endpoint.path,
        tags=["recall"],
        summary="The k items that a user most likely wants",
        response_model=schemas.RecallResponse,
        responses=openapi.describe_errors(400, 401, 403, 408, 413, 415, 422, 429, 503),
        openapi_extra=openapi.describe_request_body(schemas.RecallRequest),
    )
    async def recall(request: Request) -> Response:  # for the document: the door asks `recalls` itself
        return await recall_endpoint.handle(request.headers, request.receive)


def _add_metrics_route(app: FastAPI, service: RecallService, authenticator: Authenticator) -> None:
    @app.get(
        "/metrics",
        tags=["state"],
        summary="Metrics for Prometheus",
        response_class=Response,
        responses=openapi.describe_errors(401, 403) | {200: {"content": {"text/plain": {}}}},
        openapi_extra=openapi.API_KEY_SECURITY,
        dependencies=[Depends(authenticator.require_read_key)],
    )
    def get_metrics() -> Response:
        return Response(service.render_metrics(), media_type=_METRICS_MEDIA_TYPE)


def _add_item_routes(app: FastAPI, service: RecallService, authenticator: Authenticator) -> None:
    async def require_writer(request: Request) -> None:
        await authenticator.require_admin_key(request)
        if not service.settings.writable:
            raise HttpError(
                403, "forbidden", "this process only reads; send changes to the one that was started to write"
            )

    def add_write_route(
        path: str,
        summary: str,
        request_model: type[schemas.RequestModel],
        response_model: type[BaseModel],
        handler: WriteHandler,
    ) -> None:
        async def endpoint(request: Request) -> Response:
            content = await authenticator.read_body(
                request.headers, request.receive, service.settings.limits.max_batch_body_bytes
            )
            return to_json_response(await service.write_pool.run(lambda _: handler(content)))

        app.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            tags=["changes"],
            summary=summary,
            response_model=response_model,
            responses=openapi.describe_errors(400, 401, 403, 408, 409, 413, 415, 422, 429, 503, 507),
            openapi_extra=openapi.describe_request_body(request_model),
            dependencies=[Depends(require_writer)],
        )

    add_write_route(
        "/v1/items", "Add or replace items, all or none", schemas.UpsertRequest, schemas.UpsertResponse, service.upsert
    )
    add_write_route(
        "/v1/items/delete", "Delete items, all or none", schemas.DeleteRequest, schemas.DeleteResponse, service.delete
    )


def _add_release_routes(app: FastAPI, service: RecallService, authenticator: Authenticator) -> None:
    @app.get(
        "/v1/releases",
        tags=["releases"],
        summary="All releases, newest first",
        response_model=schemas.ReleasesResponse,
        responses=openapi.describe_errors(401, 403, 409),
        openapi_extra=openapi.API_KEY_SECURITY,
        dependencies=[Depends(authenticator.require_read_key)],
    )
    def list_releases() -> Response:
        return to_json_response(service.list_releases())

    @app.post(
        "/v1/releases/activate",
        tags=["releases"],
        summary="Go over to another release, once it has proved itself",
        response_model=schemas.ActivateResponse,
        responses=openapi.describe_errors(400, 401, 403, 404, 408, 409, 413, 415, 422, 503),
        openapi_extra=openapi.describe_request_body(schemas.ActivateRequest),
        dependencies=[Depends(authenticator.require_admin_key)],
    )
    async def activate_release(request: Request) -> Response:
        content = await authenticator.read_body(
            request.headers, request.receive, service.settings.limits.max_body_bytes
        )
        name = parse_body(schemas.ActivateRequest, content).name
        try:
            service.store.get_release_dir(name)
        except StoreError:  # its text has the store's path
            raise HttpError(404, "not_found", f"there is no release {name!r}: see /v1/releases", field="name") from None
        return to_json_response(await service.switch_pool.run(lambda _: service.activate(name)))


def _add_error_handlers(app: FastAPI) -> None:
    async def handle_vecall_error(request: Request, error: Any) -> Response:  # noqa: ANN401 - as registered
        return render_error(to_http_error(error), request.scope)

    async def handle_http_exception(request: Request, error: Any) -> Response:  # noqa: ANN401
        codes = {404: "not_found", 405: "method_not_allowed"}
        text = f"{request.method} {request.url.path:.100}: {error.detail}; see /docs"
        code = codes.get(error.status_code, "invalid")
        return render_error(HttpError(error.status_code, code, text, headers=error.headers), request.scope)

    async def handle_validation_error(request: Request, error: Any) -> Response:  # noqa: ANN401
        first = error.errors()[0]
        field = str(first["loc"][-1])
        return render_error(HttpError(422, "invalid", f"{field}: {first['msg']}", field=field), request.scope)

    app.add_exception_handler(VecallError, handle_vecall_error)
    app.add_exception_handler(HTTPException, handle_http_exception)
    app.add_exception_handler(RequestValidationError, handle_validation_error)
