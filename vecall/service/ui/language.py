"""Choice of the language of a page."""

from vecall.service.ui.i18n import TEXTS


def negotiate_language(requested: str | None, accept_language: str) -> str:
    """The requested language if there is one, else the first of the browser's languages that the pages have."""
    preferred = (part.partition(";")[0].strip()[:2].lower() for part in accept_language.split(","))
    for code in (requested or "", *preferred):
        if code in TEXTS:
            return code
    return "en"
