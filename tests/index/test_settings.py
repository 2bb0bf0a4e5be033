import pytest
from pydantic import ValidationError

from vecall.index.settings import IndexSettings


def test_hnsw_section_is_read():
    section = {"engine": "hnsw", "target_recall": 1, "ks": [1, 500], "latency_ms": 2, "M": 32, "ef": 64}
    settings = IndexSettings.model_validate(section)
    assert (settings.ks, settings.M, settings.ef_construction) == ((1, 500), 32, None)


def test_ivf_section_is_read():
    settings = IndexSettings.model_validate({"engine": "ivf", "nlist": 4096, "nprobe": 64, "storage": "fp16"})
    assert (settings.nlist, settings.nprobe, settings.ef) == (4096, 64, None)


def test_milvus_section_is_read():
    settings = IndexSettings.model_validate({"engine": "milvus", "M": 32, "milvus": {"timeout_ms": 50}})
    assert (settings.engine, settings.M, settings.milvus.timeout_ms, settings.milvus.db) == (
        "milvus",
        32,
        50,
        "default",
    )


def test_certificate_of_milvus_is_looked_for_beside_the_file(tmp_path):
    section = {"milvus": {"uri": "https://h", "ca": "ca.pem"}}
    settings = IndexSettings.model_validate(section).resolve_paths(tmp_path)
    assert settings.milvus.ca == str(tmp_path / "ca.pem")
    assert settings.model_dump(exclude_unset=True) == {"milvus": {"uri": "https://h", "ca": str(tmp_path / "ca.pem")}}
    assert IndexSettings().resolve_paths(tmp_path) == IndexSettings()


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
        {"nlist": 0},
        {"nprobe": 0},
        {"storage": "fp32"},
        {"m": 16},
    ],
)
def test_invalid_values_and_unknown_keys_are_refused(section):
    with pytest.raises(ValidationError) as error_info:
        IndexSettings.model_validate(section)
    assert {error["loc"][0] for error in error_info.value.errors()} == set(section)
