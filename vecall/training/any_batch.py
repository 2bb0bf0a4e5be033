"""The kinds of batches that a training step may get."""

from vecall.training.batches import SampleBatch
from vecall.training.sets import SetBatch
from vecall.training.windows import WindowBatch

TargetBatch = SampleBatch | WindowBatch
"""Batch with a user vector for each target."""

AnyBatch = TargetBatch | SetBatch
