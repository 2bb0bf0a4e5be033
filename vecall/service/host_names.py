"""Host names and addresses as URLs and the header `Host` have them."""

from functools import lru_cache
from urllib.parse import urlsplit


def bracket_ipv6(host: str) -> str:
    """An IPv6 address in brackets, as in a `Host` header or URL; another name unchanged."""
    return f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else host


@lru_cache(maxsize=64)
def parse_hostname(host: str) -> str:
    """A `Host` header's value without its port; empty if it is invalid."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def is_hostname(name: str) -> bool:
    """Whether a text is a host name or address, with or without a port, and not a URL."""
    return "/" not in name and "@" not in name and parse_hostname(bracket_ipv6(name)) != ""


def format_url(host: str, port: int) -> str:
    """The URL of a service on a host and port."""
    return f"http://{bracket_ipv6(host)}:{port}"
