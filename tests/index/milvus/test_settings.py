import pytest
from pydantic import ValidationError

from vecall.errors import ConfigError
from vecall.index.milvus.endpoint import MilvusEndpoint, resolve_endpoint
from vecall.index.milvus.settings import MilvusSettings

TOKEN = {"VECALL_MILVUS_TOKEN": "root:secret"}


def test_defaults_are_those_of_the_public_interface():
    assert MilvusSettings().model_dump() == {
        "uri": "http://127.0.0.1:19530",
        "db": "default",
        "ca": "",
        "replicas": 1,
        "shards": 1,
        "timeout_ms": 200,
        "build_stall_minutes": 10,
        "when_down": "refuse",
        "alias": "",
    }


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:19530", "https://milvus.internal", "http://[::1]:19530", "http://h/"]
)
def test_addresses_with_a_scheme_and_a_host_are_accepted(uri):
    assert MilvusSettings(uri=uri).uri == uri


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"uri": "127.0.0.1:19530"}, "expected http://HOST:PORT"),
        ({"uri": "tcp://127.0.0.1:19530"}, "expected http://HOST:PORT"),
        ({"uri": "http://"}, "expected http://HOST:PORT"),
        ({"uri": "http://h:port"}, "cannot be read"),
        ({"uri": "http://h/db"}, "name the database in index.milvus.db"),
        ({"uri": "./milvus.db"}, "expected http://HOST:PORT"),
        ({"db": ""}, "db is empty"),
        ({"db": "a-b"}, "letters, digits and _"),
        ({"alias": "1a"}, "letters, digits and _"),
        ({"ca": "ca.pem"}, "begin it with https://"),
        ({"replicas": 0}, "greater than or equal to 1"),
        ({"shards": 65}, "less than or equal to 64"),
        ({"timeout_ms": 0}, "greater than 0"),
        ({"build_stall_minutes": 0}, "greater than 0"),
        ({"when_down": "wait"}, "'refuse' or 'popular'"),
        ({"token": "a"}, "not permitted"),
    ],
)
def test_invalid_values_and_unknown_keys_are_refused(section, message):
    with pytest.raises(ValidationError, match=message):
        MilvusSettings.model_validate(section)


def test_password_in_the_address_is_refused_and_not_repeated():
    with pytest.raises(ValidationError, match="VECALL_MILVUS_TOKEN") as error_info:
        MilvusSettings(uri="http://root:secret@127.0.0.1:19530")
    assert "secret" not in str(error_info.value.errors()[0]["msg"])


def test_environment_overrides_the_address_and_holds_the_token():
    environ = TOKEN | {"VECALL_MILVUS_URI": "https://other:1"}
    assert resolve_endpoint(MilvusSettings(), environ) == MilvusEndpoint("https://other:1", token="root:secret")
    assert resolve_endpoint(MilvusSettings(db="shop"), {}) == MilvusEndpoint("http://127.0.0.1:19530", db="shop")


def test_invalid_address_in_the_environment_is_refused_by_the_name_of_the_variable():
    with pytest.raises(ConfigError, match="VECALL_MILVUS_URI: expected http"):
        resolve_endpoint(MilvusSettings(), {"VECALL_MILVUS_URI": "milvus"})


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "http://localhost", "http://[::1]:1", "http://127.9.9.9:1"])
def test_token_may_travel_in_the_clear_to_this_machine(uri):
    assert resolve_endpoint(MilvusSettings(uri=uri), TOKEN).token == "root:secret"


@pytest.mark.parametrize("uri", ["http://10.0.0.1:1", "http://localhost.evil:1", "http://milvus:19530"])
def test_token_is_not_sent_unencrypted_to_another_machine(uri):
    with pytest.raises(ConfigError, match=r"index\.milvus\.uri: .* unencrypted") as error_info:
        resolve_endpoint(MilvusSettings(uri=uri), TOKEN)
    assert "secret" not in str(error_info.value)
    assert resolve_endpoint(MilvusSettings(uri=uri.replace("http:", "https:")), TOKEN).token == "root:secret"


def test_missing_certificate_is_refused(tmp_path):
    settings = MilvusSettings(uri="https://h", ca=str(tmp_path / "ca.pem"))
    with pytest.raises(ConfigError, match=r"index\.milvus\.ca"):
        resolve_endpoint(settings, {})
    (tmp_path / "ca.pem").touch()
    assert resolve_endpoint(settings, {}).ca == str(tmp_path / "ca.pem")


def test_texts_of_an_endpoint_have_no_token():
    endpoint = MilvusEndpoint("http://127.0.0.1:1", db="shop", token="root:secret")
    assert "secret" not in repr(endpoint) + str(endpoint)
    assert str(endpoint) == "http://127.0.0.1:1 (database shop)"
