"""Structured logs: one JSON object a line, without anything of what was asked."""

import json
import logging
from datetime import UTC, datetime

_REQUEST_FIELDS = ("request", "method", "endpoint", "status", "ms", "code", "release")


class JsonFormatter(logging.Formatter):
    """A record as JSON: time, level, logger, message, and what of a request may be told."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        told |= {name: getattr(record, name) for name in _REQUEST_FIELDS if hasattr(record, name)}
        if record.exc_info:
            told["trace"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False, default=str)


def configure_json_logging(*, verbose: bool) -> None:
    """All logs on stderr, as JSON lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("vecall").setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.INFO)
