"""Memory of many rows, measured in a process of its own: far below what an object per row needs."""

import json
import subprocess
import sys

import numpy as np
import polars as pl

# Prints what the peak of memory in MiB rises by in `work()`, and what it returns.
MEASURE = """
import json, resource
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = work()
print(json.dumps([(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10, result]))
"""

ENCODE = """
import numpy as np, polars as pl
from vecall.data.feature_encoder import FeatureEncoder
from vecall.schema import CategoryFeature, TagsFeature, TextFeature
N = 200_000
numbers = np.random.default_rng(0).integers(1000, size=(6, N))
words = [pl.Series(row).cast(pl.String) for row in numbers]
titles = sum(("word" + column + " " for column in words[1:]), start="title " + words[0] + " ")
frame = pl.DataFrame({"category": words[0], "tags": words[1] + "|" + words[2], "title": titles})
frame = frame.with_columns(pl.col("tags").str.split("|"))
features = {"category": CategoryFeature(), "tags": TagsFeature(), "title": TextFeature()}
def work():
    encoded = FeatureEncoder.fit(features, frame).encode(frame)
    return {name: [list(array.shape), array.nbytes / 2**20] for name, array in encoded.items()}
"""

READ = """
import sys
from pathlib import Path
from vecall.data import readers
from vecall.data.dataset import read_dataset
from vecall.data.settings import DataSettings
from vecall.schema import Schema
readers._BATCH_ROWS = 2**16
ids = {"id_type": "string"}
interactions = {"user": "u", "item": "i", "time": "t"}
schema = Schema.model_validate({"interactions": interactions, "items": {"id": "i"} | ids, "users": {"id": "u"} | ids})
settings = DataSettings(interactions=(Path(sys.argv[1]),))
def work():
    dataset = read_dataset(settings, schema)
    split = dataset.split(settings)
    return len(split.train.values) + len(split.valid) + len(split.test)
"""


def measure(code, *arguments):
    command = [sys.executable, "-c", code + MEASURE, *map(str, arguments)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_200_000_items_are_encoded_in_little_more_than_the_result():
    peak, shapes = measure(ENCODE)
    assert shapes["tags"][0] == [200_000, 2]
    assert shapes["title"][0][0] == 200_000
    size = sum(mebibytes for _, mebibytes in shapes.values())
    assert peak < size + 150  # 60; with Python objects 2,100


def test_interactions_with_string_ids_are_read_in_little_more_than_codes(tmp_path):
    count, rng = 1_000_000, np.random.default_rng(0)
    ids = {prefix: pl.Series(rng.integers(20_000, size=count)).cast(pl.String).str.zfill(15) for prefix in "ui"}
    pl.DataFrame({**ids, "t": np.arange(count)}).write_parquet(tmp_path / "log.parquet", row_group_size=2**16)
    peak, n_interactions = measure(READ, tmp_path / "log.parquet")
    assert n_interactions == count
    assert peak < 50  # 17; as ids and int64 72 to 113
