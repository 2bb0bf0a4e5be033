"""What `fit` read, as lines for people and as counts for the run's summary."""

from collections.abc import Mapping

import numpy as np

from vecall.data.dataset import Dataset
from vecall.data.ragged import count_rows
from vecall.data.split import Split


def count_data(dataset: Dataset, split: Split) -> dict[str, int]:
    """Return the sizes of the tables and of the parts of the split, by name."""
    return {
        "interactions": len(dataset.interactions.users),
        "positives": int(np.count_nonzero(dataset.interactions.is_positive)),
        "users": len(dataset.catalogue.users),
        "items": len(dataset.catalogue.items),
        "training_positives": len(split.train.values),
        "training_users": int(np.count_nonzero(split.train.lengths)),
        "training_items": int(np.count_nonzero(count_rows(split.train.values, len(dataset.catalogue.items)))),
        "validation_users": len(split.valid),
        "validation_targets": len(split.valid.targets.values),
        "test_users": len(split.test),
        "test_targets": len(split.test.targets.values),
    }


def describe_data(dataset: Dataset, split: Split, data_counts: Mapping[str, int]) -> list[str]:
    """Return lines about what was read, what was dropped, and how it was split, given the result of `count_data`."""
    counts = {name: f"{count:,}" for name, count in data_counts.items()}
    left_out = [
        f"{count:,} {reason}"
        for reason, count in (dict(dataset.dropped_counts) | dict(split.user_counts_by_reason)).items()
    ]
    return [
        "read {interactions} interactions, {positives} of them positive, of {users} users and {items} items".format(
            **counts
        ),
        f"dropped or not evaluated: {'; '.join(left_out) or 'nothing'}",
        split.protocol,
        "training: {training_positives} positives of {training_users} users and {training_items} items; validation: "
        "{validation_targets} of {validation_users} users; test: {test_targets} of {test_users} users".format(**counts),
    ]
