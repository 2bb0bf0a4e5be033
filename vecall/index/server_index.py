"""Interface of an index on a server: what a service needs of it beside the search."""

from typing import Literal, Protocol

from vecall.index.base import Index

WhenDown = Literal["refuse", "popular"]


class ServerIndex(Index, Protocol):
    """Index whose search asks a server; `Engine.open` returns one where `Engine.is_remote`.

    If the server does not answer, the index opens nevertheless, its searches raise `EngineUnavailableError`, and it
    recovers by itself once the server answers. `search` ends after `vecall.index.search_deadline.get_remaining_seconds`
    if its own time limit is not earlier. What is wrong with an answer is its task too: it finds missing rows by a scan,
    and raises `EngineUnavailableError` where an answer cannot be true.
    """

    @property
    def when_down(self) -> WhenDown:
        """What happens to a request while the server does not answer: it is refused, or popular items answer."""

    @property
    def unavailable_reason(self) -> str | None:
        """Why searches are refused at present without asking the server; None while they are tried."""

    def load(self) -> None:
        """Have the server load the index into its memory, and wait until it can be searched; quick if it can already.

        Called before a release is served. It undoes `unload` and `close`.

        Raises:
            EngineUnavailableError: the server does not answer, has no such index, or does not get ready in time.
        """

    def unload(self) -> None:
        """Let the server take the index out of its memory. Called a while after another release was switched to.

        Other processes may still search it: their searches fail until their own index has loaded it again by itself.

        Raises:
            EngineUnavailableError: the server does not answer.
        """

    def close(self) -> None:
        """End threads and connections of this process, and nothing on the server. Searches raise from now on."""
