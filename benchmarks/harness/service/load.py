"""Our own load: requests over loopback by asyncio, in a closed loop or at a rate, and what the answers took.

A closed loop asks again as soon as there is an answer. An open one asks when it is time, by a Poisson process, answered
or not, and counts from the time at which the request was due: a service that stalls cannot hide it.
"""

import asyncio
import gc
import json
import shutil
import subprocess
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

_MAX_RESPONSE_BYTES = 2**22  # bytes of an answer


@dataclass
class LoadResult:
    """What was measured.

    Attributes:
        latencies_seconds: of each answered request.
        status_counts: how often each came.
        wall_seconds: seconds from the first request to the last answer.
        cpu_seconds: seconds of processor that this generator used.
        lateness_seconds: seconds by which requests left after their time, in an open loop.
    """

    latencies_seconds: list[float] = field(default_factory=list)
    status_counts: Counter[int] = field(default_factory=Counter)
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    lateness_seconds: list[float] = field(default_factory=list)

    def __add__(self, other: "LoadResult") -> "LoadResult":
        """Both, one after the other."""
        return LoadResult(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    @property
    def p50_seconds(self) -> float:
        """Seconds."""
        return float(np.median(self.latencies_seconds))

    @property
    def requests_per_second(self) -> float:
        """Answers, failed ones too."""
        return sum(self.status_counts.values()) / self.wall_seconds

    def summarize(self) -> dict[str, float]:
        """Latency in milliseconds, requests a second, failures, and the generator's share of one core."""
        p50, p99 = (
            np.percentile(self.latencies_seconds, [50, 99]) * 1e3 if self.latencies_seconds else (float("nan"),) * 2
        )
        made = {
            "requests": sum(self.status_counts.values()),
            "failed": sum(count for status, count in self.status_counts.items() if status != 200),
            "p50_ms": round(float(p50), 3),
            "p99_ms": round(float(p99), 3),
            "per_second": round(self.requests_per_second, 1),
            "generator_cpu": round(self.cpu_seconds / self.wall_seconds, 3),
        }
        if self.lateness_seconds:
            made["late_p99_ms"] = round(float(np.percentile(self.lateness_seconds, 99)) * 1e3, 3)
        return made


class HttpConnection:
    """One connection that is kept open."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: bytes) -> tuple[int, bytes]:
        """Status and body."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=_MAX_RESPONSE_BYTES)
        reader, writer = self._streams
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return int(head[9:12]), await reader.readexactly(length)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


def build_post(path: str, content: object) -> bytes:
    """A whole request."""
    body = json.dumps(content).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def run_closed_loop(port: int, requests: Sequence[bytes], *, connections: int, seconds: float) -> LoadResult:
    """So many connections, each of which asks again once it was answered."""

    async def run_connection(number: int, load: LoadResult, ends: float) -> None:
        line, place = HttpConnection(port), number
        while time.perf_counter() < ends:
            await _send_timed(line, requests[place % len(requests)], load, None)
            place += connections
        line.close()

    async def run_all(load: LoadResult) -> None:
        ends = time.perf_counter() + seconds
        await asyncio.gather(*(run_connection(number, load, ends) for number in range(connections)))

    return _run_measured(run_all)


def run_open_loop(port: int, requests: Sequence[bytes], *, rate: float, seconds: float, seed: int = 0) -> LoadResult:
    """So many requests a second on average, over as many connections as that takes."""

    async def run_all(load: LoadResult) -> None:
        loop, free, tasks = asyncio.get_running_loop(), deque[HttpConnection](), []

        def send_request(place: int, due: float) -> None:
            load.lateness_seconds.append(time.perf_counter() - due)
            line = free.popleft() if free else HttpConnection(port)  # in turn, as many clients would come
            tasks.append(loop.create_task(_send_and_return(line, requests[place % len(requests)], load, due, free)))

        await asyncio.to_thread(_schedule_requests, send_request, loop, rate, seconds, seed)
        await asyncio.gather(*tasks)
        for line in free:
            line.close()

    return _run_measured(run_all)


def _schedule_requests(
    send_request: Callable[[int, float], None], loop: asyncio.AbstractEventLoop, rate: float, seconds: float, seed: int
) -> None:
    """In a thread of its own: the loop's timers are a millisecond late."""
    for place, due in enumerate(iterate_arrivals(rate, seconds, seed)):
        loop.call_soon_threadsafe(send_request, place, due)


def iterate_arrivals(rate: float, seconds: float, seed: int = 0) -> Iterator[float]:
    """The times of a Poisson process of so many a second on average, each given when it has come."""
    rng = np.random.default_rng(seed)
    due = begun = time.perf_counter()
    while (due := due + rng.exponential(1 / rate)) < begun + seconds:
        time.sleep(max(0.0, due - time.perf_counter()))
        yield due


async def _send_and_return(
    connection: HttpConnection, request: bytes, load: LoadResult, due: float, idle_connections: deque[HttpConnection]
) -> None:
    await _send_timed(connection, request, load, due)
    idle_connections.append(connection)


async def _send_timed(connection: HttpConnection, request: bytes, load: LoadResult, due: float | None) -> None:
    began = time.perf_counter() if due is None else due
    status, _ = await connection.send(request)
    load.status_counts[status] += 1
    if status == 200:
        load.latencies_seconds.append(time.perf_counter() - began)


def run_wrk(port: int, requests: Sequence[bytes], *, connections: int, seconds: float) -> float | None:
    """Answers a second by `wrk`, which takes less of the machine than we do; None where it is not installed."""
    if (program := shutil.which("wrk")) is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        bodies, script = Path(folder) / "bodies", Path(folder) / "requests.lua"
        bodies.write_bytes(b"\n".join(request.partition(b"\r\n\r\n")[2] for request in requests))
        script.write_text(_WRK_SCRIPT.format(bodies=bodies), encoding="utf-8")
        command = [program, "-t", "1", "-c", str(connections), "-d", f"{max(1, round(seconds))}s", "-s", str(script)]
        told = subprocess.run(
            [*command, f"http://127.0.0.1:{port}/v1/recall"], capture_output=True, text=True, check=True
        )
    if "Non-2xx" in told.stdout or "Socket errors" in told.stdout:
        raise SystemExit(told.stdout)
    return float(told.stdout.partition("Requests/sec:")[2].split()[0])


_WRK_SCRIPT = """
local bodies, number = {{}}, 0
for line in io.lines("{bodies}") do table.insert(bodies, line) end
request = function()
  number = number % #bodies + 1
  return wrk.format("POST", nil, {{["Content-Type"] = "application/json"}}, bodies[number])
end
"""


def _run_measured(work: Callable[[LoadResult], Coroutine[Any, Any, None]]) -> LoadResult:
    gc.collect()
    gc.disable()  # it would look through all that was kept, 40 ms in which nothing is asked, and count them as answers'
    try:
        load, began, cpu = LoadResult(), time.perf_counter(), time.process_time()
        uvloop.run(work(load))
        load.wall_seconds, load.cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    finally:
        gc.enable()
    return load
