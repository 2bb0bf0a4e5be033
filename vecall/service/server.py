"""Entry point of `vecall serve`."""

import logging
import os
from pathlib import Path

import uvicorn

from vecall.errors import ConfigError
from vecall.runtime.signals import treat_sighup_as_sigterm
from vecall.service.app import create_app
from vecall.service.auth import load_api_keys
from vecall.service.host_names import format_url
from vecall.service.recall_service import RecallService
from vecall.service.server_config import bind_socket, build_uvicorn_config, configure_json_logging
from vecall.service.settings import LOOPBACK_HOSTS, ServeSettings
from vecall.service.supervisor import run_workers

logger = logging.getLogger(__name__)


def run_server(
    store_path: Path, settings: ServeSettings, *, keys_file: Path | None = None, verbose: bool = False
) -> None:
    """Serve a store until SIGTERM or SIGINT; running requests are answered first.

    Args:
        store_path: directory of the store.
        settings: how to serve.
        keys_file: API keys beside those of the environment.
        verbose: log at debug level.

    Raises:
        ConfigError: the address is not loopback and there are no API keys, the keys are invalid, or the port is taken.
        StoreError, InvalidReleaseError, JournalCorruptedError, LockedError: the store cannot be opened.
    """
    api_keys = load_api_keys(os.environ, keys_file)
    if settings.host not in LOOPBACK_HOSTS and not api_keys:
        raise ConfigError(
            f"--host {settings.host}: binding to a non-loopback address requires API keys: set VECALL_READ_KEY and "
            "VECALL_ADMIN_KEY, or pass --keys FILE"
        )
    configure_json_logging(verbose=verbose)
    treat_sighup_as_sigterm()
    if settings.workers > 1:
        run_workers(store_path, settings, api_keys, verbose=verbose)
        return
    listener = bind_socket(settings.host, settings.port)  # a taken port is reported before the store is loaded
    try:
        service = RecallService.open(store_path, settings)
    except BaseException:
        listener.close()
        raise
    logger.info("running on %s", format_url(settings.host, listener.getsockname()[1]))
    uvicorn.Server(build_uvicorn_config(create_app(service, api_keys), settings)).run(sockets=[listener])
