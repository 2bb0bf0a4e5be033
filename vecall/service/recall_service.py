"""What a serving process does, apart from HTTP: answers in threads, changes, swaps, and what is told of them."""

import gc
import logging
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vecall.errors import ReleaseRefused, VecallError
from vecall.live.live_index import LiveIndex
from vecall.live.live_state import PeerSettings
from vecall.live.snapshot import Snapshot
from vecall.recall.query import Query
from vecall.recall.recaller import Answered, Recaller
from vecall.recall.scan_limiter import ScanLimit
from vecall.release.store import Store
from vecall.service.line import Line
from vecall.service.metrics.drift import Drift
from vecall.service.metrics.multiprocess import Siblings
from vecall.service.metrics.online_recall import LiveRecall
from vecall.service.metrics.registry import Telemetry, path_of
from vecall.service.parsing import ids_of, items_of, query_of
from vecall.service.pool import Pool, Turn
from vecall.service.release_watcher import Watcher
from vecall.service.settings import ServeSettings
from vecall.service.threads import answer_first, one_core_each, start

logger = logging.getLogger(__name__)

_PAGES_WAITING, _CHANGES_WAITING, _SWAPS_WAITING = 16, 64, 2  # requests
_MAX_EXAMPLES = 5
_PATIENCE_MS = 60_000.0  # of people, and of those who change something


