"""The dict of engines agrees with the settings."""

from typing import get_args

import pytest

from vecall.index.engines import ENGINES
from vecall.index.settings import IndexSettings


def test_settings_name_every_engine():
    names = get_args(IndexSettings.model_fields["engine"].annotation)
    assert sorted(names) == sorted(["auto", *ENGINES])


@pytest.mark.parametrize("name", ENGINES)
def test_engine_reads_keys_of_the_settings_and_can_be_opened(name):
    engine = ENGINES[name]
    assert engine.name == name
    assert set(engine.settings_keys) <= set(IndexSettings.model_fields)
    assert engine.fixed_width_key is None or engine.fixed_width_key in engine.settings_keys
    assert engine.file in {"index.faiss", "vectors.npy"}
    assert engine.is_remote == (engine.file == "vectors.npy")
