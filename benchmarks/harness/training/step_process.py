"""Training steps in child processes, which differ in what is read when a process starts, such as the environment."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from statistics import median
from typing import Self


class StepProcess:
    """Child process that runs timed training steps on request; see `answer_requests`.

    Args:
        arguments: Script and arguments, for this Python.
        environment: Whole environment of the process.
    """

    def __init__(self, arguments: list[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.time_steps(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()

    def time_steps(self, steps: int) -> list[float]:
        """Run steps and return the seconds of each."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        seconds: list[float] = json.loads(self._process.stdout.readline())
        return seconds


def time_in_turns(processes: Mapping[str, StepProcess], *, rounds: int, steps: int) -> dict[str, float]:
    """Return the median milliseconds of a step of each process; they take turns, so that noise hits all alike.

    Args:
        processes: By name.
        rounds: Turns of each.
        steps: Steps of a turn.
    """
    seconds: dict[str, list[float]] = {name: [] for name in processes}
    for _ in range(rounds):
        for name, process in processes.items():
            seconds[name] += process.time_steps(steps)
    return {name: round(1e3 * median(values), 1) for name, values in seconds.items()}


def answer_requests(run_steps: Callable[[int], list[float]]) -> None:
    """In the child: read numbers of steps, a line each, and answer each by the seconds of the steps as JSON."""
    for line in sys.stdin:
        print(json.dumps(run_steps(int(line))), flush=True)
