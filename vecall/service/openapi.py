"""The OpenAPI document, generated from the endpoints."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from vecall import __version__
from vecall.service.endpoint import Endpoint
from vecall.service.schemas import ErrorResponse

_SCHEMA_REF = "#/components/schemas/{model}"
_STATUS_DESCRIPTIONS = {
    400: "bad_json: the body is not JSON",
    401: "unauthorized: no valid API key",
    403: "forbidden: the key's role, the host or the origin is not allowed",
    404: "not_found",
    408: "timeout: the body arrived too slowly",
    409: "release_refused, or encoder_mismatch",
    413: "too_large: the body",
    415: "unsupported_media_type",
    422: "invalid, or empty_query: `field` names the part",
    429: "delta_full, or too_many_scans: see Retry-After",
    503: "overloaded, not_ready, or engine_unavailable: see Retry-After",
    507: "disk_full",
}


def build_openapi(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The document of all endpoints that have a summary."""
    public = [endpoint for endpoint in endpoints if endpoint.summary is not None]
    models = {ErrorResponse: None} | {
        model: None for endpoint in public for model in (endpoint.request_model, endpoint.response_model) if model
    }
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=_SCHEMA_REF)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in public:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _describe(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {"title": "vecall", "summary": "Vector recall: the top-k items for a user.", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key; writes need an admin key.",
                }
            },
        },
    }


def _describe(endpoint: Endpoint) -> dict[str, Any]:
    """The operation object of an endpoint."""
    answer = {"text/plain": {}} if endpoint.response_model is None else _json_content(endpoint.response_model)
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "tags": [endpoint.tag],
        "operationId": f"{endpoint.method.lower()}{endpoint.path.replace('/', '_').replace('.', '_')}",
        "responses": {
            "200": {"description": "Successful response", "content": answer},
            **{
                str(status): {"description": _STATUS_DESCRIPTIONS[status], "content": _json_content(ErrorResponse)}
                for status in endpoint.error_statuses
            },
        },
    }
    if endpoint.role is not None:
        operation["security"] = [{"key": []}]
    if endpoint.request_model is not None:
        operation["requestBody"] = {"required": True, "content": _json_content(endpoint.request_model)}
    return operation


def _json_content(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _SCHEMA_REF.format(model=model.__name__)}}}