class Serving:
    """A store being served. Open it, start it, and close it at the end.

    Attributes:
        settings: how.
        store: what is served.
        recaller: answers.
        line: where recalls are worked on.
        pages: where what people look at is made; they wait longer than machines do.
        changes: where upserts and deletes are, one after another.
        swaps: where releases are prepared and gone over to, beside changes.
        telemetry: what is told of all that.
        not_ready: why recalls are not answered yet; None once they are.
    """

    def __init__(
        self, settings: ServeSettings, store: Store, live: LiveIndex, siblings: Siblings | None = None
    ) -> None:
        self.settings, self.store, self._siblings = settings, store, siblings
        self.line = Line(settings.queue, settings.deadline_ms, aside=settings.scans, name="vecall-scan")
        self.recaller = Recaller(live, scans=ScanLimit(settings.scans, aside=self.line.aside))
        self.pages = Pool(1, _PAGES_WAITING, _PATIENCE_MS, name="vecall-pages")
        self.changes = Pool(1, _CHANGES_WAITING, _PATIENCE_MS, name="vecall-changes")
        self.swaps = Pool(1, _SWAPS_WAITING, _PATIENCE_MS, name="vecall-swaps")
        self.live_recall, self._drift = LiveRecall(settings.sample), Drift()
        self.telemetry = Telemetry(lambda: live.snapshot, self.live_recall, self._drift)
        self.not_ready: str | None = "the golden queries have not been asked yet"
        self._watcher = Watcher(store, live, settings.poll_seconds, self._went, self._looked)
        self._behind: str | None = None

    @classmethod
    def open(cls, path: Path, settings: ServeSettings, *, siblings: Siblings | None = None) -> "Serving":
        """Verify and open a store's current release, with its live changes.

        Args:
            path: the store's folder.
            settings: how to serve it.
            siblings: this process among others that serve it too.

        Raises:
            StoreError: there is no such store, or no current release.
            ReleaseRefused: a file is damaged.
            JournalDamaged, JournalFailed: the journal cannot be used.
            Locked: `writable`, and another process writes.
        """
        store = Store.open(path)
        live = LiveIndex.open(
            store,
            None,
            writable=settings.writable,
            max_delta_items=settings.delta_max,
            keep_previous=True,
            peers=_others(settings, siblings),
        )
        return cls(settings, store, live, siblings)

    @property
    def view(self) -> Snapshot:
        """What is served now."""
        return self.recaller.live.snapshot

    @property
    def problem(self) -> str | None:
        """Why this process is not as it should be; None where it is."""
        return self.not_ready or self._watcher.problem or self._behind or self._refused_changes()

    def _refused_changes(self) -> str | None:
        refused = self.view.refused
        if not refused:
            return None
        numbers = ", ".join(map(str, sorted(refused.values())[:_MAX_EXAMPLES]))
        return (
            f"release {self.view.release.name} cannot take {len(refused)} live changes ({numbers}): give these items "
            "again, or see `vecall journal list`"
        )

    def start(self) -> None:
        """Ask the golden queries, and from then on answer, follow the store and judge some answers.

        Called by the thread that is to answer.
        """
        one_core_each()
        answer_first()
        if self._siblings is None:
            start("vecall-golden", self._become_ready)
        else:
            self._become_ready()  # before a request comes here, which another process might have answered meanwhile
        start("vecall-watcher", self._watcher.run)
        start("vecall-live-recall", self.live_recall.run)

    def close(self) -> None:
        """End what was begun, then let the store go."""
        self.not_ready = "the service ends"
        self._watcher.end()
        self.live_recall.end()
        for pool in (self.line, self.pages, self.changes, self.swaps):
            pool.close()
        self.recaller.close()

    def recall(self, content: bytes, turn: Turn) -> Answered:
        """Answer a recall's body.

        Raises:
            QueryError: it is wrong.
            Overloaded: its deadline passed, or too many scans run.
        """
        return self.answer(query_of(content, self.settings.limits), turn)

    def answer(self, query: Query, turn: Turn) -> Answered:
        """Answer a query, and remember how it went."""
        turn.check()
        self._see_others()
        made = self.recaller.answer(query, between=turn.check)
        self.telemetry.answered(made, asked=query.k, queued_ms=turn.queued_ms)
        self._drift.add(made, query, served=self.view.release)
        self.live_recall.offer(path_of(made), made)
        return made

    def upsert(self, content: bytes) -> dict[str, Any]:
        """Take an upsert's body."""
        items, partial = items_of(content, self.settings.limits)
        return asdict(self.recaller.live.upsert(items, partial=partial))

    def delete(self, content: bytes) -> dict[str, Any]:
        """Take a deletion's body."""
        return asdict(self.recaller.live.delete(ids_of(content, self.settings.limits)))

    def activate(self, name: str) -> dict[str, Any]:
        """Go over to another release of the store, and make it the current one.

        Raises:
            StoreError, ReleaseRefused: it cannot be served; what is served stays.
        """
        try:
            previous = self.recaller.activate(name)
        except VecallError:
            self._went(False)
            raise
        self._went(True)
        return {"release": name, "previous": previous}

    def releases(self) -> dict[str, Any]:
        """All releases of the store, newest first."""
        current = self.store.find_current()
        listed = [manifest.listed() for manifest in self.store.releases(skip_damaged=True)]
        return {"current": None if current is None else current.release, "releases": listed}

    def metrics(self) -> bytes:
        """For Prometheus, of all processes that answer on this port."""
        text = self.telemetry.text()
        return text if self._siblings is None else self._siblings.together(text)

    def _looked(self) -> None:
        self._see_others()
        if self._siblings is not None:
            with suppress(OSError):  # the others then lack these metrics
                self._siblings.tell(self.telemetry.text())

    def _see_others(self) -> None:
        """What other processes wrote; if it cannot be read, what is known is served on, and `problem` says so."""
        try:
            self.recaller.live.refresh()
        except VecallError as error:
            if self._behind is None:
                logger.warning("changes by other processes are not seen: %s", error)
            self._behind = str(error)
        else:
            self._behind = None

    def _become_ready(self) -> None:
        release = self.view.release
        try:
            release.check_golden()
        except ReleaseRefused as error:
            if self.view.release is release:  # else another one has proved itself meanwhile
                self.not_ready = str(error)
            logger.critical("not ready: %s", error)
            return
        gc.collect()
        gc.freeze()  # what was loaded stays: to look through all of it now and then would stop requests for 60 ms
        self.not_ready = None
        logger.info("ready: release %s, %d items", self.view.release.name, len(self.view))

    def _went(self, done: bool) -> None:
        """After an attempt to go over to another release."""
        self.telemetry.swapped(done=done)
        if done:
            self.not_ready = None  # it has proved itself, whatever the first one did


def _others(settings: ServeSettings, siblings: Siblings | None) -> PeerSettings | None:
    """Who else serves the store: processes of this port, or, where this one only reads, perhaps a writer."""
    if siblings is not None:
        return PeerSettings(siblings.turns, settings.processes)
    return None if settings.writable else PeerSettings()
