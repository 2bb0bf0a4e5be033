"""HTTP load generator over loopback by asyncio: closed loop, or open loop at a rate.

A closed loop sends the next request when the last one is answered. An open loop sends requests when they are
due by a Poisson process, answered or not, and counts latency from that time: a service that stalls cannot hide it.
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

from harness.timing import compute_percentiles

_MAX_RESPONSE_BYTES = 2**22


@dataclass
class LoadResult:
    """Measurements of a load.

    Attributes:
        latencies_seconds: of each request that was answered with status 200.
        status_counts: number of answers by status.
        wall_seconds: time from the first request to the last answer.
        cpu_seconds: CPU time of the load generator.
        lateness_seconds: by how much each request of an open loop was sent after it was due.
    """

    latencies_seconds: list[float] = field(default_factory=list)
    status_counts: Counter[int] = field(default_factory=Counter)
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    lateness_seconds: list[float] = field(default_factory=list)

    def __add__(self, other: "LoadResult") -> "LoadResult":
        """Concatenate two measurements."""
        return LoadResult(*(getattr(self, spec.name) + getattr(other, spec.name) for spec in fields(self)))

    @property
    def p50_seconds(self) -> float:
        """Median latency."""
        return float(np.median(self.latencies_seconds))

    @property
    def requests_per_second(self) -> float:
        """Answers per second of any status."""
        return sum(self.status_counts.values()) / self.wall_seconds

    def summarize(self) -> dict[str, float]:
        """Return counts, latency percentiles, throughput, and the generator's use of a core (0 .. 1)."""
        summary = {
            "requests": sum(self.status_counts.values()),
            "failed": sum(count for status, count in self.status_counts.items() if status != 200),
            **compute_percentiles([1e3 * seconds for seconds in self.latencies_seconds]),
            "per_second": round(self.requests_per_second, 1),
            "generator_cpu": round(self.cpu_seconds / self.wall_seconds, 3),
        }
        if self.lateness_seconds:
            summary["late_p99_ms"] = round(float(np.percentile(self.lateness_seconds, 99)) * 1e3, 3)
        return summary


def summarize_rounds(loads: Sequence[LoadResult]) -> dict[str, Any]:
    """Summarize all rounds together, and add the p99 of each round and their median."""
    p99_ms = [load.summarize()["p99_ms"] for load in loads]
    return sum(loads, LoadResult()).summarize() | {
        "p99_ms_by_round": p99_ms,
        "p99_ms_median": float(np.median(p99_ms)),
    }


class HttpConnection:
    """Keep-alive connection to a port of this machine."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: bytes) -> tuple[int, bytes]:
        """Send a request and return the status and the body of the answer; connects at the first call."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=_MAX_RESPONSE_BYTES)
        reader, writer = self._streams
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return int(head[9:12]), await reader.readexactly(length)

    def close(self) -> None:
        """Close the connection, if it was opened."""
        if self._streams is not None:
            self._streams[1].close()


def build_post(path: str, payload: object) -> bytes:
    """Return the bytes of a POST request with a JSON body."""
    body = json.dumps(payload).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def run_closed_loop(port: int, requests: Sequence[bytes], *, connections: int, seconds: float) -> LoadResult:
    """Send requests, repeated as needed, over connections that each wait for the answer before the next request."""

    async def run_connection(first: int, load: LoadResult, deadline: float) -> None:
        connection, index = HttpConnection(port), first
        while time.perf_counter() < deadline:
            await _send_timed(connection, requests[index % len(requests)], load, None)
            index += connections
        connection.close()

    async def run_all(load: LoadResult) -> None:
        deadline = time.perf_counter() + seconds
        await asyncio.gather(*(run_connection(first, load, deadline) for first in range(connections)))

    return _run_measured(run_all)


