"""What a check found: a level, a message in English and Chinese, a number, and the setting to change."""

import math
from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "info"]
Language = Literal["en", "zh"]

LEVELS: tuple[Level, ...] = ("error", "warning", "info")
"""Levels, the most serious first."""


@dataclass(frozen=True)
class Message:
    """A text in both languages, or the template of one.

    Attributes:
        en: In English.
        zh: In Chinese.
    """

    en: str
    zh: str

    def format(self, **values: object) -> "Message":
        """Return the text with the placeholders of both languages replaced by the same values."""
        return Message(self.en.format(**values), self.zh.format(**values))

    def __add__(self, other: "Message") -> "Message":
        return Message(f"{self.en} {other.en}", f"{self.zh}{other.zh}")

    def get(self, language: Language) -> str:
        """Return the text in a language."""
        return self.zh if language == "zh" else self.en


@dataclass(frozen=True)
class Finding:
    """Result of a check.

    Attributes:
        check: Name of the check, which is that of its file.
        level: "error": the result cannot be trusted or used; "warning": it is worse than it need be; "info": to know.
        message: What was seen, with numbers, what it means, and what to do.
        value: The number that decided; None if there is none. In JSON, NaN is None too.
        setting: Key of vecall.toml, or command, to change; empty if there is none.
    """

    check: str
    level: Level
    message: Message
    value: float | None = None
    setting: str = ""

    def as_json(self, language: Language = "en") -> dict[str, object]:
        """Return the finding as `vecall doctor --json` prints it."""
        return {
            "check": self.check,
            "level": self.level,
            "message": self.message.get(language),
            "value": float(self.value) if self.value is not None and math.isfinite(self.value) else None,
            "setting": self.setting,
        }
