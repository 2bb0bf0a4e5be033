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

SHIM = Path(__file__).parent / "disk_shim.c"
SECTOR = 512  # bytes that a disk writes whole or not at all

_HEAD = struct.Struct("<4Q")
_RECORD = struct.Struct("<4Iq")


@dataclass(frozen=True)
class Event:
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
class Run:
    """What a session did in `folder`, which was like `before`; its call number `failing` failed, and the later ones too
    if `forever`."""

    folder: Path
    before: Path
    failing: int
    calls: int
    events: list[Event]

    @property
    def said(self) -> list[str]:
        return said(self.events)

    @property
    def hit(self) -> list[Event]:
        """The calls that were made fail."""
        return [event for event in self.events if event.code and event.kind != "-"]


def said(events: list[Event]) -> list[str]:
    """The lines that a session had said after these events."""
    return b"".join(event.data for event in events if event.kind == "P").decode().splitlines()


def build(folder: Path) -> Path:
    """Compile the shim; skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        pytest.skip("a failing disk is played by an LD_PRELOAD library: this needs Linux and a C compiler (cc)")
    library = folder / "disk_shim.so"
    command = [compiler, "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, SHIM, "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
    return library


def play(
    shim: Path, session: ModuleType, work: Path, *, code: int = 0, forever: bool = False, every: int = 1
) -> list[Run]:
    """Run a session; with an errno in `code` again and again, until no call fails any more.

    Args:
        shim: what `build` made.
        session: the module.
        work: an empty folder for all this; it needs room.
        code: what failing calls end with; 0 runs the session once without a fault.
        forever: calls fail from the n-th on, not the n-th alone.
        every: how far from one failing call to the next.
    """
    work = work.resolve()
    for name in ("disk", "before", "logs"):
        (work / name).mkdir(parents=True)
    (work / "log").write_bytes(_HEAD.pack(0, 0, 0, 0))
    variables = {
        "DISK_FOLDER": str(work / "disk"),
        "DISK_LOG": str(work / "log"),
        "LD_PRELOAD": str(shim),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, __file__, session.__name__, work, str(code), str(int(forever)), str(every)]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return [_read_run(work, number) for number in sorted(int(one.name) for one in (work / "logs").iterdir())]


def _read_run(work: Path, number: int) -> Run:
    content = (work / "logs" / str(number)).read_bytes()
    calls, first, _, _ = _HEAD.unpack_from(content)
    folder = work / "disk" / str(number)
    return Run(folder, work / "before" / str(number), first, calls, list(_events(content, f"{folder}")))


def _events(content: bytes, folder: str) -> Iterator[Event]:
    place = _HEAD.size
    while place < len(content):
        kind, path_size, data_size, code, offset = _RECORD.unpack_from(content, place)
        place += _RECORD.size
        path = content[place : place + path_size].decode()
        data = content[place + path_size : place + path_size + data_size]
        place += path_size + data_size
        if chr(kind) in "RL":
            data = data.decode().removeprefix(f"{folder}/").encode()
        if path == folder or path.startswith(f"{folder}/") or chr(kind) == "P":
            yield Event(chr(kind), path[len(folder) + 1 :], offset, data, code)


@dataclass
class _File:
    now: bytearray
    synced: bytearray
    unsynced: list[tuple[int, bytes | None]] = field(default_factory=list)  # None: truncate

    def change(self, offset: int, data: bytes | None) -> None:
        _change(self.now, offset, data)
        self.unsynced.append((offset, data))

    def sync(self, *, failed: bool) -> None:
        for offset, data in () if failed else self.unsynced:
            _change(self.synced, offset, data)
        self.unsynced.clear()

    def left(self, chance: Random | None) -> bytes:
        content = bytearray(self.synced)
        if chance is not None:
            share = chance.choice([0, 0.5, 1])
            for offset, data in self.unsynced:
                if chance.random() < share:
                    torn = data is not None and chance.random() < 0.2
                    _change(
                        content, offset, data[: SECTOR * chance.randrange(1 + len(data) // SECTOR)] if torn else data
                    )
        return bytes(content)


def _change(content: bytearray, offset: int, data: bytes | None) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    if data is None:
        del content[offset:]
    else:
        content[offset : offset + len(data)] = data


@dataclass
class _Folder:
    now: dict[str, "_File | _Folder"]
    synced: dict[str, "_File | _Folder"]


class Disk:
    """A folder on a disk that keeps what was synced. A new or changed name is kept once its folder was synced.

    What a failed sync was asked to keep is lost, as with Linux: a later sync does not bring it.
    """

    def __init__(self, before: Path) -> None:
        self._root = _load(before)

    def play(self, event: Event) -> None:
        """Let a call take place."""
        node = self._find(event.path)
        if isinstance(node, _File):
            if event.kind == "W":
                node.change(event.offset, event.data)
            elif event.kind == "T" and not event.code:
                node.change(event.offset, None)
            elif event.kind == "S":
                node.sync(failed=bool(event.code))
        if event.code or event.kind in "WTP-":
            return
        if isinstance(node, _Folder) and event.kind == "S":
            node.synced = dict(node.now)
        elif event.kind in "CMRLU":
            self._name(event, node)

    def _name(self, event: Event, node: "_File | _Folder | None") -> None:
        parent, name = self._parent(event.path)
        if event.kind == "C":
            parent.now[name] = _File(bytearray(), bytearray())
        elif event.kind == "M":
            parent.now[name] = _Folder({}, {})
        elif event.kind == "U":
            del parent.now[name]
        else:
            other, fresh = self._parent(event.data.decode())
            assert node is not None
            other.now[fresh] = node
            if event.kind == "R":
                del parent.now[name]

    def leave(self, folder: Path, chance: Random | None = None) -> None:
        """Make `folder` what a loss of power leaves: what was synced; with `chance` some of the rest besides."""
        shutil.rmtree(folder, ignore_errors=True)
        _write(self._root, folder, chance)

    def files(self) -> dict[str, bytes]:
        """What programs see, by path."""
        return dict(_walk(self._root, ""))

    def _find(self, path: str) -> "_File | _Folder | None":
        node: _File | _Folder | None = self._root
        for name in path.split("/") if path else ():
            node = node.now.get(name) if isinstance(node, _Folder) else None
        return node

    def _parent(self, path: str) -> tuple[_Folder, str]:
        parent, _, name = path.rpartition("/")
        node = self._find(parent)
        assert isinstance(node, _Folder), path
        return node, name


def _load(path: Path) -> "_Folder":
    names: dict[str, _File | _Folder] = {
        one.name: _load(one) if one.is_dir() else _File(bytearray(one.read_bytes()), bytearray(one.read_bytes()))
        for one in path.iterdir()
    }
    return _Folder(names, dict(names))


def _write(node: _Folder, path: Path, chance: Random | None) -> None:
    path.mkdir()
    for name, one in (node.now if chance and chance.random() < 0.5 else node.synced).items():
        if isinstance(one, _File):
            (path / name).write_bytes(one.left(chance))
        else:
            _write(one, path / name, chance)


def _walk(node: _Folder, prefix: str) -> Iterator[tuple[str, bytes]]:
    for name, one in node.now.items():
        if isinstance(one, _File):
            yield prefix + name, bytes(one.now)
        else:
            yield from _walk(one, f"{prefix}{name}/")


def files_in(folder: Path) -> dict[str, bytes]:
    """As `Disk.files`, of a real folder. Nothing may be missing from the record: compare the two."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("-shm")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def _main(session: str, work: Path, code: int, *, forever: bool, every: int) -> None:
    """In the watched interpreter."""
    made = importlib.import_module(session)
    log = work / "log"
    for number in itertools.count(1, every):
        folder = work / "disk" / str(number)
        folder.mkdir()
        if hasattr(made, "prepare"):
            made.prepare(folder)
        shutil.copytree(folder, work / "before" / str(number))
        last = 2**63 if forever else number
        log.write_bytes(_HEAD.pack(0, *((number, last, code) if code else (0, 0, 0))))
        try:
            made.session(folder, _say)
        except BaseException:  # noqa: BLE001 - whatever it is, the test shall see it
            _say("escaped " + traceback.format_exc().replace("\n", " | "))
        calls = _HEAD.unpack_from(log.read_bytes())[0]
        shutil.copy(log, work / "logs" / str(number))
        with contextlib.suppress(FileNotFoundError):
            log.write_bytes(_HEAD.pack(0, 0, 0, 0))
        if not code or calls < number:
            return


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), forever=sys.argv[4] == "1", every=int(sys.argv[5]))
