"""Index whose graph is a collection of a Milvus server; the vectors stay on this machine."""

import weakref

from vecall.index.milvus.session import CollectionSession
from vecall.index.remote import RemoteIndex, WhenDown
from vecall.index.stored_vectors import StoredVectors


class MilvusIndex(RemoteIndex):
    """Search of a collection, with exact scores from stored vectors.

    Args:
        vectors: the stored vectors; row i is the key of vector i in the collection.
        session: the collection; closed at the end of the index.
        when_down: what happens to a request while the server does not answer.

    Attributes:
        when_down: as given.
    """

    def __init__(self, vectors: StoredVectors, session: CollectionSession, when_down: WhenDown) -> None:
        super().__init__(vectors, session)
        self._session, self.when_down = session, when_down
        # Requests hold on to a release that is no longer served, so the last of them may end the session.
        weakref.finalize(self, session.close)

    @property
    def unavailable_reason(self) -> str | None:
        """Why searches are refused at present without asking the server; None while they are tried."""
        return self._session.unavailable_reason

    def load(self) -> None:
        """Let the server load the collection, and wait for it. See `CollectionSession.load`."""
        self._session.load()

    def mark_current(self) -> None:
        """Let the alias name the collection. See `CollectionSession.point_alias`."""
        self._session.point_alias()

    def unload(self) -> None:
        """Let the server take the collection out of its memory. See `CollectionSession.unload`."""
        self._session.unload()

    def close(self) -> None:
        """End threads and connections of this process; searches raise from now on."""
        self._session.close()
