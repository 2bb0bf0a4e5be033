"""Serving from its start to its end."""

import logging
import os
from pathlib import Path

import uvicorn

from vecall.errors import ConfigError
from vecall.service.app import create_app
from vecall.service.auth import load_api_keys
from vecall.service.guard import LOOPBACK_HOSTS
from vecall.service.logs import configure_json_logging
from vecall.service.recall_service import RecallService
from vecall.service.server_config import bind_socket, build_uvicorn_config
from vecall.service.settings import ServeSettings
from vecall.service.supervisor import run_workers

logger = logging.getLogger(__name__)


def serve(store_path: Path, settings: ServeSettings, *, keys_file: Path | None = None, verbose: bool = False) -> None:
    """Serve a store until SIGTERM or SIGINT; requests that have begun get their answers.

    Args:
        store: its folder.
        settings: how.
        keys_file: keys beside those of the environment.
        verbose: log what is of use to those who look for a mistake.

    Raises:
        ConfigError: others than this machine could connect, and there are no keys; the keys are wrong; or the port is
            taken.
        StoreError, ReleaseRefused, JournalDamaged, Locked: the store cannot be opened.
    """
    keys = load_api_keys(os.environ, keys_file)
    if settings.host not in LOOPBACK_HOSTS and not keys:
        raise ConfigError(
            f"--host {settings.host}: others than this machine could connect, so keys are needed: set VECALL_READ_KEY "
            "and VECALL_ADMIN_KEY, or give --keys FILE"
        )
    configure_json_logging(verbose=verbose)
    if settings.workers > 1:
        run_workers(store_path, settings, keys, verbose=verbose)
    else:
        port = bind_socket(settings.host, settings.port)  # a port that is taken is told before a store is opened
        serving = RecallService.open(store_path, settings)
        logger.info("running on http://%s:%d", settings.host, port.getsockname()[1])
        uvicorn.Server(build_uvicorn_config(create_app(serving, keys), settings)).run(sockets=[port])
