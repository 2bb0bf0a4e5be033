"""The OpenAPI document: bodies are read by `reading`, so their shapes are put in here."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from vecall.service.schemas import ActivateRequest, DeleteRequest, ErrorResponse, RecallRequest, UpsertRequest

_REQUEST_MODELS: tuple[type[BaseModel], ...] = (RecallRequest, UpsertRequest, DeleteRequest, ActivateRequest)
_SCHEMA_REF = "#/components/schemas/{model}"
_STATUS_DESCRIPTIONS = {
    400: "bad_json: the body is not JSON",
    401: "unauthorized: there is no right key",
    403: "forbidden: this key, name or origin may not",
    404: "not_found",
    408: "timeout: the body came too slowly",
    409: "release_refused, or encoder_mismatch",
    413: "too_large: the body",
    415: "unsupported_media_type",
    422: "invalid, or empty_query: `field` says where",
    429: "delta_full, or too_many_scans: see Retry-After",
    503: "overloaded, or not_ready: see Retry-After",
    507: "disk_full",
}

API_KEY_SECURITY: dict[str, Any] = {"security": [{"key": []}]}


def describe_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors that an endpoint may answer."""
    return {status: {"model": ErrorResponse, "description": _STATUS_DESCRIPTIONS[status]} for status in statuses}


def describe_request_body(model: type[BaseModel]) -> dict[str, Any]:
    """What an endpoint reads, and that it may need a key."""
    schema = {"$ref": _SCHEMA_REF.format(model=model.__name__)}
    return API_KEY_SECURITY | {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def build_openapi(app: FastAPI) -> dict[str, Any]:
    """All of it, made once."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        components = made.setdefault("components", {})
        schemas: dict[str, Any] = components.setdefault("schemas", {})
        for shape in _REQUEST_MODELS:
            schema = shape.model_json_schema(ref_template=_SCHEMA_REF)
            schemas |= schema.pop("$defs", {})
            schemas[shape.__name__] = schema
        components["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer", "description": "A read key, or an admin key for changes."}
        }
        app.openapi_schema = made
    return app.openapi_schema
