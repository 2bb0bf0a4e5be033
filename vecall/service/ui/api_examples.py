"""curl commands for the API page, with ids and values of the served release, so that they run as they are."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np

from vecall.data.id_map import Id
from vecall.live.item_columns import ItemColumns
from vecall.live.snapshot import Snapshot
from vecall.service.ui.attributes import AttributeInfo, describe_attributes
from vecall.service.ui.form import FilterRow, parse_condition
from vecall.service.ui.presenters import sample_ids, suggest_items

_K = 10
_HISTORY_LENGTH = 3
_MMR = 0.7
_VECTOR_DECIMALS = 4


@dataclass(frozen=True)
class CurlExample:
    """A command.

    Attributes:
        title: key of its title in the pages' texts; None if it needs none.
        command: for a POSIX shell.
    """

    title: str | None
    command: str


class CurlExamples:
    """Builds the commands of all endpoints.

    Args:
        snapshot: whose ids and values are used.
        base_url: address of the service as the reader's browser knows it, without a slash at the end.
        has_keys: whether the service needs API keys.
    """

    def __init__(self, snapshot: Snapshot, base_url: str, *, has_keys: bool) -> None:
        self._snapshot, self._base_url, self._has_keys = snapshot, base_url, has_keys

    def build(self, method: str, path: str) -> list[CurlExample]:
        """The commands of an endpoint, such as `POST` `/v1/recall`."""
        if method == "GET":
            return [CurlExample(None, self._to_command(path, None))]
        bodies = self._build_bodies(path)
        return [CurlExample(title, self._to_command(path, body)) for title, body in bodies.items()]

    def _build_bodies(self, path: str) -> dict[str | None, dict[str, Any]]:
        """Request bodies by title."""
        match path:
            case "/v1/recall":
                return self._build_recall_bodies()
            case "/v1/recommend":
                return {None: next(iter(self._build_recall_bodies().values())) | {"diversity": {"mmr": _MMR}}}
            case "/v1/items":
                return {None: {"items": [self._build_new_item()]}}
            case "/v1/items/delete":
                return {None: {"ids": [self._get_new_item_id()]}}
            case "/v1/releases/activate":
                return {None: {"name": self._snapshot.release.name}}
        raise ValueError(f"no example for {path}")

    def _to_command(self, path: str, body: Mapping[str, Any] | None) -> str:
        words = ["curl", shlex.quote(self._base_url + path)]
        if self._has_keys and path not in ("/healthz", "/readyz"):
            words.append("-H 'Authorization: Bearer KEY'")
        if body is not None:
            words += ["-H 'Content-Type: application/json'", f"-d {shlex.quote(json.dumps(body, ensure_ascii=False))}"]
        return " \\\n  ".join([" ".join(words[:2]), *words[2:]])

    def _build_recall_bodies(self) -> dict[str | None, dict[str, Any]]:
        release = self._snapshot.release
        if release.encoder is None:
            return {"example_vector": {"vector": self._build_vector(), "k": _K}}
        bodies: dict[str | None, dict[str, Any]] = {}
        if release.users is not None and len(release.users.ids):
            bodies["example_user"] = {"user_id": sample_ids(release.users.ids, 3)[-1], "k": _K}
        history = self._snapshot.to_ids(suggest_items(self._snapshot, _HISTORY_LENGTH))
        where = self._build_conditions()
        bodies["example_history"] = {"history": history, "k": _K} | ({"where": where} if where else {})
        return bodies

    def _build_conditions(self) -> list[dict[str, Any]]:
        """A condition on an attribute that shows an operation of its type; none without attributes."""
        ops = {"tags": "contains_any", "integer": "gte", "number": "gte", "date": "gte", "datetime": "gte"}
        attributes = [info for info in describe_attributes(self._snapshot.release.attributes) if info.examples]
        attributes.sort(key=lambda info: info.kind not in ops)  # titles and flags make dull examples
        return [self._build_condition(info, ops.get(info.kind, "eq")) for info in attributes[:1]]

    def _build_condition(self, info: AttributeInfo, op: str) -> dict[str, Any]:
        example = info.examples[len(info.examples) // 2] if op == "gte" else info.examples[0]
        return parse_condition("where[0]", FilterRow(info.name, op, example), self._snapshot)

    def _build_new_item(self) -> dict[str, Any]:
        """An item that does not exist yet, with the attributes of an existing one."""
        release = self._snapshot.release
        frame = self._snapshot.get_attributes(suggest_items(self._snapshot, 1))
        attributes = frame.row(0, named=True) if frame.height and frame.width else {}
        columns = ItemColumns.from_release(release)
        fields = {name: _to_json_value(value) for name, value in attributes.items()}
        item: dict[str, Any] = {"id": self._get_new_item_id()}
        if release.encoder is None:
            item["vector"] = self._build_vector()
        item["fields"] = {
            name: value
            for name, value in fields.items()
            if value is not None and columns.describe_error(name, value) is None
        }
        return item

    def _build_vector(self) -> list[float]:
        """[D] an item's vector, which does for a user's."""
        vectors = self._snapshot.get_vectors(suggest_items(self._snapshot, 1))  # [1, D]; [0, D] if all are deleted
        vector = vectors[0] if len(vectors) else np.ones(self._snapshot.release.vectors.dim)
        return [round(float(value), _VECTOR_DECIMALS) for value in vector]

    def _get_new_item_id(self) -> Id:
        item_ids = self._snapshot.release.item_ids
        if item_ids.id_type == "string":
            return "new-item"
        last_id = int(item_ids.to_ids(np.array([len(item_ids) - 1]))[0])  # rows ascend with ids
        return min(last_id + 1, 2**63 - 1)


def _to_json_value(value: object) -> object:
    """The value as a request may give it; None if JSON has nothing for it."""
    match value:
        case bool() | int() | str():
            return value
        case float() | Decimal():
            return float(value)
        case date():  # datetimes are dates
            return value.isoformat()
        case list():
            return [_to_json_value(element) for element in value]
    return None
