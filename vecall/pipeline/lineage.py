"""Lineage of a run: which data it was trained on.

An interrupted fit resumes only on equal data, and `--init` rejects a run that was trained on the new run's test data.

RUN/data.json                Digests of the training data and the split.
RUN/trained_interactions.npy Hashes of the interactions that the evaluated model was trained on, with those of initial
                             runs.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from vecall.data.dataset import Dataset
from vecall.data.hashing import Hashes
from vecall.data.split import TRAIN, Split
from vecall.errors import TrainingError
from vecall.pipeline.interaction_hashes import TimeKey, can_hash_times, get_time_key, hash_positives
from vecall.release.file_io import compute_sha256, write_array
from vecall.runtime.durable_files import atomic_write
from vecall.training.data import TrainingData
from vecall.training.warm_start import ModelVocabulary

logger = logging.getLogger(__name__)

FINGERPRINT_FILE, TRAINED_HASHES_FILE = "data.json", "trained_interactions.npy"
_MAX_HASHES = 2**18  # per run; the smallest are kept, which are a random sample of all (a KMV sketch)
_MAX_LEAK_SHARE = 0.01  # of the held-out interactions: late rows may move the split's cut slightly


class DataFingerprint(BaseModel):
    """Content of `data.json`.

    Attributes:
        protocol: Description of the split, for people.
        time_key: What the run's record of interactions holds as their times.
        digests: SHA-256 of each part of the data, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    protocol: str
    time_key: TimeKey
    digests: dict[str, str]

    @classmethod
    def compute(
        cls,
        dataset: Dataset,
        split: Split,
        training_data: TrainingData,
        vocabulary: ModelVocabulary,
        init_weights_path: Path | None,
        time_key: TimeKey,
    ) -> "DataFingerprint":
        """Compute the fingerprint of the data that a fit is about to use.

        Args:
            dataset: The tables.
            split: The split of `dataset`.
            training_data: The training part with encoded features.
            vocabulary: The encoders of those features.
            init_weights_path: Weights of the initial run; None without one.
            time_key: As for `hash_positives`.
        """
        log, catalogue = dataset.interactions, dataset.catalogue
        parts: dict[str, list[NDArray[Any]]] = {
            "item ids": list(catalogue.items.to_arrays().values()),
            "user ids": list(catalogue.users.to_arrays().values()),
            "interactions": [log.users, log.items, log.times, log.is_positive, *_list_optional(log.weights)],
            "split": [
                split.positive_parts,
                split.hard_negatives.users,
                split.hard_negatives.items,
                split.hard_negatives.prior_positive_counts,
            ],
            "item features": [_to_byte_array(vocabulary.item_encoder.state), *training_data.item_features.values()],
            "user features": [
                _to_byte_array(vocabulary.user_encoder.state),
                *training_data.user_features.values(),
                *training_data.context_features.values(),
            ],
        }
        digests = {name: _compute_digest(arrays) for name, arrays in parts.items()}
        digests["weights of the --init run"] = "" if init_weights_path is None else compute_sha256(init_weights_path)
        return cls(protocol=split.protocol, time_key=time_key, digests=digests)

    def write_or_check(self, run_dir: Path) -> None:
        """Write the fingerprint into a run directory, or compare it with that of the interrupted fit there.

        Raises:
            TrainingError: The interrupted fit used other data.
        """
        previous = read_fingerprint(run_dir)
        if previous is None:
            atomic_write(run_dir / FINGERPRINT_FILE, self.model_dump_json(indent=1).encode())
            return
        changed = [name for name, digest in self.digests.items() if previous.digests.get(name) != digest]
        if changed:
            raise TrainingError(
                f"{run_dir}: these inputs differ from those of the interrupted fit here: {', '.join(changed)}; restore "
                "them, delete the directory, or choose another --run"
            )


def read_fingerprint(run_dir: Path) -> DataFingerprint | None:
    """Read the fingerprint in a run directory; None if there is none.

    Raises:
        TrainingError: The file cannot be read.
    """
    try:
        return DataFingerprint.model_validate_json((run_dir / FINGERPRINT_FILE).read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TrainingError(f"{run_dir / FINGERPRINT_FILE}: cannot be read: {error}") from error
    except ValidationError as error:
        problem = error.errors()[0]
        raise TrainingError(
            f"{run_dir / FINGERPRINT_FILE}: is damaged, or of another version of vecall: "
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}; fit the run again"
        ) from error


def _list_optional(array: NDArray[Any] | None) -> list[NDArray[Any]]:
    return [] if array is None else [array]


def _to_byte_array(state: BaseModel) -> NDArray[np.uint8]:
    return np.frombuffer(state.model_dump_json().encode(), dtype=np.uint8)


