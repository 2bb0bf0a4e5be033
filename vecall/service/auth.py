"""Who may ask and who may change: API keys."""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vecall.errors import ConfigError
from vecall.settings_base import read_toml

Role = Literal["read", "admin"]

_SHORTEST = 16  # characters
_ENVIRONMENT: dict[str, Role] = {"VECALL_READ_KEY": "read", "VECALL_ADMIN_KEY": "admin"}


@dataclass(frozen=True, repr=False)
class Keys:
    """Keys by role; an admin may read too. Without any key everything is open, so it must not leave the machine.

    Attributes:
        read: keys that may ask.
        admin: keys that may ask and change.
    """

    read: tuple[bytes, ...] = ()
    admin: tuple[bytes, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.read or self.admin)

    def role_of(self, given: str) -> Role | None:
        """What a key allows. Every key is compared whole, so the time taken tells nothing of how much was right."""
        key = given.encode("utf-8", "surrogateescape")
        is_admin = _among(key, self.admin)
        is_reader = _among(key, self.read)
        return "admin" if is_admin else "read" if is_reader else None


def _among(key: bytes, known: tuple[bytes, ...]) -> bool:
    return sum(hmac.compare_digest(key, one) for one in known) > 0  # `any` would end at the first


def read_keys(environment: Mapping[str, str], file: Path | None) -> Keys:
    """Keys of the environment, VECALL_READ_KEY and VECALL_ADMIN_KEY, and of a file beside them.

    Args:
        environment: of the process.
        file: TOML with `read` and `admin`, each a key or a list of keys, so that keys can be changed without a gap.

    Raises:
        ConfigError: the file is not as it has to be, or a key is too short. No message shows a key.
    """
    found: dict[Role, list[bytes]] = {"read": [], "admin": []}
    for name, role in _ENVIRONMENT.items():
        if name in environment:
            found[role].append(_checked(name, environment[name]))
    for role_name, given in ({} if file is None else read_toml(file, secret=True)).items():
        if role_name not in ("read", "admin"):
            raise ConfigError(f"{file}: {role_name}: unknown key; expected read and admin")
        role = "admin" if role_name == "admin" else "read"
        for number, one in enumerate(given if isinstance(given, list) else [given]):
            found[role].append(_checked(f"{file}: {role}[{number}]", one))
    return Keys(tuple(found["read"]), tuple(found["admin"]))


def _checked(place: str, key: object) -> bytes:
    if not isinstance(key, str) or len(key) < _SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"{place}: expected a key of at least {_SHORTEST} ASCII characters without blanks, such as "
            "`openssl rand -hex 24` makes"
        )
    return key.encode()
