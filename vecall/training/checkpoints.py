"""Checkpoint files: streamed to disk and mapped from it, so that no table is in memory twice.

Lightning's own writer builds the whole file in memory and copies it once more; its reader holds the checkpoint beside
the weights that are restored from it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from vecall.errors import TrainingError
from vecall.runtime.durable_files import replace_atomically

_TEMPORARY_SUFFIX = ".ckpt.tmp"  # as `replace_atomically` makes it


class StreamedCheckpointIO(CheckpointIO):
    """Lightning plugin that writes checkpoints with `save_checkpoint` and reads them with `load_checkpoint`."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any = None,  # noqa: ANN401 - signature of Lightning
    ) -> None:
        """Replace a checkpoint atomically; `storage_options` is ignored. See `save_checkpoint`."""
        del storage_options
        save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = None,  # noqa: ANN401 - signature of Lightning
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Map a checkpoint into memory; the other arguments are ignored. See `load_checkpoint`."""
        del map_location, weights_only
        return load_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint. Tensors that are mapped from it stay valid."""
        Path(path).unlink(missing_ok=True)


def save_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Replace a checkpoint atomically and durably, without a copy of its tensors in memory.

    An interrupted call leaves the previous checkpoint, and a temporary file that the next call deletes. Tensors mapped
    from the previous checkpoint stay valid: it is replaced, never overwritten. One process may write to a directory.

    Args:
        checkpoint: Tensors and plain values in nested mappings and lists.
        path: The file; its directory is created if necessary.

    Raises:
        TrainingError: The disk is full or fails, or permissions forbid writing.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob("*" + _TEMPORARY_SUFFIX):
            leftover.unlink()
        with replace_atomically(path) as temporary:
            _write(checkpoint, temporary)
    except OSError as error:
        raise TrainingError(
            f"{path}: the checkpoint cannot be written ({error}); free disk space or fix the permissions, then repeat "
            "the same `vecall fit` to go on from the checkpoint before"
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Map a checkpoint into memory: its tensors are read from the file when they are used, and may be written to.

    The tensors are on the CPU. What is written to them is not written to the file.

    Raises:
        TrainingError: The file is missing, damaged or no checkpoint.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch's errors for damaged files share no base
        reason = str(error).split("\n", 1)[0]
        raise TrainingError(
            f"{path}: the checkpoint cannot be read ({type(error).__name__}: {reason:.200}); delete the *.ckpt files "
            f"in {path.parent} and repeat the same `vecall fit`, which then starts anew"
        ) from error
    return checkpoint


def load_weights(path: Path) -> Mapping[str, Tensor]:
    """Map the weights of a checkpoint into memory by name, as `load_checkpoint` does.

    Raises:
        TrainingError: As `load_checkpoint`.
    """
    weights: Mapping[str, Tensor] = load_checkpoint(path)["state_dict"]
    return weights


def _write(checkpoint: Mapping[str, Any], path: Path) -> None:
    # Given a path, torch does not say why a write failed. An open file gets the memory of the tensors, not copies.
    with path.open("wb") as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:
            # torch closes its archive after a failed write, which fails too.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise
