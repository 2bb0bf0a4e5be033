"""The document says what the service does: schemathesis sends all that it allows, and all that it does not."""

import os

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.generation import GenerationMode

from vecall.service import schemas

load_all_checks()
# Not asked: whether every body of the right shape is taken. Ids, columns and vectors must be the release's too.
SKIPPED = ("positive_data_acceptance",)


KEY = "admin-key-0123456789"


@pytest.fixture
def document(shop, process_of):
    """Of a service in a process of its own, with keys."""
    served = process_of(shop, environment=os.environ | {"VECALL_ADMIN_KEY": KEY})
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json")


# Hypothesis by itself: the library's own way into pytest does not know this pytest.
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_endpoint_answers_as_the_document_says(document, mode):
    asked, skipped = [], [CHECKS.get_one(name) for name in SKIPPED]
    for result in document.get_all_operations():
        operation = result.ok()
        if mode is GenerationMode.NEGATIVE and operation.method != "post":
            continue

        @settings(max_examples=60, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy(generation_mode=mode))
        def ask(case):
            case.call_and_validate(headers={"Authorization": f"Bearer {KEY}"}, excluded_checks=skipped)

        ask()
        asked.append(operation.label)
    assert {"POST /v1/recall", "POST /v1/items", "POST /v1/items/delete", "POST /v1/releases/activate"} <= set(asked)


def test_answers_are_of_the_document_s_shape(client):
    explained = client.post("/v1/recall", json={"user_id": "user-1", "explain": True})
    assert schemas.RecallResponse.model_validate(explained.json(), strict=True)
    assert schemas.ReleasesResponse.model_validate_json(client.get("/v1/releases").content, strict=True)


def test_each_field_is_explained(client):
    """But ids and names, which explain themselves."""
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    plain = {
        "id",
        "name",
        "release",
        "previous",
        "items",
        "dim",
        "bytes",
        "created",
        "metrics",
        "accepted",
        "status",
        "releases",
    }
    for name, shape in schemas.items():
        for field, told in shape.get("properties", {}).items():
            assert field in plain or "description" in told or "$ref" in told, (name, field)
        assert "properties" not in shape or shape["description"], name


def test_examples_of_the_document_run(client):
    document = client.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        if "requestBody" in (asked := methods.get("post", {})):
            reference = asked["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            assert document["components"]["schemas"][reference.rpartition("/")[2]]["examples"], path
