"""Rank of this process among those of a training, from the environment that a launcher such as torchrun sets."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from vecall.errors import TrainingError


@dataclass(frozen=True)
class ProcessRank:
    """Rank of a process among several.

    Attributes:
        rank: Number among all processes, from 0.
        size: Number of all processes.
        local_rank: Number among the processes of this machine, from 0; also that of its GPU.
        local_size: Number of processes of this machine.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int

    @classmethod
    def from_environment(cls) -> Self | None:
        """Read RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; None if this process trains alone.

        Raises:
            TrainingError: A variable is missing or no number.
        """
        if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
            return None
        try:
            rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            return cls(rank, size, int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", size)))
        except (KeyError, ValueError) as error:
            raise TrainingError(
                "RANK and WORLD_SIZE in the environment mean several training processes, but a variable is missing or "
                f"no number ({error}): start the processes by torchrun, or unset RANK and WORLD_SIZE"
            ) from error

    def to_environment(self) -> Mapping[str, str]:
        """Return the variables that `from_environment` reads."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_size),
        }


def is_main_process() -> bool:
    """Return whether this process reports results: it trains alone, or is the first of several."""
    process_rank = ProcessRank.from_environment()
    return process_rank is None or process_rank.rank == 0
