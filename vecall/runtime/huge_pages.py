"""Large pages for torch's memory. torch reads this setting once, when it is loaded."""

import os
from functools import cache
from pathlib import Path

_VARIABLE = "THP_MEM_ALLOC_ENABLE"
_SYSTEM_SETTING_PATH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_ALLOWED = ("[always]", "[madvise]")  # the brackets mark the value that holds


def use_huge_pages() -> None:
    """Let torch ask Linux for pages of 2 MiB for its large tensors; a setting in the environment prevails.

    A step of a training gets its tensors anew, and the system clears their memory page by page, as much memory in 2 MiB
    in a fraction of the time. See docs/decisions/0022-huge-pages.md.

    Call it before torch is imported.
    """
    if _VARIABLE not in os.environ and _is_allowed():
        os.environ[_VARIABLE] = "1"


def _is_allowed() -> bool:
    return _has_allowed_value(_SYSTEM_SETTING_PATH)


@cache  # each access to a public name of the package asks
def _has_allowed_value(path: Path) -> bool:
    try:
        setting = path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return False  # torch would warn
    return any(value in setting for value in _ALLOWED)
