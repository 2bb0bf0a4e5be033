"""Reading of tables and encoding of features at scale."""

import time
from typing import Any

import numpy as np

from harness.environment import MemoryGrowth
from harness.scale.cell import CellOptions
from harness.scale_data import IdType, scale_config
from vecall.data.dataset import Dataset, read_dataset
from vecall.data.split import Split
from vecall.training.data import TrainingData


def measure_read(options: CellOptions, *, id_type: IdType) -> dict[str, Any]:
    """Measure reading and splitting the tables, without features."""
    config = scale_config(options.write_tables(id_type), with_features=False, preset="pooled")
    memory, start = MemoryGrowth(), time.perf_counter()
    dataset = read_dataset(config.data, config.schema_)
    read_seconds = time.perf_counter() - start
    split = dataset.split(config.data)
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "read_seconds": round(read_seconds, 2),
        "peak_gib": memory.read_peak_gib(),
        "train_rows": len(split.train.values),
        "test_users": len(split.test),
    }


def measure_encode(options: CellOptions) -> dict[str, Any]:
    """Measure fitting the encoders on the items of the training part and encoding category, tags, title and price."""
    config = scale_config(options.write_tables(), with_features=True, preset="pooled")
    process = MemoryGrowth()  # from here on: pages that reading has freed are used again, and must not hide a peak
    dataset = read_dataset(config.data, config.schema_)
    split = dataset.split(config.data)
    dataset_gib = _measure_dataset_gib(dataset, split)
    process.reset_peak()
    start = time.perf_counter()
    encoders = dataset.fit_feature_encoders(split.train.values, np.arange(len(split.train)))
    fit_seconds = time.perf_counter() - start
    data = TrainingData.from_catalogue(dataset.catalogue, encoders, split.train, split.hard_negatives)
    seconds, peak_gib = time.perf_counter() - start, process.read_peak_gib()
    result_gib = sum(array.nbytes for array in data.item_features.values()) / 2**30
    return {
        "seconds": round(seconds, 2),
        "fit_seconds": round(fit_seconds, 2),
        "peak_gib": peak_gib,
        "result_gib": round(result_gib, 3),
        "dataset_gib": round(dataset_gib, 3),
        "gib_above_result": round(peak_gib - dataset_gib - result_gib, 3),
    }


def _measure_dataset_gib(dataset: Dataset, split: Split) -> float:
    """Return the size of the tables' columns and of the split; id maps are left out, and count as growth."""
    catalogue, interactions = dataset.catalogue, dataset.interactions
    frames = (catalogue.item_features, catalogue.user_features, catalogue.item_attributes)
    arrays = (interactions.users, interactions.items, interactions.times, interactions.is_positive)
    train = (split.train.values, split.train.offsets, split.positive_parts)
    return (sum(frame.estimated_size() for frame in frames) + sum(array.nbytes for array in (*arrays, *train))) / 2**30
