"""Training data of a configuration, read from its tables as in a fit."""

import numpy as np

from vecall.config import Config
from vecall.data.dataset import read_dataset
from vecall.data.split import Split
from vecall.training.data import TrainingData


def load_training_data(config: Config) -> tuple[TrainingData, Split]:
    """Read the tables, split them and encode the features."""
    dataset = read_dataset(config.data, config.schema_)
    split = dataset.split(config.data)
    encoders = dataset.fit_feature_encoders(split.train.values, np.arange(len(split.train)))
    return TrainingData.from_catalogue(dataset.catalogue, encoders, split.train, split.hard_negatives), split
