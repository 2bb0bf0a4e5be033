"""Authentication by API keys, and protection of writes against cross-site requests."""

import base64
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from vecall.errors import ConfigError
from vecall.service.responses import JSON_MEDIA_TYPE, HttpError
from vecall.settings_base import read_toml

Role = Literal["read", "admin"]

_MIN_KEY_LENGTH = 16
_ROLE_BY_VARIABLE: dict[str, Role] = {"VECALL_READ_KEY": "read", "VECALL_ADMIN_KEY": "admin"}


@dataclass(frozen=True, repr=False)
class ApiKeys:
    """Keys by role. Without any key every request is allowed, so the service must stay on loopback.

    Attributes:
        read_keys: may recall and read state.
        admin_keys: may write as well.
    """

    read_keys: tuple[bytes, ...] = ()
    admin_keys: tuple[bytes, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.read_keys or self.admin_keys)

    def authenticate(self, credential: str) -> Role | None:
        """The role of a key, None for an unknown one, in a time that does not depend on how much of it is right."""
        key = credential.encode("utf-8", "surrogateescape")
        is_admin = _matches_any(key, self.admin_keys)
        is_reader = _matches_any(key, self.read_keys)
        return "admin" if is_admin else "read" if is_reader else None


def _matches_any(key: bytes, valid_keys: tuple[bytes, ...]) -> bool:
    return sum(hmac.compare_digest(key, valid) for valid in valid_keys) > 0  # `any` would stop at the first match


def load_api_keys(environment: Mapping[str, str], path: Path | None) -> ApiKeys:
    """Read API keys from VECALL_READ_KEY, VECALL_ADMIN_KEY and a file.

    Args:
        environment: variables of the process.
        path: TOML with `read` and `admin`, each a key or a list of keys, so that keys can be rotated without downtime.

    Raises:
        ConfigError: the file is invalid, or a key is too short. No message contains a key.
    """
    keys: dict[Role, list[bytes]] = {"read": [], "admin": []}
    for variable, role in _ROLE_BY_VARIABLE.items():
        if variable in environment:
            keys[role].append(_validate_key(variable, environment[variable]))
    keys_of_file = {} if path is None else read_toml(path, is_secret=True)
    if path is not None and not any(keys_of_file.values()):
        raise ConfigError(f"{path}: has no key, and without keys everybody may write: add one, or omit --keys")
    for name, values in keys_of_file.items():
        if name not in ("read", "admin"):
            raise ConfigError(f"{path}: {name}: unknown key; expected read and admin")
        role = "admin" if name == "admin" else "read"
        for index, value in enumerate(values if isinstance(values, list) else [values]):
            keys[role].append(_validate_key(f"{path}: {role}[{index}]", value))
    return ApiKeys(tuple(keys["read"]), tuple(keys["admin"]))


def _validate_key(location: str, key: object) -> bytes:
    if (
        not isinstance(key, str)
        or len(key) < _MIN_KEY_LENGTH
        or not key.isascii()
        or not key.isprintable()
        or " " in key
    ):
        raise ConfigError(
            f"{location}: expected a key of at least {_MIN_KEY_LENGTH} ASCII characters without spaces, such as the "
            "output of `openssl rand -hex 24`"
        )
    return key.encode()


class Authenticator:
    """Checks the credentials and the origin of a request.

    Args:
        api_keys: valid keys; without any, every request is allowed.
    """

    _WWW_AUTHENTICATE: ClassVar[dict[str, str]] = {"WWW-Authenticate": 'Bearer realm="vecall", Basic realm="vecall"'}

    def __init__(self, api_keys: ApiKeys) -> None:
        self._api_keys = api_keys

    def require_role(self, headers: Mapping[str, str], required_role: Role) -> None:
        """Check the request's key.

        Raises:
            HttpError: 401 without a valid key, 403 if the key's role is not sufficient.
        """
        if not self._api_keys:
            return
        role = self._api_keys.authenticate(_extract_key(headers.get("authorization", "")))
        if role is None:
            raise HttpError(
                401,
                "unauthorized",
                "an API key is required: Authorization: Bearer KEY",
                headers=self._WWW_AUTHENTICATE,
            )
        if required_role == "admin" and role != "admin":
            raise HttpError(403, "forbidden", "this key may only read; writes need an admin key")

    def has_role(self, headers: Mapping[str, str], role: Role) -> bool:
        """Whether the request's key has a role."""
        try:
            self.require_role(headers, role)
        except HttpError:
            return False
        return True


def check_csrf(headers: Mapping[str, str]) -> None:
    """Reject writes that a browser sends for a page of another origin.

    Such pages can send "simple" requests without asking; a JSON content type is not simple.

    Raises:
        HttpError: 403 for another origin, 415 for another content type.
    """
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != headers.get("host"):
        raise HttpError(403, "forbidden", "Origin: writes are accepted from this service's own pages", field="Origin")
    if headers.get("content-type", "").partition(";")[0].strip().lower() != JSON_MEDIA_TYPE:
        raise HttpError(
            415, "unsupported_media_type", f"Content-Type: expected {JSON_MEDIA_TYPE}", field="Content-Type"
        )


def _extract_key(authorization: str) -> str:
    """A bearer token, or the password that a browser asked for; empty if there is neither."""
    scheme, _, credential = authorization.partition(" ")
    match scheme.lower():
        case "bearer":
            return credential.strip()
        case "basic":
            try:
                return base64.b64decode(credential, validate=True).decode().partition(":")[2]
            except ValueError:  # no base64, or no ASCII or UTF-8
                return ""
    return ""
