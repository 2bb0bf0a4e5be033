"""Routes of the pages. They are rendered on the server; only activating a release needs JavaScript."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from vecall.errors import QueryError
from vecall.service.endpoint import Endpoint, Handler
from vecall.service.execution import RequestDeadline
from vecall.service.recall_service import RecallService
from vecall.service.responses import to_json_response
from vecall.service.ui.error_page import load_templates
from vecall.service.ui.i18n import TEXTS
from vecall.service.ui.language import negotiate_language
from vecall.service.ui.page_contexts import ContextBuilder, PageContexts, PageRequest

_MAX_QUERY_FIELDS = 200  # of a query string
_MAX_PREFIX_LENGTH = 100
_STATIC_DIR = Path(__file__).parent / "static"


def build_ui_endpoints(
    service: RecallService, get_openapi_document: Callable[[], dict[str, Any]], *, has_keys: bool
) -> list[Endpoint]:
    """The explorer, the items, the releases and the API reference, and what their script calls."""
    contexts = PageContexts(service, get_openapi_document, has_keys=has_keys)

    async def suggest_users(request: Request) -> Response:
        prefix = request.query_params.get("prefix", "")[:_MAX_PREFIX_LENGTH]
        ids = await service.ui_pool.run(lambda _: contexts.suggest_user_ids(prefix))
        return to_json_response({"ids": [str(user_id) for user_id in ids]})  # JavaScript rounds integers above 2^53

    builders: dict[str, tuple[str, ContextBuilder]] = {
        "/": ("explore.html", contexts.build_explore),
        "/items": ("items.html", contexts.build_items),
        "/releases": ("releases.html", contexts.build_releases),
        "/docs": ("docs.html", contexts.build_api_docs),
    }
    return [
        *(
            Endpoint("GET", path, _create_page_handler(service, template_name, build_context), role="read")
            for path, (template_name, build_context) in builders.items()
        ),
        Endpoint("GET", "/ui/users", suggest_users, role="read"),
    ]


def mount_static_files() -> Mount:
    """Style sheet, script and icon."""
    return Mount("/static", StaticFiles(directory=_STATIC_DIR))


def _create_page_handler(service: RecallService, template_name: str, build_context: ContextBuilder) -> Handler:
    """A handler that renders a template in the reader's language."""

    async def handle_page(request: Request) -> Response:
        # From the scope: `request.url` fails on an invalid Host, which is not checked if there are API keys.
        query_params = _parse_query_string(request.scope["query_string"].decode("latin-1"))
        base_url = f"{request.scope['scheme']}://{request.headers.get('host', '')}"
        requested = (query_params.get("lang") or [""])[0]
        language = negotiate_language(requested, request.headers.get("accept-language", ""))

        def render_page(deadline: RequestDeadline) -> str:
            base_context = {
                "t": TEXTS[language],
                "lang": language,
                "languages": TEXTS,
                "path": request.scope["path"],
                "query_params": query_params,
                "release": service.snapshot.release.name,
                "degraded_reason": service.degraded_reason,
            }
            context = build_context(PageRequest(query_params, base_url, deadline))
            return load_templates().get_template(template_name).render(base_context | context)

        html = await service.ui_pool.run(render_page)
        headers = {"Content-Language": TEXTS[language]["lang_tag"]}
        return Response(html, media_type="text/html", headers=headers)

    return handle_page


def _parse_query_string(query_string: str) -> dict[str, list[str]]:
    try:
        return parse_qs(query_string, keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS)
    except ValueError:
        raise QueryError(f"the query string: at most {_MAX_QUERY_FIELDS} fields are allowed") from None
