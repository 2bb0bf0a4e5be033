"""Stores being served."""

import shutil

import pytest
import serving

from vecall import pipeline


@pytest.fixture
def shop(published, tmp_path):
    """A copy of the store with the release `tiny`, which has towers, users and popularity."""
    shutil.copytree(published / "store", tmp_path / "shop")
    return tmp_path / "shop"


@pytest.fixture
def client(shop):
    with serving.served(shop) as client:
        yield client


@pytest.fixture
def publish_more(published):
    """Publishes the same run into a store again."""
    return lambda store, name, *, activate: pipeline.publish(published / "run", store, name=name, activate=activate)


@pytest.fixture
def process_of(tmp_path):
    """Starts processes, and ends them after the test."""
    begun = []

    def start(store, *options, **others):
        begun.append(serving.Process(store, tmp_path / f"serve-{len(begun)}.log", *options, **others))
        return begun[-1]

    yield start
    for one in begun:
        one.end()
