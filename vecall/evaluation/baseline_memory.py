"""Check, before a baseline is fitted, that it fits into memory."""

from vecall.errors import ConfigError
from vecall.runtime.memory import available_memory_bytes


def check_baseline_memory(name: str, needed_bytes: int) -> None:
    """Check that a baseline's estimate of memory is at most what is free.

    Raises:
        ConfigError: It is more.
    """
    free_bytes = available_memory_bytes()
    if needed_bytes > free_bytes:
        raise ConfigError(
            f"{name} would need about {needed_bytes / 2**30:.1f} GiB of memory, and {free_bytes / 2**30:.1f} GiB are "
            "free; give the process more memory to have this baseline"
        )