def run_open_loop(port: int, requests: Sequence[bytes], *, rate: float, seconds: float, seed: int = 0) -> LoadResult:
    """Send requests, repeated as needed, as a Poisson process over as many connections as that takes.

    Args:
        port: of the service.
        requests: see `build_post`.
        rate: mean number of requests per second.
        seconds: duration; answers to requests of this time are awaited.
        seed: of the arrival times.
    """

    async def run_all(load: LoadResult) -> None:
        loop, idle_connections, tasks = asyncio.get_running_loop(), deque[HttpConnection](), []

        def send_request(index: int, due: float) -> None:
            load.lateness_seconds.append(time.perf_counter() - due)
            # The connection that is idle longest, so that requests spread over connections as those of many clients.
            connection = idle_connections.popleft() if idle_connections else HttpConnection(port)
            request = requests[index % len(requests)]
            tasks.append(loop.create_task(_send_and_return(connection, request, load, due, idle_connections)))

        await asyncio.to_thread(_schedule_requests, send_request, loop, rate, seconds, seed)
        await asyncio.gather(*tasks)
        for connection in idle_connections:
            connection.close()

    return _run_measured(run_all)


def _schedule_requests(
    send_request: Callable[[int, float], None], loop: asyncio.AbstractEventLoop, rate: float, seconds: float, seed: int
) -> None:
    """Schedule each request on the loop when it is due. Runs in a thread: timers of the loop are a millisecond late."""
    for index, due in enumerate(iterate_arrivals(rate, seconds, seed)):
        loop.call_soon_threadsafe(send_request, index, due)


def iterate_arrivals(rate: float, seconds: float, seed: int = 0) -> Iterator[float]:
    """Sleep until each arrival of a Poisson process, and yield its time on the clock of `time.perf_counter`.

    Args:
        rate: mean number of arrivals per second.
        seconds: duration of the process.
        seed: of the intervals.
    """
    rng = np.random.default_rng(seed)
    due = start = time.perf_counter()
    while (due := due + rng.exponential(1 / rate)) < start + seconds:
        time.sleep(max(0.0, due - time.perf_counter()))
        yield due


async def _send_and_return(
    connection: HttpConnection, request: bytes, load: LoadResult, due: float, idle_connections: deque[HttpConnection]
) -> None:
    await _send_timed(connection, request, load, due)
    idle_connections.append(connection)


async def _send_timed(connection: HttpConnection, request: bytes, load: LoadResult, due: float | None) -> None:
    """Send a request and record its latency since `due`, or since now."""
    start = time.perf_counter() if due is None else due
    status, _ = await connection.send(request)
    load.status_counts[status] += 1
    if status == 200:
        load.latencies_seconds.append(time.perf_counter() - start)


def run_wrk(port: int, requests: Sequence[bytes], *, connections: int, seconds: float) -> float | None:
    """Return the answers per second of a closed loop by `wrk`, which takes less of the machine than this generator.

    Returns:
        None where `wrk` is not installed.

    Raises:
        SystemExit: requests failed; the text is the report of `wrk`.
    """
    if (program := shutil.which("wrk")) is None:
        return None
    with tempfile.TemporaryDirectory() as directory:
        bodies_path, script_path = Path(directory) / "bodies", Path(directory) / "requests.lua"
        bodies_path.write_bytes(b"\n".join(request.partition(b"\r\n\r\n")[2] for request in requests))
        script_path.write_text(_WRK_SCRIPT.format(bodies=bodies_path), encoding="utf-8")
        command = [program, "-t", "1", "-c", str(connections), "-d", f"{max(1, round(seconds))}s"]
        command += ["-s", str(script_path), f"http://127.0.0.1:{port}/v1/recall"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in report or "Socket errors" in report:
        raise SystemExit(report)
    return float(report.partition("Requests/sec:")[2].split()[0])


_WRK_SCRIPT = """
local bodies, number = {{}}, 0
for line in io.lines("{bodies}") do table.insert(bodies, line) end
request = function()
  number = number % #bodies + 1
  return wrk.format("POST", nil, {{["Content-Type"] = "application/json"}}, bodies[number])
end
"""


def _run_measured(work: Callable[[LoadResult], Coroutine[Any, Any, None]]) -> LoadResult:
    """Run a coroutine that fills a LoadResult, and add wall and CPU time."""
    gc.collect()
    # A collection walks all recorded latencies: 40 ms without requests, which would count as latency of the answers.
    gc.disable()
    try:
        load, start, cpu_start = LoadResult(), time.perf_counter(), time.process_time()
        uvloop.run(work(load))
        load.wall_seconds, load.cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    finally:
        gc.enable()
    return load
