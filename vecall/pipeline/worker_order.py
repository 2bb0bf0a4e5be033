"""What the launcher tells a training process, and the error that the process tells it."""

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from vecall.errors import ConfigError, DataError, LockedError, StoreError, TrainingError, VecallError
from vecall.training.distributed import LostProcessError

_KNOWN_ERRORS = ConfigError, DataError, StoreError, TrainingError, LostProcessError, VecallError
_ERROR_TYPES = {error.__name__: error for error in _KNOWN_ERRORS}


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
        type: Name of its class, or of the nearest base that `to_exception` knows.
        message: Its text.
        lock_path: Path of the lock, of a `LockedError`.
        lock_pid: Process id of its holder, as far as it is known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    type: str
    message: str
    lock_path: Path | None = None
    lock_pid: int | None = None

    @classmethod
    def from_exception(cls, error: VecallError) -> Self:
        """Describe an exception."""
        if isinstance(error, LockedError):
            return cls(type=LockedError.__name__, message=str(error), lock_path=error.path, lock_pid=error.pid)
        known = next(base.__name__ for base in type(error).__mro__ if base.__name__ in _ERROR_TYPES)
        return cls(type=known, message=str(error))

    def to_exception(self) -> VecallError:
        """Build the exception."""
        if self.lock_path is not None:
            return LockedError(self.message, path=self.lock_path, pid=self.lock_pid)
        return _ERROR_TYPES.get(self.type, VecallError)(self.message)
