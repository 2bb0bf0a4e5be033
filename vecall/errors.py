"""Every exception that vecall raises on purpose.

VecallError                  catch this one to catch them all
├── ConfigError              vecall.toml, or a setting given in code, is wrong
├── DataError                a table does not hold what the schema says
├── TrainingError            a run cannot be trained, resumed or read
├── ExportError              the exported towers do not answer as the trained ones do
├── QueryError               a request is wrong; carries `code` and `field`, as over HTTP
│   └── EncoderMismatch      a given vector is of another encoder than the release's
├── ForkError                this process was forked from one that had used vecall, and would hang
├── Overloaded               there is too much to do for this request just now; try again
│   └── TooManyScans         too many requests are scanning large parts of the pool
└── StoreError               a store cannot do what was asked
    ├── ReleaseRefused       a release is damaged or incomplete; carries the file's name
    ├── JournalDamaged       the journal of live changes is damaged; carries the operation's number
    ├── DeltaFull            there are too many live changes, until they are compacted
    ├── JournalFailed        the journal cannot be read or written just now; carries whether the disk is full
    └── Locked               another process holds the store's lock; carries its pid

Each message says what came, what was expected and what to do.
"""

from pathlib import Path


class VecallError(Exception):
    """Root of the exception tree."""


class ConfigError(VecallError):
    """A setting is wrong; the message starts with the path of its key, such as `model.dim`."""


class DataError(VecallError):
    """A table does not hold what the schema says; the message names file, column and example rows."""


class TrainingError(VecallError):
    """A run cannot be trained, resumed or read."""


class ExportError(VecallError):
    """The exported towers do not answer as the trained ones do, so they must not be published."""


class QueryError(VecallError):
    """A request is wrong.

    Attributes:
        code: what is wrong, in a word for machines (`invalid`, `empty_query`, ...).
        field: the part of the request that is wrong, such as `where[0].op`; None for the whole.
    """

    def __init__(self, message: str, *, code: str = "invalid", field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.field = field


class EncoderMismatchError(QueryError):
    """A vector was made by another encoder than the release's, so its scores would mean nothing."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message, code="encoder_mismatch", field=field)


class ForkError(VecallError):
    """This process was forked from one that had used vecall: libraries would wait for threads that are not here."""


class OverloadedError(VecallError):
    """A request waited too long, or too many wait already: trying again a little later may help.

    Attributes:
        code: as over HTTP.
    """

    code = "overloaded"


class TooManyScansError(OverloadedError):
    """Too many requests scan large parts of the pool, and one more would slow down all others."""

    code = "too_many_scans"


class StoreError(VecallError):
    """A store cannot do what was asked."""


class DeltaFullError(StoreError):
    """There are as many live changes beside the release as `max_delta_items` allows; they wait for compaction.

    Attributes:
        code: `delta_full`, as over HTTP.
    """

    code = "delta_full"


class InvalidReleaseError(StoreError):
    """A release is damaged or incomplete and is not opened.

    Attributes:
        file: name of the file that is to blame, relative to the release's folder.
    """

    def __init__(self, message: str, *, file: str) -> None:
        super().__init__(message)
        self.file = file


class JournalCorruptedError(StoreError):
    """The journal of live changes does not hold what was written, so it is not used.

    Attributes:
        seq: number of the operation that is damaged or missing, where it is known.
    """

    def __init__(self, message: str, *, seq: int | None) -> None:
        super().__init__(message)
        self.seq = seq


class JournalIOError(StoreError):
    """The journal of live changes cannot be read or written just now; what was acknowledged stands.

    Attributes:
        disk_full: there is no space left on its disk.
    """

    def __init__(self, message: str, *, disk_full: bool) -> None:
        super().__init__(message)
        self.disk_full = disk_full


class LockedError(StoreError):
    """Another process holds the lock.

    Attributes:
        path: the lock file.
        pid: the holder's process id, where it could be read.
    """

    def __init__(self, message: str, *, path: Path, pid: int | None) -> None:
        super().__init__(message)
        self.path = path
        self.pid = pid
