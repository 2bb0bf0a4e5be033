import pytest
from pydantic import ValidationError

from vecall.index.settings import IndexSettings


def test_a_whole_section():
    section = {"engine": "hnsw", "target_recall": 1, "ks": [1, 500], "latency_ms": 2, "M": 32, "ef": 64}
    settings = IndexSettings.model_validate(section)
    assert (settings.ks, settings.M, settings.ef_construction) == ((1, 500), 32, None)


def test_a_section_of_cells():
    settings = IndexSettings.model_validate({"engine": "cells", "cells": 4096, "probes": 64, "storage": "fp16"})
    assert (settings.nlist, settings.nprobe, settings.ef) == (4096, 64, None)


def test_a_known_engine_says_that_it_is_not_built():
    with pytest.raises(ValidationError, match="engine 'milvus' is not built yet: choose 'auto', 'hnsw', 'cells' or"):
        IndexSettings(engine="milvus")


@pytest.mark.parametrize(
    "section",
    [
        {"engine": "annoy"},
        {"target_recall": 0},
        {"target_recall": 1.01},
        {"ks": []},
        {"ks": [500, 100]},
        {"ks": [100, 100]},
        {"ks": [0]},
        {"latency_ms": 0},
        {"latency_ms": float("inf")},
        {"M": 1},
        {"ef": 0},
        {"cells": 0},
        {"probes": 0},
        {"storage": "fp32"},
        {"m": 16},
    ],
)
def test_other_values_and_keys_are_refused(section):
    with pytest.raises(ValidationError):
        IndexSettings.model_validate(section)
