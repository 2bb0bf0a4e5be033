"""Who may ask and who may change: API keys."""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vecall.errors import ConfigError
from vecall.settings_base import read_toml

Role = Literal["read", "admin"]

_MIN_KEY_LENGTH = 16  # characters
_ROLE_BY_VARIABLE: dict[str, Role] = {"VECALL_READ_KEY": "read", "VECALL_ADMIN_KEY": "admin"}


@dataclass(frozen=True, repr=False)
class ApiKeys:
    """Keys by role; an admin may read too. Without any key everything is open, so it must not leave the machine.

    Attributes:
        read_keys: keys that may ask.
        admin_keys: keys that may ask and change.
    """

    read_keys: tuple[bytes, ...] = ()
    admin_keys: tuple[bytes, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.read_keys or self.admin_keys)

    def authenticate(self, credential: str) -> Role | None:
        """What a key allows. Every key is compared whole, so the time taken tells nothing of how much was right."""
        key = credential.encode("utf-8", "surrogateescape")
        is_admin = _matches_any(key, self.admin_keys)
        is_reader = _matches_any(key, self.read_keys)
        return "admin" if is_admin else "read" if is_reader else None


def _matches_any(key: bytes, valid_keys: tuple[bytes, ...]) -> bool:
    return sum(hmac.compare_digest(key, one) for one in valid_keys) > 0  # `any` would end at the first


def load_api_keys(environment: Mapping[str, str], path: Path | None) -> ApiKeys:
    """Keys of the environment, VECALL_READ_KEY and VECALL_ADMIN_KEY, and of a file beside them.

    Args:
        environment: of the process.
        path: TOML with `read` and `admin`, each a key or a list of keys, so that keys can be changed without a gap.

    Raises:
        ConfigError: the file is not as it has to be, or a key is too short. No message shows a key.
    """
    found: dict[Role, list[bytes]] = {"read": [], "admin": []}
    for name, role in _ROLE_BY_VARIABLE.items():
        if name in environment:
            found[role].append(_validate_key(name, environment[name]))
    for role_name, given in ({} if path is None else read_toml(path, is_secret=True)).items():
        if role_name not in ("read", "admin"):
            raise ConfigError(f"{path}: {role_name}: unknown key; expected read and admin")
        role = "admin" if role_name == "admin" else "read"
        for number, one in enumerate(given if isinstance(given, list) else [given]):
            found[role].append(_validate_key(f"{path}: {role}[{number}]", one))
    return ApiKeys(tuple(found["read"]), tuple(found["admin"]))


def _validate_key(location: str, key: object) -> bytes:
    if (
        not isinstance(key, str)
        or len(key) < _MIN_KEY_LENGTH
        or not key.isascii()
        or not key.isprintable()
        or " " in key
    ):
        raise ConfigError(
            f"{location}: expected a key of at least {_MIN_KEY_LENGTH} ASCII characters without blanks, such as "
            "`openssl rand -hex 24` makes"
        )
    return key.encode()
