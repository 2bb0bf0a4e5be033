import pytest
from pydantic import ValidationError

from vecall.index.settings import IndexSettings


def test_a_whole_section():
    section = {"engine": "hnsw", "target_recall": 1, "ks": [1, 500], "latency_ms": 2, "M": 32, "ef": 64}
    settings = IndexSettings.model_validate(section)
    assert (settings.ks, settings.M, settings.ef_construction) == ((1, 500), 32, None)


@pytest.mark.parametrize("engine", ["cells", "milvus"])
def test_known_engines_say_that_they_are_not_built(engine):
    with pytest.raises(ValidationError, match="not built yet"):
        IndexSettings(engine=engine)


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
        {"m": 16},
    ],
)
def test_other_values_and_keys_are_refused(section):
    with pytest.raises(ValidationError):
        IndexSettings.model_validate(section)