def _compute_digest(arrays: list[NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
    return digest.hexdigest()


def select_time_key(dataset: Dataset, init_run_dir: Path | None) -> TimeKey:
    """Return what the record of a run's interactions holds as their times: that of its initial run, to compare them.

    Args:
        dataset: The tables.
        init_run_dir: Directory of the initial run; None without one.

    Raises:
        TrainingError: The tables have no times like those of the initial run.
    """
    fingerprint = None if init_run_dir is None else read_fingerprint(init_run_dir)
    if fingerprint is None:
        return get_time_key(dataset)
    if not can_hash_times(dataset, fingerprint.time_key):
        raise TrainingError(
            f"--init: the interactions of {init_run_dir} have {_describe_times(fingerprint.time_key)}, those of this "
            f"run {_describe_times(get_time_key(dataset))}, so it cannot be told whether that run was trained on what "
            "this run holds out; use its schema.interactions.time and time_unit, or omit --init"
        )
    return fingerprint.time_key


def _describe_times(time_key: TimeKey) -> str:
    descriptions: dict[TimeKey, str] = {
        "microseconds": "times since 1970",
        "numbers": "times of no known unit",
        "occurrences": "no times",
    }
    return descriptions[time_key]


def write_trained_hashes(run_dir: Path, hashes: Hashes, init_run_dir: Path | None) -> None:
    """Record the interactions that a run was trained on, including those of its initial run.

    Args:
        run_dir: Directory of the run.
        hashes: Hashes of the interactions in its training part.
        init_run_dir: Directory of its initial run; None without one.
    """
    all_hashes = hashes if init_run_dir is None else np.concatenate([hashes, _read_trained_hashes(init_run_dir)])
    write_array(run_dir / TRAINED_HASHES_FILE, np.unique(all_hashes)[:_MAX_HASHES])


def compute_leak_share(run_dir: Path, hashes: Hashes, split: Split) -> float:
    """Return the share of held-out interactions, and not of the training part, that a run was trained on.

    Args:
        run_dir: Directory of the run.
        hashes: Hashes of the positives, see `hash_positives`.
        split: Their split.

    Raises:
        TrainingError: The run's record of training interactions cannot be read.
    """
    trained, is_training = _read_trained_hashes(run_dir), split.positive_parts == TRAIN
    if len(trained) >= _MAX_HASHES:  # compare only the range of hashes that the sample covers
        is_covered = hashes <= trained[-1]
        hashes, is_training = hashes[is_covered], is_training[is_covered]
    held_out = np.setdiff1d(hashes[~is_training], hashes[is_training])
    return float(np.isin(held_out, trained).mean()) if len(held_out) else 0.0


def check_no_leak(init_run_dir: Path, hashes: Hashes, split: Split) -> None:
    """Check that an initial run was not trained on interactions that the new run holds out.

    Args:
        init_run_dir: Directory of the initial run.
        hashes: Hashes of the new run's positives, see `hash_positives`.
        split: Split of the new run.

    Raises:
        TrainingError: It was, or its record of training interactions cannot be read.
    """
    share = compute_leak_share(init_run_dir, hashes, split)
    remedy = "Omit --init, or use the same kind of split with cut times at or after those of that run"
    _raise_or_warn_of_leak(share, f"--init: {init_run_dir}", "this run", init_run_dir, split, remedy)


def check_not_trained_on(run_dir: Path, dataset: Dataset, split: Split) -> None:
    """Check that a run was not trained on interactions that an evaluation holds out; warn where that is not known.

    Args:
        run_dir: Directory of the run.
        dataset: The tables of the evaluation.
        split: Their split, which may be another than that of the run.

    Raises:
        TrainingError: It was.
    """
    try:
        share = compute_leak_share(run_dir, hash_positives(dataset, select_time_key(dataset, run_dir)), split)
    except TrainingError as error:
        logger.warning("%s: whether it was trained on what is evaluated here is not known: %s", run_dir, error)
        return
    remedy = "Evaluate it on its own tables and split, or fit again"
    _raise_or_warn_of_leak(share, str(run_dir), "this evaluation", run_dir, split, remedy)


def _raise_or_warn_of_leak(share: float, subject: str, holder: str, run_dir: Path, split: Split, remedy: str) -> None:
    if share > _MAX_LEAK_SHARE:
        fingerprint = read_fingerprint(run_dir)
        if fingerprint is not None and fingerprint.protocol == split.protocol:
            remedy += "; where both splits are the same, that run has read tables with later interactions than these"
        raise TrainingError(
            f"{subject} was trained on {share:.0%} of the interactions that {holder} holds out, so the metrics would "
            f"be too high. Split of that run: {'?' if fingerprint is None else fingerprint.protocol}; of {holder}: "
            f"{split.protocol}. {remedy}"
        )
    if share:
        logger.warning("%s was trained on %.2g %% of the interactions that %s holds out", subject, 100 * share, holder)


def _read_trained_hashes(run_dir: Path) -> Hashes:
    try:
        return np.load(run_dir / TRAINED_HASHES_FILE, allow_pickle=False).astype(np.uint64)  # type: ignore[no-any-return]
    except (OSError, ValueError, EOFError) as error:
        raise TrainingError(
            f"{run_dir / TRAINED_HASHES_FILE} cannot be read ({error}), so it is not known which interactions that run "
            f"was trained on; fit {run_dir} again, or omit --init"
        ) from error
