"""Exceptions that vecall raises deliberately.

VecallError                    root of the tree; catches all of them
├── ConfigError                vecall.toml, or a setting given in code, is invalid
├── DataError                  a table does not match the schema
├── TrainingError              a run cannot be trained, resumed or read
├── ExportError                the exported towers give other vectors than the trained ones
├── QueryError                 a request is invalid; carries `code` and `field`, as over HTTP
│   └── EncoderMismatchError   a vector comes from another encoder than the release's
├── ForkError                  this process was forked from one that had used vecall, and would deadlock
├── RankerUnavailableError  a release has a ranker that cannot run here; recall's order answers
├── EngineUnavailableError     the server that holds the index does not answer; retry later
├── OverloadedError            the service is at its capacity; retry later
│   └── TooManyScansError      too many requests are scanning large parts of the catalogue
└── StoreError                 an operation on a store failed
    ├── InvalidReleaseError    a release is damaged or incomplete; carries the file's name
    ├── JournalCorruptedError  the journal of live changes is damaged; carries the operation's sequence number
    ├── DeltaFullError         no more live changes are accepted until they are compacted
    ├── JournalIOError         the journal cannot be read or written at present; tells whether the disk is full
    └── LockedError            another process holds the store's lock; carries its pid

Each message says what was received, what was expected and what to do.
"""

from pathlib import Path


class VecallError(Exception):
    """Root of the exception tree."""


class ConfigError(VecallError):
    """A setting is invalid; the message starts with the path of its key, such as `model.dim`."""


class DataError(VecallError):
    """A table does not match the schema; the message names the file, the column and example rows."""


class TrainingError(VecallError):
    """A run cannot be trained, resumed or read."""


class ExportError(VecallError):
    """The exported towers give other vectors than the trained ones, so they must not be published."""


class RankerUnavailableError(VecallError):
    """A ranker cannot run on this machine, such as for want of its package."""


class QueryError(VecallError):
    """A request is invalid.

    Attributes:
        code: Machine-readable code, such as `invalid` or `empty_query`.
        field: Path of the invalid part, such as `where[0].op`; None for the whole request.
    """

    def __init__(self, message: str, *, code: str = "invalid", field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.field = field


class EncoderMismatchError(QueryError):
    """A vector comes from another encoder than the release's, so its scores would be meaningless."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message, code="encoder_mismatch", field=field)


class ForkError(VecallError):
    """This process was forked from one that had used vecall: native libraries would wait for threads it lacks."""


class EngineUnavailableError(VecallError):
    """The server that holds a release's index does not answer, or not in time; a retry later may succeed.

    Attributes:
        code: Machine-readable code, as over HTTP.
    """

    code = "engine_unavailable"


class OverloadedError(VecallError):
    """A request waited too long, or the queue is full; a retry a little later may succeed.

    Attributes:
        code: Machine-readable code, as over HTTP.
    """

    code = "overloaded"


class TooManyScansError(OverloadedError):
    """Too many requests are scanning large parts of the catalogue; another would slow down all requests."""

    code = "too_many_scans"


class StoreError(VecallError):
    """An operation on a store failed."""


class DeltaFullError(StoreError):
    """The release has `max_delta_items` live changes; no more are accepted until they are compacted.

    Attributes:
        code: Machine-readable code, as over HTTP.
    """

    code = "delta_full"


class InvalidReleaseError(StoreError):
    """A release is damaged or incomplete, and was not opened.

    Attributes:
        file: Name of the offending file, relative to the release's directory.
    """

    def __init__(self, message: str, *, file: str) -> None:
        super().__init__(message)
        self.file = file


class JournalCorruptedError(StoreError):
    """The journal of live changes does not hold what was written, so it is not used.

    Attributes:
        seq: Sequence number of the damaged or missing operation; None if unknown.
    """

    def __init__(self, message: str, *, seq: int | None) -> None:
        super().__init__(message)
        self.seq = seq


class JournalIOError(StoreError):
    """The journal of live changes cannot be read or written at present; acknowledged changes are safe.

    Attributes:
        disk_full: Whether its disk has no space left.
    """

    def __init__(self, message: str, *, disk_full: bool) -> None:
        super().__init__(message)
        self.disk_full = disk_full


class LockedError(StoreError):
    """Another process holds the lock.

    Attributes:
        path: The lock file.
        pid: Process id of the holder; None if it could not be read.
    """

    def __init__(self, message: str, *, path: Path, pid: int | None) -> None:
        super().__init__(message)
        self.path = path
        self.pid = pid


def get_public_name(error: VecallError) -> str:
    """Return the name of the error's class, or of its nearest base in this module: other classes are internal."""
    return next(base.__name__ for base in type(error).__mro__ if base.__module__ == __name__)
