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

_LIMIT = 2**22  # bytes of an answer


@dataclass
class Load:
    """What was measured.

    Attributes:
        seconds: of each answered request.
        statuses: how often each came.
        took: seconds from the first request to the last answer.
        cpu: seconds of processor that this generator used.
        late: seconds by which requests left after their time, in an open loop.
    """

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    took: float = 0.0
    cpu: float = 0.0
    late: list[float] = field(default_factory=list)

    def __add__(self, other: "Load") -> "Load":
        """Both, one after the other."""
        return Load(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    @property
    def p50(self) -> float:
        """Seconds."""
        return float(np.median(self.seconds))

    @property
    def per_second(self) -> float:
        """Answers, failed ones too."""
        return sum(self.statuses.values()) / self.took

    def figures(self) -> dict[str, float]:
        """Latency in milliseconds, requests a second, failures, and the generator's share of one core."""
        p50, p99 = np.percentile(self.seconds, [50, 99]) * 1e3 if self.seconds else (float("nan"),) * 2
        made = {
            "requests": sum(self.statuses.values()),
            "failed": sum(count for status, count in self.statuses.items() if status != 200),
            "p50_ms": round(float(p50), 3),
            "p99_ms": round(float(p99), 3),
            "per_second": round(self.per_second, 1),
            "generator_cpu": round(self.cpu / self.took, 3),
        }
        if self.late:
            made["late_p99_ms"] = round(float(np.percentile(self.late, 99)) * 1e3, 3)
        return made


class Connection:
    """One connection that is kept open."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=_LIMIT)
        reader, writer = self._streams
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return int(head[9:12]), await reader.readexactly(length)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


def post(path: str, content: object) -> bytes:
    """A whole request."""
    body = json.dumps(content).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def closed(port: int, requests: Sequence[bytes], *, connections: int, seconds: float) -> Load:
    """So many connections, each of which asks again once it was answered."""

    async def one(number: int, load: Load, ends: float) -> None:
        line, place = Connection(port), number
        while time.perf_counter() < ends:
            await _asked(line, requests[place % len(requests)], load, None)
            place += connections
        line.close()

    async def all_of_them(load: Load) -> None:
        ends = time.perf_counter() + seconds
        await asyncio.gather(*(one(number, load, ends) for number in range(connections)))

    return _measured(all_of_them)


def open_loop(port: int, requests: Sequence[bytes], *, rate: float, seconds: float, seed: int = 0) -> Load:
    """So many requests a second on average, over as many connections as that takes."""

    async def all_of_them(load: Load) -> None:
        loop, free, tasks = asyncio.get_running_loop(), deque[Connection](), []

        def leave(place: int, due: float) -> None:
            load.late.append(time.perf_counter() - due)
            line = free.popleft() if free else Connection(port)  # in turn, as many clients would come
            tasks.append(loop.create_task(_lent(line, requests[place % len(requests)], load, due, free)))

        await asyncio.to_thread(_call_when_due, leave, loop, rate, seconds, seed)
        await asyncio.gather(*tasks)
        for line in free:
            line.close()

    return _measured(all_of_them)


def _call_when_due(
    leave: Callable[[int, float], None], loop: asyncio.AbstractEventLoop, rate: float, seconds: float, seed: int
) -> None:
    """In a thread of its own: the loop's timers are a millisecond late."""
    for place, due in enumerate(when_due(rate, seconds, seed)):
        loop.call_soon_threadsafe(leave, place, due)


def when_due(rate: float, seconds: float, seed: int = 0) -> Iterator[float]:
    """The times of a Poisson process of so many a second on average, each given when it has come."""
    rng = np.random.default_rng(seed)
    due = begun = time.perf_counter()
    while (due := due + rng.exponential(1 / rate)) < begun + seconds:
        time.sleep(max(0.0, due - time.perf_counter()))
        yield due


async def _lent(line: Connection, request: bytes, load: Load, due: float, free: deque[Connection]) -> None:
    await _asked(line, request, load, due)
    free.append(line)


async def _asked(line: Connection, request: bytes, load: Load, due: float | None) -> None:
    began = time.perf_counter() if due is None else due
    status, _ = await line.ask(request)
    load.statuses[status] += 1
    if status == 200:
        load.seconds.append(time.perf_counter() - began)


def wrk(port: int, requests: Sequence[bytes], *, connections: int, seconds: float) -> float | None:
    """Answers a second by `wrk`, which takes less of the machine than we do; None where it is not installed."""
    if (program := shutil.which("wrk")) is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        bodies, script = Path(folder) / "bodies", Path(folder) / "requests.lua"
        bodies.write_bytes(b"\n".join(request.partition(b"\r\n\r\n")[2] for request in requests))
        script.write_text(_LUA.format(bodies=bodies), encoding="utf-8")
        command = [program, "-t", "1", "-c", str(connections), "-d", f"{max(1, round(seconds))}s", "-s", str(script)]
        told = subprocess.run(
            [*command, f"http://127.0.0.1:{port}/v1/recall"], capture_output=True, text=True, check=True
        )
    if "Non-2xx" in told.stdout or "Socket errors" in told.stdout:
        raise SystemExit(told.stdout)
    return float(told.stdout.partition("Requests/sec:")[2].split()[0])


_LUA = """
local bodies, number = {{}}, 0
for line in io.lines("{bodies}") do table.insert(bodies, line) end
request = function()
  number = number % #bodies + 1
  return wrk.format("POST", nil, {{["Content-Type"] = "application/json"}}, bodies[number])
end
"""


def _measured(work: Callable[[Load], Coroutine[Any, Any, None]]) -> Load:
    gc.collect()
    gc.disable()  # it would look through all that was kept, 40 ms in which nothing is asked, and count them as answers'
    try:
        load, began, cpu = Load(), time.perf_counter(), time.process_time()
        uvloop.run(work(load))
        load.took, load.cpu = time.perf_counter() - began, time.process_time() - cpu
    finally:
        gc.enable()
    return load
