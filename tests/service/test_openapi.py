"""The OpenAPI document describes the service: schemathesis sends what it allows, and what it does not allow."""

import os

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.generation import GenerationMode

from vecall.service import schemas

load_all_checks()
# Not every body of the right shape is accepted: ids, columns and vectors must be those of the release, too.
EXCLUDED_CHECKS = [CHECKS.get_one("positive_data_acceptance")]
ADMIN_KEY = "admin-key-0123456789"
# Names that need no description.
SELF_EXPLANATORY = {
    *("id", "name", "release", "previous", "items", "dim", "bytes", "created", "metrics", "accepted", "status"),
    "releases",
}


@pytest.fixture
def document(shop, start_server):
    """The document of a running service with an API key."""
    server = start_server(shop, environment=os.environ | {"VECALL_ADMIN_KEY": ADMIN_KEY})
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


# Hypothesis is called directly, since the pytest plugin of schemathesis does not support this version of pytest.
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_endpoint_conforms_to_the_document(document, mode):
    called = []
    for result in document.get_all_operations():
        operation = result.ok()
        if mode is GenerationMode.NEGATIVE and operation.method != "post":
            continue

        @settings(max_examples=60, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy(generation_mode=mode))
        def call_operation(case):
            case.call_and_validate(headers={"Authorization": f"Bearer {ADMIN_KEY}"}, excluded_checks=EXCLUDED_CHECKS)

        call_operation()
        called.append(operation.label)
    assert {
        "POST /v1/recall",
        "POST /v1/recommend",
        "POST /v1/items",
        "POST /v1/items/delete",
        "POST /v1/releases/activate",
    } <= set(called)


def test_responses_match_their_schemas(client):
    answer = client.post("/v1/recall", json={"user_id": "user-1", "explain": True})
    assert schemas.RecallResponse.model_validate(answer.json(), strict=True)
    answer = client.post("/v1/recommend", json={"user_id": "user-1", "explain": True})
    assert schemas.RecommendResponse.model_validate(answer.json(), strict=True)
    for path, model in (
        ("/v1/releases", schemas.ReleasesResponse),
        ("/healthz", schemas.HealthResponse),
        ("/readyz", schemas.ReadinessResponse),
    ):
        assert model.model_validate_json(client.get(path).content, strict=True)


def test_every_field_has_a_description(client):
    models = client.get("/openapi.json").json()["components"]["schemas"]
    for name, schema in models.items():
        for field, description in schema.get("properties", {}).items():
            assert field in SELF_EXPLANATORY or "description" in description or "$ref" in description, (name, field)
        assert "properties" not in schema or schema["description"], name


def test_every_request_body_has_an_example(client):
    document = client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        if "requestBody" in (operation := operations.get("post", {})):
            reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            assert document["components"]["schemas"][reference.rpartition("/")[2]]["examples"], path
