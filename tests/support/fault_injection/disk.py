"""Disks that fail and disks that lose power, played through `disk_shim.c`.

A session is a module in tests/ with a function `session(folder, say)`, and `prepare(folder)` where something has to
be there before. `play` runs it in an interpreter of its own, once without a fault, or once for every call that writes,
which then fails. What it says, and every write, is in the `Run` in the order in which it took place. `Disk` makes of
this what is left when the power goes at any moment.
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
SECTOR_BYTES = 512  # bytes that a disk writes whole or not at all

_LOG_HEADER = struct.Struct("<4Q")
_LOG_RECORD = struct.Struct("<4Iq")


@dataclass(frozen=True)
class DiskEvent:
    """One call: W write, T truncate, S sync, C create, R rename, L link, U unlink, M mkdir, P print, - failed itself.

    `path` is relative to the session's folder; the second path of R and L is in `data`. `code` is the error that the
    call was made to end with, 0 for none.
    """

    kind: str
    path: str
    offset: int
    data: bytes
    code: int


@dataclass(frozen=True)
class SessionRun:
    """What a session did in `directory`, which was like `before`; its call number `failing` failed, and the later ones too
    if `forever`."""

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
        """The calls that were made fail."""
        return [event for event in self.events if event.code and event.kind != "-"]


def read_output_lines(events: list[DiskEvent]) -> list[str]:
    """The lines that a session had said after these events."""
    return b"".join(event.data for event in events if event.kind == "P").decode().splitlines()


def compile_shim(output_dir: Path) -> Path:
    """Compile the shim; skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        pytest.skip("a failing disk is played by an LD_PRELOAD library: this needs Linux and a C compiler (cc)")
    library = output_dir / "disk_shim.so"
    command = [compiler, "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, SHIM_SOURCE, "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
    return library


def run_with_faults(
    shim: Path, session: ModuleType, work_dir: Path, *, error_code: int = 0, keeps_failing: bool = False, step: int = 1
) -> list[SessionRun]:
    """Run a session; with an errno in `error_code` again and again, until no call fails any more.

    Args:
        shim: what `build` made.
        session: the module.
        work_dir: an empty folder for all this; it needs room.
        error_code: what failing calls end with; 0 runs the session once without a fault.
        keeps_failing: calls fail from the n-th on, not the n-th alone.
        step: how far from one failing call to the next.
    """
    work_dir = work_dir.resolve()
    for name in ("disk", "before", "logs"):
        (work_dir / name).mkdir(parents=True)
    (work_dir / "log").write_bytes(_LOG_HEADER.pack(0, 0, 0, 0))
    variables = {
        "DISK_FOLDER": str(work_dir / "disk"),
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
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return [_read_run(work_dir, number) for number in sorted(int(one.name) for one in (work_dir / "logs").iterdir())]


def _read_run(work_dir: Path, number: int) -> SessionRun:
    content = (work_dir / "logs" / str(number)).read_bytes()
    calls, first, _, _ = _LOG_HEADER.unpack_from(content)
    folder = work_dir / "disk" / str(number)
    return SessionRun(
        folder, work_dir / "before" / str(number), first, calls, list(_parse_events(content, f"{folder}"))
    )


def _parse_events(content: bytes, directory: str) -> Iterator[DiskEvent]:
    place = _LOG_HEADER.size
    while place < len(content):
        kind, path_size, data_size, code, offset = _LOG_RECORD.unpack_from(content, place)
        place += _LOG_RECORD.size
        path = content[place : place + path_size].decode()
        data = content[place + path_size : place + path_size + data_size]
        place += path_size + data_size
        if chr(kind) in "RL":
            data = data.decode().removeprefix(f"{directory}/").encode()
        if path == directory or path.startswith(f"{directory}/") or chr(kind) == "P":
            yield DiskEvent(chr(kind), path[len(directory) + 1 :], offset, data, code)


@dataclass
class _File:
    content: bytearray
    synced_content: bytearray
    unsynced_writes: list[tuple[int, bytes | None]] = field(default_factory=list)  # None: truncate

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
                    torn = data is not None and rng.random() < 0.2
                    _write_at(
                        content,
                        offset,
                        data[: SECTOR_BYTES * rng.randrange(1 + len(data) // SECTOR_BYTES)] if torn else data,
                    )
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
    """A folder on a disk that keeps what was synced. A new or changed name is kept once its folder was synced.

    What a failed sync was asked to keep is lost, as with Linux: a later sync does not bring it.
    """

    def __init__(self, initial_dir: Path) -> None:
        self._root = _load_directory(initial_dir)

    def replay(self, event: DiskEvent) -> None:
        """Let a call take place."""
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
            other, fresh = self._find_parent(event.data.decode())
            assert node is not None
            other.entries[fresh] = node
            if event.kind == "R":
                del parent.entries[name]

    def write_power_loss_state(self, directory: Path, rng: Random | None = None) -> None:
        """Make `directory` what a loss of power leaves: what was synced; with `chance` some of the rest besides."""
        shutil.rmtree(directory, ignore_errors=True)
        _write_directory(self._root, directory, rng)

    def read_files(self) -> dict[str, bytes]:
        """What programs see, by path."""
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
    names: dict[str, _File | _Directory] = {
        one.name: _load_directory(one)
        if one.is_dir()
        else _File(bytearray(one.read_bytes()), bytearray(one.read_bytes()))
        for one in path.iterdir()
    }
    return _Directory(names, dict(names))


def _write_directory(node: _Directory, path: Path, rng: Random | None) -> None:
    path.mkdir()
    for name, one in (node.entries if rng and rng.random() < 0.5 else node.synced_entries).items():
        if isinstance(one, _File):
            (path / name).write_bytes(one.content_after_power_loss(rng))
        else:
            _write_directory(one, path / name, rng)


def _walk_files(node: _Directory, prefix: str) -> Iterator[tuple[str, bytes]]:
    for name, one in node.entries.items():
        if isinstance(one, _File):
            yield prefix + name, bytes(one.content)
        else:
            yield from _walk_files(one, f"{prefix}{name}/")


def read_real_files(directory: Path) -> dict[str, bytes]:
    """As `Disk.files`, of a real folder. Nothing may be missing from the record: compare the two."""
    paths = [path for path in directory.rglob("*") if path.is_file() and not path.name.endswith("-shm")]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def _emit(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def _run_child(module_name: str, work_dir: Path, error_code: int, *, keeps_failing: bool, step: int) -> None:
    """In the watched interpreter."""
    made = importlib.import_module(module_name)
    log = work_dir / "log"
    for number in itertools.count(1, step):
        folder = work_dir / "disk" / str(number)
        folder.mkdir()
        if hasattr(made, "prepare"):
            made.prepare(folder)
        shutil.copytree(folder, work_dir / "before" / str(number))
        last = 2**63 if keeps_failing else number
        log.write_bytes(_LOG_HEADER.pack(0, *((number, last, error_code) if error_code else (0, 0, 0))))
        try:
            made.session(folder, _emit)
        except BaseException:  # noqa: BLE001 - whatever it is, the test shall see it
            _emit("escaped " + traceback.format_exc().replace("\n", " | "))
        calls = _LOG_HEADER.unpack_from(log.read_bytes())[0]
        shutil.copy(log, work_dir / "logs" / str(number))
        with contextlib.suppress(FileNotFoundError):
            log.write_bytes(_LOG_HEADER.pack(0, 0, 0, 0))
        if not error_code or calls < number:
            return


if __name__ == "__main__":
    _run_child(
        sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), keeps_failing=sys.argv[4] == "1", step=int(sys.argv[5])
    )
