"""Error responses: an HTML page if a browser requested a page, JSON otherwise."""

from functools import lru_cache, partial
from urllib.parse import parse_qs, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

from vecall.service.responses import HttpError, to_error_response
from vecall.service.ui.i18n import TEXTS
from vecall.service.ui.language import negotiate_language

_API_PREFIXES = ("/v1/", "/metrics", "/openapi.json", "/healthz", "/readyz", "/ui/", "/static/")


@lru_cache(maxsize=1)
def load_templates() -> Environment:
    """The templates of the pages. They may not use undefined names, and escape all values."""
    environment = Environment(
        loader=PackageLoader("vecall.service.ui"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["query"] = partial(urlencode, doseq=True)
    return environment


def render_error(error: HttpError, scope: Scope) -> Response:
    """The response that reports an error to the request of an ASGI scope."""
    json_response = to_error_response(error, scope)
    headers, path = Headers(scope=scope), str(scope["path"])
    if scope["method"] != "GET" or "text/html" not in headers.get("accept", "") or path.startswith(_API_PREFIXES):
        return json_response
    language = _detect_language(scope, headers.get("accept-language", ""))
    texts = TEXTS[language]
    html = (
        load_templates()
        .get_template("error.html")
        .render(
            t=texts,
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
    return Response(
        html.encode(errors="backslashreplace"),  # the message may quote invalid Unicode from the request
        error.status,
        error.headers | {"Content-Language": texts["lang_tag"]},
        media_type="text/html",
    )


def _detect_language(scope: Scope, accept_language: str) -> str:
    try:
        requested = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=200).get("lang", [""])[0]
    except ValueError:
        requested = ""
    return negotiate_language(requested, accept_language)
