"""Errors as people see them: a page where a browser asked for one, JSON for everybody else."""

from functools import lru_cache, partial
from urllib.parse import parse_qs, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import Response
from starlette.types import Scope

from vecall.service.responses import HttpError, to_error_response
from vecall.service.ui.i18n import TEXTS, negotiate_language

_API_PREFIXES = ("/v1/", "/metrics", "/openapi.json", "/healthz", "/readyz", "/ui/", "/static/")


@lru_cache(maxsize=1)
def load_templates() -> Environment:
    """The pages' templates."""
    environment = Environment(
        loader=PackageLoader("vecall.service.ui"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["query"] = partial(urlencode, doseq=True)
    return environment


def render_error(error: HttpError, scope: Scope) -> Response:
    """An error's answer to the request of an ASGI scope: a page, if a browser asked for one."""
    plain = to_error_response(error, scope)
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    path = str(scope["path"])
    if scope["method"] != "GET" or "text/html" not in headers.get("accept", "") or path.startswith(_API_PREFIXES):
        return plain
    language = _detect_language(scope, headers.get("accept-language", ""))
    html = (
        load_templates()
        .get_template("error.html")
        .render(
            t=TEXTS[language],
            lang=language,
            languages=TEXTS,
            path=path,
            query_params={},
            release=None,
            degraded_reason=None,
            status=error.status,
            message=str(error),
        )
    )
    return Response(html, error.status, error.headers | {"Content-Language": language}, media_type="text/html")


def _detect_language(scope: Scope, accept_language: str) -> str:
    try:
        asked = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=200).get("lang", [""])[0]
    except ValueError:
        asked = ""
    return negotiate_language(asked, accept_language)
