"""Where and how uvicorn is to listen."""

import socket

import uvicorn
from fastapi import FastAPI

from vecall.errors import ConfigError
from vecall.service.settings import ServeSettings


def build_uvicorn_config(app: FastAPI, settings: ServeSettings) -> uvicorn.Config:
    """The configuration of uvicorn for an application."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        limit_concurrency=settings.max_connections,
        timeout_graceful_shutdown=settings.drain_seconds,
        timeout_keep_alive=75,
    )


def bind_socket(host: str, port: int, *, reuse_port: bool = False, reuse_address: bool = True) -> socket.socket:
    """A socket at an address.

    Args:
        host: of the address.
        port: of the address.
        reuse_port: others of this user may have it too, if theirs is shared.
        reuse_address: it may be had while connections of who had it before are not forgotten.

    Raises:
        ConfigError: it cannot be had.
    """
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse_address))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(reuse_port))
    try:
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise ConfigError(f"--host {host} --port {port}: {error.strerror}; choose another") from error
    return made
