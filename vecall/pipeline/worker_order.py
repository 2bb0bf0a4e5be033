"""What the launcher tells a training process, and the error that the process tells it."""

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from vecall.errors import ConfigError, DataError, TrainingError, VecallError
from vecall.training.distributed import LostProcessError

_ERROR_TYPES = {error.__name__: error for error in (ConfigError, DataError, TrainingError, LostProcessError)}


class WorkerOrder(BaseModel):
    """Arguments of a training process.

    Attributes:
        config: Settings, as `Config.as_json` returns them.
        run_dir: Run directory.
        init: Directory of the run to start from, or None.
        log_level: Lowest level of vecall's log records.
        error_path: File that takes a `WorkerError`.
        event_descriptor: Descriptor of the pipe for progress and log records; None for a silent process.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    config: dict[str, Any]
    run_dir: Path
    init: Path | None
    log_level: int
    error_path: Path
    event_descriptor: int | None


class WorkerError(BaseModel):
    """Exception of vecall that ended a training process.

    Attributes:
        type: Name of its class.
        message: Its text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    type: str
    message: str

    @classmethod
    def from_exception(cls, error: VecallError) -> Self:
        """Describe an exception."""
        return cls(type=type(error).__name__, message=str(error))

    def to_exception(self) -> VecallError:
        """Build the exception, or a `VecallError` for a class that needs more than a text."""
        return _ERROR_TYPES.get(self.type, VecallError)(self.message)
