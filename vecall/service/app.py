"""The HTTP application: all endpoints of the API and the pages, behind one middleware."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Router
from starlette.types import ASGIApp

from vecall.errors import StoreError
from vecall.service import schemas
from vecall.service.auth import ApiKeys, Authenticator
from vecall.service.endpoint import Endpoint, Handler
from vecall.service.execution import RequestDeadline
from vecall.service.middleware import RequestMiddleware, TrustedHosts
from vecall.service.openapi import build_openapi
from vecall.service.parsing import parse_activate, parse_recommend, read_body
from vecall.service.recall_service import RecallService
from vecall.service.responses import RETRY_AFTER, HttpError, to_json_response
from vecall.service.settings import LOOPBACK_HOSTS
from vecall.service.ui.routes import build_ui_endpoints, mount_static_files

_METRICS_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_HIDDEN_REASON = "the reason is for holders of a key, and in the log"  # it may have paths and parts of files
_BODY_ERRORS = (400, 401, 403, 408, 413, 415, 422)


def create_app(service: RecallService, api_keys: ApiKeys) -> ASGIApp:
    """The ASGI application of a service, which it starts and closes.

    Args:
        service: opened, not started.
        api_keys: of clients; without any, every request from an allowed host is answered.
    """
    authenticator = Authenticator(api_keys)
    endpoints = [
        *_build_recall_endpoints(service),
        *_build_health_endpoints(service, authenticator),
        *_build_item_endpoints(service),
        *_build_release_endpoints(service),
    ]

    @cache
    def get_openapi_document() -> dict[str, Any]:
        return build_openapi(endpoints)

    async def get_openapi(_: Request) -> Response:
        return to_json_response(get_openapi_document())

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.close)  # work in progress may need the event loop to finish

    pages = [
        Endpoint("GET", "/openapi.json", get_openapi),
        *build_ui_endpoints(service, get_openapi_document, has_keys=bool(api_keys)),
    ]
    routes = [endpoint.to_route(authenticator) for endpoint in (*endpoints, *pages)]
    router = Router([*routes, mount_static_files()], lifespan=lifespan)
    allowed_hosts = service.settings.allowed_hosts or (() if api_keys else LOOPBACK_HOSTS)
    return RequestMiddleware(router, service, TrustedHosts(allowed_hosts))


def _build_recall_endpoints(service: RecallService) -> list[Endpoint]:
    limits = service.settings.limits

    async def recall(request: Request) -> Response:
        _require_ready(service)
        body = await read_body(request, limits.max_body_bytes, limits.body_timeout_seconds)

        def run_recall(deadline: RequestDeadline) -> Response:
            return to_json_response(service.recall(body, deadline).answer.as_json())

        return await service.remote_search_pool.run_local_first(service.recall_executor.run, run_recall)

    async def recommend(request: Request) -> Response:
        _require_ready(service)
        body = await read_body(request, limits.max_body_bytes, limits.body_timeout_seconds)

        recommend_request = parse_recommend(body, limits)

        def run_recommendation(deadline: RequestDeadline) -> Response:
            return to_json_response(service.run_recommendation(recommend_request, deadline).answer.as_json())

        executor = service.select_recommend_executor(recommend_request)
        return await service.remote_search_pool.run_local_first(executor.run, run_recommendation)

    return [
        Endpoint(
            "POST",
            "/v1/recall",
            recall,
            role="read",
            summary="Recall the top-k items for a user",
            tag="recall",
            request_model=schemas.RecallRequest,
            response_model=schemas.RecallResponse,
            error_statuses=(*_BODY_ERRORS, 429, 503),
        ),
        Endpoint(
            "POST",
            "/v1/recommend",
            recommend,
            role="read",
            summary="Recommend the final list of k items for a user",
            tag="recall",
            request_model=schemas.RecommendRequest,
            response_model=schemas.RecommendResponse,
            error_statuses=(*_BODY_ERRORS, 429, 503),
        ),
    ]


def _build_health_endpoints(service: RecallService, authenticator: Authenticator) -> list[Endpoint]:
    async def get_liveness(_: Request) -> Response:
        return to_json_response({"status": "ok"})

    async def get_readiness(request: Request) -> Response:
        may_read = authenticator.has_role(request.headers, "read")
        _require_ready(service, shows_reason=may_read)
        snapshot, reason = service.snapshot, service.degraded_reason
        return to_json_response(
            {
                "ready": True,
                "release": snapshot.release.name,
                "reason": reason if may_read or reason is None else _HIDDEN_REASON,
                "rejected_changes": len(snapshot.rejected_seqs),
            }
        )

    async def get_metrics(_: Request) -> Response:
        return Response(await asyncio.to_thread(service.render_metrics), media_type=_METRICS_MEDIA_TYPE)

    return [
        Endpoint(
            "GET", "/healthz", get_liveness, summary="Liveness probe", tag="health",
            response_model=schemas.HealthResponse,
        ),
        Endpoint(
            "GET", "/readyz", get_readiness, summary="Readiness probe", tag="health",
            response_model=schemas.ReadinessResponse, error_statuses=(503,),
        ),
        Endpoint(
            "GET", "/metrics", get_metrics, role="read", summary="Metrics in Prometheus text format", tag="health",
            error_statuses=(401, 403),
        ),
    ]  # fmt: skip


def _build_item_endpoints(service: RecallService) -> list[Endpoint]:
    limits = service.settings.limits

    def write(change: Callable[[bytes], dict[str, Any]]) -> Handler:
        async def handle_write(request: Request) -> Response:
            _require_writable(service)
            body = await read_body(request, limits.max_batch_body_bytes, limits.body_timeout_seconds)
            return to_json_response(await service.write_pool.run(lambda _: change(body)))

        return handle_write

    errors = (*_BODY_ERRORS, 409, 429, 503, 507)
    return [
        Endpoint(
            "POST", "/v1/items", write(service.upsert), role="admin", summary="Add or replace items, all or none",
            tag="items", request_model=schemas.UpsertRequest, response_model=schemas.UpsertResponse,
            error_statuses=errors,
        ),
        Endpoint(
            "POST", "/v1/items/delete", write(service.delete), role="admin", summary="Delete items, all or none",
            tag="items", request_model=schemas.DeleteRequest, response_model=schemas.DeleteResponse,
            error_statuses=errors,
        ),
    ]  # fmt: skip


def _build_release_endpoints(service: RecallService) -> list[Endpoint]:
    limits = service.settings.limits

    async def list_releases(_: Request) -> Response:
        return to_json_response(await asyncio.to_thread(service.list_releases))

    async def activate_release(request: Request) -> Response:
        _require_writable(service)
        name = parse_activate(await read_body(request, limits.max_body_bytes, limits.body_timeout_seconds))
        try:
            service.store.get_release_dir(name)
        except StoreError:  # its text has the store's path
            raise HttpError(
                404, "not_found", f"there is no release {name!r:.80}: see /v1/releases", field="name"
            ) from None
        return to_json_response(await service.switch_pool.run(lambda _: service.activate(name)))

    return [
        Endpoint(
            "GET", "/v1/releases", list_releases, role="read", summary="List releases, newest first", tag="releases",
            response_model=schemas.ReleasesResponse, error_statuses=(401, 403, 409),
        ),
        Endpoint(
            "POST", "/v1/releases/activate", activate_release, role="admin",
            summary="Activate a release after verifying it", tag="releases", request_model=schemas.ActivateRequest,
            response_model=schemas.ActivateResponse, error_statuses=(*_BODY_ERRORS, 404, 409, 503),
        ),
    ]  # fmt: skip


def _require_writable(service: RecallService) -> None:
    """Check that this process may change the store.

    Raises:
        HttpError: 403.
    """
    if not service.settings.writable:
        raise HttpError(403, "forbidden", "this process is read-only; send writes to the writable one")


def _require_ready(service: RecallService, *, shows_reason: bool = True) -> None:
    """Check that recalls are answered.

    Raises:
        HttpError: 503.
    """
    if service.not_ready_reason is not None:
        reason = service.not_ready_reason if shows_reason else _HIDDEN_REASON
        raise HttpError(503, "not_ready", f"not ready: {reason}", headers=RETRY_AFTER)
