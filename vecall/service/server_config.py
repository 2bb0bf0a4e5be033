"""Configuration of uvicorn, its socket and the process's logs."""

import json
import logging
import socket
from datetime import UTC, datetime

import uvicorn
from starlette.types import ASGIApp

from vecall.errors import ConfigError
from vecall.service.connections import IDLE_SECONDS, limit_connections
from vecall.service.settings import ServeSettings

_REQUEST_FIELDS = ("request_id", "method", "endpoint", "status", "duration_ms", "error_code", "release")


def build_uvicorn_config(app: ASGIApp, settings: ServeSettings) -> uvicorn.Config:
    """The uvicorn configuration of an application."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        http=limit_connections(settings.max_connections),
        ws="none",  # an upgrade would take the connection out of the limits
        timeout_graceful_shutdown=settings.drain_seconds,
        timeout_keep_alive=int(IDLE_SECONDS),
    )


def bind_socket(host: str, port: int, *, reuse_port: bool = False, reuse_address: bool = True) -> socket.socket:
    """Bind a TCP socket.

    Args:
        host: IPv4 or IPv6 address, or a name.
        port: 0 picks a free one.
        reuse_port: set SO_REUSEPORT, so that several workers may bind the same address.
        reuse_address: set SO_REUSEADDR, so that connections in TIME_WAIT do not block the address.

    Raises:
        ConfigError: the address cannot be bound.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse_address))
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(reuse_port))
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ConfigError(f"--host {host} --port {port}: {error.strerror}; choose another") from error
    return bound


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON, with the request's fields but nothing of its body."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {name: getattr(record, name) for name in _REQUEST_FIELDS if hasattr(record, name)}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False, default=str)


def configure_json_logging(*, verbose: bool) -> None:
    """Send all logs to stderr as JSON lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("vecall").setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.INFO)
