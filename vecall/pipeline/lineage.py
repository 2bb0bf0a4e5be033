"""What a run has learned from: so that a fit goes on over its own tables alone, and `--init` leaks no test.

RUN/data.json     digests of what is learned from and judged by
RUN/learned.npy   hashes of the interactions that the judged model has learned from, those of older runs among them
"""

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from vecall.data.dataset import Dataset
from vecall.data.hashing import Hashes, mix_bits
from vecall.data.split import TRAIN, Split
from vecall.errors import TrainingError
from vecall.release.atomic_io import atomic_write, write_array
from vecall.training.data import TrainingData
from vecall.training.warm_start import ModelVocabulary

logger = logging.getLogger(__name__)

FINGERPRINT_FILE, TRAINED_HASHES_FILE = "data.json", "learned.npy"
_MAX_HASHES = 2**18  # kept of a run: the smallest, which are a random sample of all (a KMV sketch)
_MAX_LEAK_SHARE = 0.01  # share of the held-out interactions; a late row or two may move a cut


class DataFingerprint(BaseModel):
    """`data.json`.

    Attributes:
        protocol: how the tables were split, for people.
        digests: sha256 of each part, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    protocol: str
    digests: dict[str, str]

    @classmethod
    def compute(
        cls,
        dataset: Dataset,
        split: Split,
        training_data: TrainingData,
        vocabulary: ModelVocabulary,
        init_weights_path: Path | None,
    ) -> "DataFingerprint":
        """Of what a fit is about to learn from.

        Args:
            dataset: the tables.
            split: of them.
            training_data: with the encoded features.
            vocabulary: what they stand for.
            init_weights_path: the older model's weights, if it starts from some.
        """
        log, catalogue = dataset.interactions, dataset.catalogue
        parts: dict[str, list[NDArray[Any]]] = {
            "item ids": list(catalogue.items.to_arrays().values()),
            "user ids": list(catalogue.users.to_arrays().values()),
            "interactions": [log.users, log.items, log.times, log.is_positive],
            "split": [split.positive_parts, split.negatives.users, split.negatives.items, split.negatives.positions],
            "item features": [_to_byte_array(vocabulary.item_encoder.state), *training_data.item_features.values()],
            "user features": [_to_byte_array(vocabulary.user_encoder.state), *training_data.user_features.values()],
        }
        digests = {name: _compute_digest(arrays) for name, arrays in parts.items()}
        digests["older run of --init"] = (
            "" if init_weights_path is None else hashlib.sha256(init_weights_path.read_bytes()).hexdigest()
        )
        return cls(protocol=split.protocol, digests=digests)

    def write_or_check(self, run_dir: Path) -> None:
        """Write the state into a run's folder, or see that the fit that was cut short there had the same.

        Raises:
            TrainingError: it had another.
        """
        before = read_fingerprint(run_dir)
        if before is None:
            atomic_write(run_dir / FINGERPRINT_FILE, self.model_dump_json(indent=1).encode())
            return
        changed = [name for name, digest in self.digests.items() if before.digests.get(name) != digest]
        if changed:
            raise TrainingError(
                f"{run_dir}: its tables have other {', '.join(changed)} than when this fit was cut short; bring back "
                "the tables, delete the folder, or choose another --run"
            )


def read_fingerprint(run_dir: Path) -> DataFingerprint | None:
    """The state in a run's folder; None where there is none.

    Raises:
        TrainingError: it cannot be read.
    """
    try:
        return DataFingerprint.model_validate_json((run_dir / FINGERPRINT_FILE).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise TrainingError(f"{run_dir / FINGERPRINT_FILE}: cannot be read: {error}") from error


def _to_byte_array(state: BaseModel) -> NDArray[np.uint8]:
    return np.frombuffer(state.model_dump_json().encode(), dtype=np.uint8)


def _compute_digest(arrays: list[NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
    return digest.hexdigest()


def hash_interactions(dataset: Dataset) -> Hashes:
    """[positives] a hash of who took what and when; without times, of which time it was that the user took the item."""
    positive = dataset.interactions.filter(dataset.interactions.is_positive)
    users, items = (
        dataset.catalogue.users.hash_ids()[positive.users],
        dataset.catalogue.items.hash_ids()[positive.items],
    )
    if dataset.has_timestamps:
        when = np.ascontiguousarray(positive.times).view(np.uint64)
    else:
        when = _count_earlier_occurrences(positive.users * len(dataset.catalogue.items) + positive.items)
    return mix_bits(mix_bits(mix_bits(users) ^ items) ^ when)


def _count_earlier_occurrences(pairs: NDArray[np.int64]) -> Hashes:
    """[n] how often each pair has stood before."""
    order = np.argsort(pairs, kind="stable")
    ordered = pairs[order]
    first = np.searchsorted(ordered, ordered)
    counts = np.empty(len(pairs), dtype=np.uint64)
    counts[order] = np.arange(len(pairs)) - first
    return counts


def write_trained_hashes(run_dir: Path, hashes: Hashes, init_run_dir: Path | None) -> None:
    """Keep what was learned from, with what an older run had learned.

    Args:
        run_dir: the run's.
        hashes: of the interactions in its training part.
        init_run_dir: the folder of the run that it started from.
    """
    every = hashes if init_run_dir is None else np.concatenate([hashes, _read_trained_hashes(init_run_dir)])
    write_array(run_dir / TRAINED_HASHES_FILE, np.unique(every)[:_MAX_HASHES])


def check_no_leak(init_run_dir: Path, hashes: Hashes, split: Split) -> None:
    """Refuse to start from a run that has learned what the new one will be judged by.

    Args:
        init_run_dir: its folder.
        hashes: of the new run's positives, see `hash_interactions`.
        split: of the new run.

    Raises:
        TrainingError: it has, or does not say what it has learned.
    """
    learned = _read_trained_hashes(init_run_dir)
    held_out = np.setdiff1d(hashes[split.positive_parts != TRAIN], hashes[split.positive_parts == TRAIN])
    if len(learned) >= _MAX_HASHES:
        held_out = held_out[held_out <= learned[-1]]  # the part of all hashes that was kept
    share = float(np.isin(held_out, learned).mean()) if len(held_out) else 0.0
    if share > _MAX_LEAK_SHARE:
        state = read_fingerprint(init_run_dir)
        raise TrainingError(
            f"--init: {share:.0%} of the interactions that this run would be judged by are among those that {init_run_dir} "
            "has learned from, so its metrics would flatter it. That run was split so: "
            f"{'?' if state is None else state.protocol}; this one so: {split.protocol}. Leave --init out, or split "
            "both alike, the new one no earlier"
        )
    if share:
        logger.warning("--init: the older run has learned %.2g %% of what this one is judged by", 100 * share)


def _read_trained_hashes(run_dir: Path) -> Hashes:
    try:
        return np.load(run_dir / TRAINED_HASHES_FILE, allow_pickle=False).astype(np.uint64)  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"--init: {run_dir} does not say what it has learned from ({error}), so it might have seen what this run is "
            "judged by: fit it again"
        ) from error
