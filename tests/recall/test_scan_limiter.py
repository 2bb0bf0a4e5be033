from contextlib import contextmanager

import pytest

from vecall.errors import TooManyScansError
from vecall.recall import scan_limiter
from vecall.recall.scan_limiter import UNLIMITED_SCANS, ScanLimiter


@pytest.fixture(autouse=True)
def _small_threshold(monkeypatch):
    monkeypatch.setattr(scan_limiter, "_LARGE_SCAN_ROWS", 10)


def test_large_scan_beyond_the_limit_is_refused_and_small_ones_are_not():
    limiter = ScanLimiter(1)
    with limiter.acquire(10):
        with pytest.raises(TooManyScansError, match="scan of 1,234 items, and 1 such scans"), limiter.acquire(1234):
            pass
        with limiter.acquire(9):
            pass
    with limiter.acquire(10):  # the slot is free again
        pass


def test_slot_is_free_after_a_failed_scan():
    limiter = ScanLimiter(1)
    with pytest.raises(ValueError, match="broken"), limiter.acquire(10):
        raise ValueError("broken")
    with limiter.acquire(10):
        pass


def test_unlimited_scans_are_never_refused():
    with UNLIMITED_SCANS.acquire(10), UNLIMITED_SCANS.acquire(10):
        pass


def test_only_large_scans_are_offloaded():
    offloaded = []

    @contextmanager
    def offload():
        offloaded.append(True)
        yield

    limiter = ScanLimiter(2, offload=offload)
    with limiter.acquire(9), limiter.offload_if_large(9):
        assert offloaded == []
    with limiter.acquire(10), limiter.offload_if_large(10):
        assert len(offloaded) == 2
