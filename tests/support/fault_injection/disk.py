"""Simulation of disks that fail and disks that lose power, by means of `disk_shim.c`.

A session is a module with a function `run_session(directory, emit)`, and optionally `prepare(directory)`, which creates
what the session starts from. `run_with_faults` runs a session in a child process: once without a fault, or once per
system call that writes, and that call fails. A `SessionRun` has the emitted lines and all writes in the order in which
they took place. `SimulatedDisk` derives from it what a loss of power leaves at any moment.
"""

import contextlib
import importlib
import itertools
import os
import shutil
import struct
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import ModuleType

import pytest

SHIM_SOURCE = Path(__file__).parent / "disk_shim.c"
SECTOR_BYTES = 512  # a disk writes a sector completely or not at all

_LOG_HEADER = struct.Struct("<4Q")
_LOG_RECORD = struct.Struct("<4Iq")


@dataclass(frozen=True)
class DiskEvent:
    """A recorded system call.

    Attributes:
        kind: W write, T truncate, S sync, C create, R rename, L link, U unlink, M mkdir, P print, or - for a call that
            failed by itself.
        path: relative to the session's directory.
        offset: where a write or truncate begins.
        data: what a write wrote; for R and L the second path.
        code: the errno that the call was made to fail with; 0 for none.
    """

    kind: str
    path: str
    offset: int
    data: bytes
    code: int


@dataclass(frozen=True)
class SessionRun:
    """What a session did.

    Attributes:
        directory: the session's directory after it.
        initial_dir: a copy of the directory from before the session.
        failing_call: number of the call that was made to fail, from 1; 0 for none.
        call_count: number of calls that write.
        events: all recorded calls in order.
    """

    directory: Path
    initial_dir: Path
    failing_call: int
    call_count: int
    events: list[DiskEvent]

    @property
    def output_lines(self) -> list[str]:
        return read_output_lines(self.events)

    @property
    def failed_calls(self) -> list[DiskEvent]:
        """The calls that were made to fail."""
        return [event for event in self.events if event.code and event.kind != "-"]


def read_output_lines(events: list[DiskEvent]) -> list[str]:
    """Return the lines that a session had emitted after these events."""
    return b"".join(event.data for event in events if event.kind == "P").decode().splitlines()


