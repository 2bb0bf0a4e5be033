"""How uvicorn is to listen."""

import uvicorn
from fastapi import FastAPI

from vecall.service.settings import ServeSettings


def listening(app: FastAPI, settings: ServeSettings) -> uvicorn.Config:
    """The configuration of uvicorn for an application."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        limit_concurrency=settings.connections,
        timeout_graceful_shutdown=settings.drain_seconds,
        timeout_keep_alive=75,
    )
