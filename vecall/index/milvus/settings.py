"""The `[index.milvus]` section of vecall.toml: where the Milvus server is, and how it is used."""

import re
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from vecall.settings_base import SettingsModel

_NAME_PATTERN = r"[A-Za-z_][A-Za-z0-9_]{0,254}"  # Milvus's own rule for databases, collections and aliases


class MilvusSettings(SettingsModel):
    """Server of the engine `milvus`. The token is no setting: it comes from VECALL_MILVUS_TOKEN alone."""

    uri: str = Field(
        "http://127.0.0.1:19530", description="http or https address of the server; VECALL_MILVUS_URI overrides it"
    )
    db: str = Field("default", description="database of the server")
    ca: str = Field(
        "",
        description="PEM file of the certificate to trust, for https, relative to this file; empty: the system's",
    )
    replicas: int = Field(1, ge=1, description="copies of a collection in the query nodes' memory")
    shards: int = Field(1, ge=1, le=64, description="shards of a collection")
    timeout_ms: float = Field(200.0, gt=0, description="longest that a search may take")
    build_stall_minutes: float = Field(
        10.0, gt=0, description="longest that inserting, indexing or loading may go on without progress"
    )
    when_down: Literal["refuse", "popular"] = Field(
        "refuse",
        description="while the server does not answer: refuse requests (503 engine_unavailable), or answer the popular "
        "items and say so",
    )
    alias: str = Field("", description="alias of the current collection, kept for other tools; vecall never reads it")

    @field_validator("uri")
    @classmethod
    def _check_uri(cls, uri: str) -> str:
        check_uri(uri)
        return uri

    @field_validator("db", "alias")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name and not re.fullmatch(_NAME_PATTERN, name):
            raise ValueError(
                f"expected up to 255 letters, digits and _, not starting with a digit, got {name!r}: Milvus accepts no "
                "other names"
            )
        return name

    @model_validator(mode="after")
    def _check_db_and_ca(self) -> Self:
        if not self.db:
            raise ValueError("db is empty: name a database, such as 'default'")
        if self.ca and not self.uri.startswith("https://"):
            raise ValueError(
                f"ca is set, but uri = {self.uri!r} is not encrypted: begin it with https://, or leave ca out"
            )
        return self


def check_uri(uri: str) -> None:
    """Check the address of a server.

    Raises:
        ValueError: it is not `http://HOST[:PORT]` or `https://HOST[:PORT]`. The text repeats no password.
    """
    advice = "expected http://HOST:PORT or https://HOST:PORT, such as http://127.0.0.1:19530"
    try:
        parts = urlsplit(uri)
        _ = parts.port  # raises if it is no port
    except ValueError as error:
        raise ValueError(f"{advice}; this address cannot be read: {type(error).__name__}") from None
    if "@" in uri:
        raise ValueError(
            f"{advice}; this address contains an @, so perhaps a password, which configs and releases would repeat: "
            "put USER:PASSWORD into the environment variable VECALL_MILVUS_TOKEN"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{advice}, got {uri!r}")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(f"{advice}, got {uri!r}: name the database in index.milvus.db, not in the address")