def compile_shim(output_dir: Path) -> Path:
    """Compile the shim; skip the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        pytest.skip("failing disks are simulated by an LD_PRELOAD library: this needs Linux and a C compiler (cc)")
    library = output_dir / "disk_shim.so"
    command = [compiler, "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, SHIM_SOURCE, "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
    return library


def run_with_faults(
    shim: Path, session: ModuleType, work_dir: Path, *, error_code: int = 0, keeps_failing: bool = False, step: int = 1
) -> list[SessionRun]:
    """Run a session once without a fault, or repeatedly with each of its calls failing in turn.

    Args:
        shim: the library that `compile_shim` built.
        session: the session's module.
        work_dir: an empty directory for the files of all runs.
        error_code: the errno of failing calls; 0 runs the session once without a fault.
        keeps_failing: all calls from the n-th on fail, not only the n-th.
        step: distance from the failing call of one run to that of the next.

    Returns:
        The runs. With an `error_code`, no call fails in the last one, because the session makes fewer calls.
    """
    work_dir = work_dir.resolve()
    for name in ("disk", "before", "logs"):
        (work_dir / name).mkdir(parents=True)
    (work_dir / "log").write_bytes(_LOG_HEADER.pack(0, 0, 0, 0))
    variables = {
        "DISK_ROOT": str(work_dir / "disk"),
        "DISK_LOG": str(work_dir / "log"),
        "LD_PRELOAD": str(shim),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
    }
    command = [
        sys.executable,
        __file__,
        session.__name__,
        work_dir,
        str(error_code),
        str(int(keeps_failing)),
        str(step),
    ]
    environment = os.environ | variables
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert child.returncode == 0, child.stderr
    return [_read_run(work_dir, number) for number in sorted(int(path.name) for path in (work_dir / "logs").iterdir())]


def _read_run(work_dir: Path, number: int) -> SessionRun:
    content = (work_dir / "logs" / str(number)).read_bytes()
    call_count, failing_call, _, _ = _LOG_HEADER.unpack_from(content)
    directory = work_dir / "disk" / str(number)
    events = list(_parse_events(content, str(directory)))
    return SessionRun(directory, work_dir / "before" / str(number), failing_call, call_count, events)


def _parse_events(content: bytes, directory: str) -> Iterator[DiskEvent]:
    position = _LOG_HEADER.size
    while position < len(content):
        kind, path_size, data_size, code, offset = _LOG_RECORD.unpack_from(content, position)
        position += _LOG_RECORD.size
        path = content[position : position + path_size].decode()
        data = content[position + path_size : position + path_size + data_size]
        position += path_size + data_size
        if chr(kind) in "RL":
            data = data.decode().removeprefix(f"{directory}/").encode()
        if path == directory or path.startswith(f"{directory}/") or chr(kind) == "P":
            yield DiskEvent(chr(kind), path[len(directory) + 1 :], offset, data, code)


@dataclass
class _File:
    content: bytearray
    synced_content: bytearray
    unsynced_writes: list[tuple[int, bytes | None]] = field(default_factory=list)  # offset, data; None truncates

    def write(self, offset: int, data: bytes | None) -> None:
        _write_at(self.content, offset, data)
        self.unsynced_writes.append((offset, data))

    def sync(self, *, failed: bool) -> None:
        for offset, data in () if failed else self.unsynced_writes:
            _write_at(self.synced_content, offset, data)
        self.unsynced_writes.clear()

    def content_after_power_loss(self, rng: Random | None) -> bytes:
        content = bytearray(self.synced_content)
        if rng is not None:
            share = rng.choice([0, 0.5, 1])
            for offset, data in self.unsynced_writes:
                if rng.random() < share:
                    if data is not None and rng.random() < 0.2:  # a torn write: only some of its sectors
                        data = data[: SECTOR_BYTES * rng.randrange(1 + len(data) // SECTOR_BYTES)]
                    _write_at(content, offset, data)
        return bytes(content)


def _write_at(content: bytearray, offset: int, data: bytes | None) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    if data is None:
        del content[offset:]
    else:
        content[offset : offset + len(data)] = data


@dataclass
class _Directory:
    entries: dict[str, "_File | _Directory"]
    synced_entries: dict[str, "_File | _Directory"]


class SimulatedDisk:
    """A directory on a disk that keeps what was synced. A new or changed name is kept once its directory was synced.

    The writes before a failed sync are lost, as with Linux: a later sync does not make them durable.
    """

    def __init__(self, initial_dir: Path) -> None:
        self._root = _load_directory(initial_dir)

    def replay(self, event: DiskEvent) -> None:
        """Apply a call."""
        node = self._find_node(event.path)
        if isinstance(node, _File):
            if event.kind == "W":
                node.write(event.offset, event.data)
            elif event.kind == "T" and not event.code:
                node.write(event.offset, None)
            elif event.kind == "S":
                node.sync(failed=bool(event.code))
        if event.code or event.kind in "WTP-":
            return
        if isinstance(node, _Directory) and event.kind == "S":
            node.synced_entries = dict(node.entries)
        elif event.kind in "CMRLU":
            self._change_entry(event, node)

    def _change_entry(self, event: DiskEvent, node: "_File | _Directory | None") -> None:
        parent, name = self._find_parent(event.path)
        if event.kind == "C":
            parent.entries[name] = _File(bytearray(), bytearray())
        elif event.kind == "M":
            parent.entries[name] = _Directory({}, {})
        elif event.kind == "U":
            del parent.entries[name]
        else:
            target_parent, target_name = self._find_parent(event.data.decode())
            assert node is not None
            target_parent.entries[target_name] = node
            if event.kind == "R":
                del parent.entries[name]

    def write_power_loss_state(self, directory: Path, rng: Random | None = None) -> None:
        """Write to `directory` what a power loss leaves: synced content and, with `rng`, a random part of the rest."""
        shutil.rmtree(directory, ignore_errors=True)
        _write_directory(self._root, directory, rng)

    def read_files(self) -> dict[str, bytes]:
        """Return the files as programs see them: content by path."""
        return dict(_walk_files(self._root, ""))

    def _find_node(self, path: str) -> "_File | _Directory | None":
        node: _File | _Directory | None = self._root
        for name in path.split("/") if path else ():
            node = node.entries.get(name) if isinstance(node, _Directory) else None
        return node

    def _find_parent(self, path: str) -> tuple[_Directory, str]:
        parent, _, name = path.rpartition("/")
        node = self._find_node(parent)
        assert isinstance(node, _Directory), path
        return node, name


def _load_directory(path: Path) -> "_Directory":
    entries: dict[str, _File | _Directory] = {
        child.name: _load_directory(child)
        if child.is_dir()
        else _File(bytearray(child.read_bytes()), bytearray(child.read_bytes()))
        for child in path.iterdir()
    }
    return _Directory(entries, dict(entries))


def _write_directory(node: _Directory, path: Path, rng: Random | None) -> None:
    path.mkdir()
    for name, child in (node.entries if rng and rng.random() < 0.5 else node.synced_entries).items():
        if isinstance(child, _File):
            (path / name).write_bytes(child.content_after_power_loss(rng))
        else:
            _write_directory(child, path / name, rng)


def _walk_files(node: _Directory, prefix: str) -> Iterator[tuple[str, bytes]]:
    for name, child in node.entries.items():
        if isinstance(child, _File):
            yield prefix + name, bytes(child.content)
        else:
            yield from _walk_files(child, f"{prefix}{name}/")


def read_real_files(directory: Path) -> dict[str, bytes]:
    """Return the files of a real directory, by path, as `SimulatedDisk.read_files` does if it has missed no call."""
    paths = [path for path in directory.rglob("*") if path.is_file() and not path.name.endswith("-shm")]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def _emit(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def _run_child(module_name: str, work_dir: Path, error_code: int, *, keeps_failing: bool, step: int) -> None:
    """Run the session in the child process, whose calls the shim intercepts."""
    session = importlib.import_module(module_name)
    log = work_dir / "log"
    for number in itertools.count(1, step):
        directory = work_dir / "disk" / str(number)
        directory.mkdir()
        if hasattr(session, "prepare"):
            session.prepare(directory)
        shutil.copytree(directory, work_dir / "before" / str(number))
        last = 2**63 if keeps_failing else number
        log.write_bytes(_LOG_HEADER.pack(0, *((number, last, error_code) if error_code else (0, 0, 0))))
        try:
            session.run_session(directory, _emit)
        except BaseException:  # noqa: BLE001 - the test is to see any exception
            _emit("escaped " + traceback.format_exc().replace("\n", " | "))
        call_count = _LOG_HEADER.unpack_from(log.read_bytes())[0]
        shutil.copy(log, work_dir / "logs" / str(number))
        with contextlib.suppress(FileNotFoundError):
            log.write_bytes(_LOG_HEADER.pack(0, 0, 0, 0))
        if not error_code or call_count < number:
            return


if __name__ == "__main__":
    _run_child(
        sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), keeps_failing=sys.argv[4] == "1", step=int(sys.argv[5])
    )
