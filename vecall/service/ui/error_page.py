"""Errors as people see them: a page where a browser asked for one, JSON for everybody else."""

from functools import lru_cache, partial
from urllib.parse import parse_qs, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import Response
from starlette.types import Scope

from vecall.service.responses import Refusal, refused
from vecall.service.ui.i18n import TEXTS, language_of

_FOR_MACHINES = ("/v1/", "/metrics", "/openapi.json", "/healthz", "/readyz", "/page/", "/static/")


@lru_cache(maxsize=1)
def templates() -> Environment:
    """The pages' templates."""
    environment = Environment(
        loader=PackageLoader("vecall.service.page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["query"] = partial(urlencode, doseq=True)
    return environment


def error_response(refusal: Refusal, scope: Scope) -> Response:
    """An error's answer to the request of an ASGI scope: a page, if a browser asked for one."""
    plain = refused(refusal, scope)
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    path = str(scope["path"])
    if scope["method"] != "GET" or "text/html" not in headers.get("accept", "") or path.startswith(_FOR_MACHINES):
        return plain
    language = _language(scope, headers.get("accept-language", ""))
    html = (
        templates()
        .get_template("error.html")
        .render(
            t=TEXTS[language],
            lang=language,
            languages=TEXTS,
            path=path,
            given={},
            release=None,
            problem=None,
            status=refusal.status,
            message=str(refusal),
        )
    )
    return Response(html, refusal.status, refusal.headers | {"Content-Language": language}, media_type="text/html")


def _language(scope: Scope, accepted: str) -> str:
    try:
        asked = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=200).get("lang", [""])[0]
    except ValueError:
        asked = ""
    return language_of(asked, accepted)
