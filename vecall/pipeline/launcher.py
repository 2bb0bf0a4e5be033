"""Start of the processes of a `fit` with `training.devices` above 1, and their end: all succeed, or none remains.

Fresh interpreters, not forks: the threads of Polars and torch do not survive a fork.
"""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path

import vecall
from vecall.config import Config
from vecall.errors import TrainingError, VecallError
from vecall.pipeline.worker_events import EventReceiver
from vecall.pipeline.worker_order import WorkerError, WorkerOrder
from vecall.runtime.process_rank import ProcessRank
from vecall.runtime.signals import exit_on_sigterm
from vecall.training.distributed import LostProcessError

_WORKER_COMMAND = (sys.executable, "-P", "-m", "vecall.pipeline.fit_worker")
_POLL_SECONDS = 0.1
_GRACE_SECONDS = 5.0  # for the process whose failure broke the connections of others to end as well
_LOG_TAIL_BYTES, _LOG_TAIL_LINES = 4096, 6
_LOOPBACK_INTERFACES = {"linux": "lo", "darwin": "lo0"}


def launch_fit(config: Config, run_dir: Path, init: Path | None) -> None:
    """Run `fit` by `config.training.devices` processes of this machine.

    Progress and log records of the first process are reported here.

    Args:
        config: Settings.
        run_dir: Run directory.
        init: Directory of the run to start from, or None.

    Raises:
        VecallError: That of a process, as `fit` would raise it.
        TrainingError: A process was killed, or failed otherwise; the others have been ended.
    """
    log_dir = Path(tempfile.mkdtemp(prefix="vecall-fit-"))
    try:
        with exit_on_sigterm():
            _run_workers(config, run_dir, init, log_dir)
    except _CrashError:
        raise  # its message names the logs
    except BaseException:
        shutil.rmtree(log_dir, ignore_errors=True)
        raise
    shutil.rmtree(log_dir, ignore_errors=True)


class _CrashError(TrainingError):
    """A training process ended without an exception of vecall."""


@dataclass(frozen=True)
class _Worker:
    """A training process.

    Attributes:
        rank: Its rank.
        process: The process.
        log_path: File with its output.
        error_path: File with its `WorkerError`, if there was one.
    """

    rank: int
    process: "subprocess.Popen[bytes]"
    log_path: Path
    error_path: Path

    @property
    def is_failed(self) -> bool:
        """Whether the process has ended with an error."""
        return self.process.poll() not in (None, 0)

    def read_error(self) -> VecallError | None:
        """Return the exception of vecall that ended the process; None if there was none."""
        try:
            return WorkerError.model_validate_json(self.error_path.read_bytes()).to_exception()
        except (OSError, ValueError):
            return None

    def read_log_tail(self) -> str:
        """Return the last lines of the process's output."""
        with self.log_path.open("rb") as file:
            file.seek(max(0, self.log_path.stat().st_size - _LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        return "\n".join([line for line in lines if line.strip()][-_LOG_TAIL_LINES:])


def _run_workers(config: Config, run_dir: Path, init: Path | None, log_dir: Path) -> None:
    """Start the processes and wait for their end; none is left on return."""
    workers: list[_Worker] = []
    with ExitStack() as stack:
        event_reader, event_writer = os.pipe()
        receiver = stack.enter_context(closing(EventReceiver(event_reader)))
        stack.callback(_kill_workers, workers)
        try:
            for process_rank, environment in _build_environments(config.training.devices):
                rank = process_rank.rank
                order = WorkerOrder(
                    config=config.as_json(),
                    run_dir=run_dir,
                    init=init,
                    log_level=logging.getLogger("vecall").getEffectiveLevel(),
                    error_path=log_dir / f"{rank}.error.json",
                    event_descriptor=event_writer if rank == 0 else None,
                )
                workers.append(_start_worker(rank, order, environment, log_dir / f"{rank}.log"))
        finally:
            os.close(event_writer)
        while not any(worker.is_failed for worker in workers):
            has_ended = all(worker.process.poll() == 0 for worker in workers)
            while receiver.receive(0 if has_ended else _POLL_SECONDS):
                pass
            if has_ended:
                return
        raise _find_cause(workers)


def _build_environments(count: int) -> Iterator[tuple[ProcessRank, dict[str, str]]]:
    """Yield the rank and the environment of each of `count` processes, which meet at a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    defaults = {"OMP_NUM_THREADS": str(max(1, cores // count))}
    if sys.platform in _LOOPBACK_INTERFACES:  # gloo's choice depends on how the machine's name is resolved
        defaults["GLOO_SOCKET_IFNAME"] = _LOOPBACK_INTERFACES[sys.platform]
    package_path = str(Path(vecall.__file__).parents[1])
    search_path = os.pathsep.join(filter(None, [package_path, os.environ.get("PYTHONPATH")]))
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": search_path}
    # torchrun's own settings, if it started this process, would send the processes to torchrun's store.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
    for rank in range(count):
        process_rank = ProcessRank(rank, count, rank, count)
        yield process_rank, {**defaults, **inherited, **common, **process_rank.to_environment()}


def _start_worker(rank: int, order: WorkerOrder, environment: Mapping[str, str], log_path: Path) -> _Worker:
    """Start a process in a session of its own: Ctrl-C reaches only this process, which ends the others."""
    with log_path.open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - this interpreter and a module of ours
            _WORKER_COMMAND,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=() if order.event_descriptor is None else (order.event_descriptor,),
            start_new_session=True,
        )
    assert process.stdin is not None  # noqa: S101 - for mypy
    with suppress(BrokenPipeError):  # it has ended already, which its exit status will tell
        process.stdin.write(order.model_dump_json().encode() + b"\n")
        process.stdin.flush()  # and not closed: its end tells the process that this one has died
    return _Worker(rank, process, log_path, order.error_path)


def _kill_workers(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.process.wait()
        if worker.process.stdin is not None:
            with suppress(BrokenPipeError):
                worker.process.stdin.close()


def _find_cause(workers: Sequence[_Worker]) -> VecallError:
    """Return the error of the process that failed first; the others may have failed for lack of its answers."""
    deadline = time.monotonic() + _GRACE_SECONDS
    while True:
        failed = [worker for worker in workers if worker.is_failed]
        errors = [worker.read_error() for worker in failed]
        for worker, error in zip(failed, errors, strict=True):
            if error is None:
                return _build_crash_error(worker, len(workers))
            if not isinstance(error, LostProcessError):
                return error
        if time.monotonic() > deadline:
            return next(error for error in errors if error is not None)
        time.sleep(_POLL_SECONDS)


def _build_crash_error(worker: _Worker, count: int) -> "_CrashError":
    status = worker.process.returncode
    if status < 0:
        ending = f"was killed by {signal.Signals(-status).name}"
        if -status == signal.SIGKILL:
            ending += " (perhaps by the system, for lack of memory: each process holds the tables and the model)"
    else:
        ending = f"ended with exit code {status}"
    tail = worker.read_log_tail()
    return _CrashError(
        f"training process {worker.rank} of {count} (ranks from 0) {ending}, and the others were ended; the same "
        f"command resumes the training. Logs: {worker.log_path.parent}" + (f"; its last lines:\n{tail}" if tail else "")
    )
