"""Every exception that vecall raises on purpose.

VecallError                  catch this one to catch them all
├── ConfigError              vecall.toml, or a setting given in code, is wrong
├── DataError                a table does not hold what the schema says
├── TrainingError            a run cannot be trained, resumed or read
├── ExportError              the exported towers do not answer as the trained ones do
├── QueryError               a request is wrong; carries `code` and `field`, as over HTTP
└── StoreError               a store cannot do what was asked
    ├── ReleaseRefused       a release is damaged or incomplete; carries the file's name
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


class StoreError(VecallError):
    """A store cannot do what was asked."""


class ReleaseRefused(StoreError):  # noqa: N818 - it is what happened, and reads so where it is caught
    """A release is damaged or incomplete and is not opened.

    Attributes:
        file: name of the file that is to blame, relative to the release's folder.
    """

    def __init__(self, message: str, *, file: str) -> None:
        super().__init__(message)
        self.file = file


class Locked(StoreError):  # noqa: N818 - as above
    """Another process holds the lock.

    Attributes:
        path: the lock file.
        pid: the holder's process id, where it could be read.
    """

    def __init__(self, message: str, *, path: Path, pid: int | None) -> None:
        super().__init__(message)
        self.path = path
        self.pid = pid
