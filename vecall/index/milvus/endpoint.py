"""The Milvus server that this process uses: its settings, the environment's overrides and the token."""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from vecall.errors import ConfigError
from vecall.index.milvus.settings import MilvusSettings, check_uri

URI_VARIABLE, TOKEN_VARIABLE = "VECALL_MILVUS_URI", "VECALL_MILVUS_TOKEN"


@dataclass(frozen=True)
class MilvusEndpoint:
    """A server and how to log in. Its text, as in logs and errors, has no token.

    Attributes:
        uri: `http://HOST[:PORT]` or `https://HOST[:PORT]`.
        db: database.
        ca: file with the certificate to trust, for https; empty: those of the system.
        token: `USER:PASSWORD` or an API key; empty: none.
    """

    uri: str
    db: str = "default"
    ca: str = ""
    token: str = field(default="", repr=False)

    def __str__(self) -> str:
        return self.uri if self.db == "default" else f"{self.uri} (database {self.db})"


def resolve_endpoint(settings: MilvusSettings, environ: Mapping[str, str] = os.environ) -> MilvusEndpoint:
    """Return the server that the settings name, or the environment in their place.

    Args:
        settings: `[index.milvus]`.
        environ: environment: `VECALL_MILVUS_URI` overrides `uri`, `VECALL_MILVUS_TOKEN` is the token.

    Raises:
        ConfigError: `VECALL_MILVUS_URI` is no address, `ca` cannot be read, or a token would be sent unencrypted to
            another machine.
    """
    uri = settings.uri
    if override := environ.get(URI_VARIABLE, "").strip():
        try:
            check_uri(override)
        except ValueError as error:
            raise ConfigError(f"{URI_VARIABLE}: {error}") from None
        uri = override
    is_encrypted = uri.startswith("https://")
    token = environ.get(TOKEN_VARIABLE, "").strip()
    if token and not is_encrypted and not _is_loopback(uri):
        raise ConfigError(
            f"index.milvus.uri: {TOKEN_VARIABLE} is set, and {uri} would receive it unencrypted from another machine: "
            "use https://, reach the server through 127.0.0.1, or unset the token"
        )
    if settings.ca and is_encrypted and not Path(settings.ca).is_file():
        raise ConfigError(f"index.milvus.ca: {settings.ca!r} is not a file: give the path of a PEM certificate")
    return MilvusEndpoint(uri=uri, db=settings.db, ca=settings.ca if is_encrypted else "", token=token)


def _is_loopback(uri: str) -> bool:
    """Whether an address is this machine's own; names other than localhost are not looked up."""
    host = urlsplit(uri).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
