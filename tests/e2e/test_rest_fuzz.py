"""REST of every service, on what its OpenAPI document describes and on much that it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dunlin_lab.catalogue import CONTROL_PLANE
from tests.e2e.lab_cluster import LabCluster

pytestmark = [pytest.mark.root, pytest.mark.ovs, pytest.mark.nats, pytest.mark.slow]

SERVICES = (*CONTROL_PLANE, "agent")
EXAMPLES = 25
ENDLESS = {("/v1/events", "follow")}
"""A stream without end is read by its own test."""

JUNK = st.text(max_size=40) | st.sampled_from(
    ["", "_", "..", "../../etc/passwd", "%00", "a" * 5000, "-1", "1e999", "9" * 40, "null", "\x00"]
)
Operation = tuple[str, str, dict[str, Any]]


def schema_values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a parameter's schema describes."""
    if "anyOf" in schema:
        return st.one_of([schema_values(part) for part in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema.get("type"):
        case "integer":
            return st.integers(schema.get("minimum"), schema.get("maximum"))
        case "number":
            # A wait of seconds: what is long is for people, not for a test.
            return st.floats(0, 0.05)
        case "boolean":
            return st.booleans().map(lambda value: str(value).lower())
        case "null":
            return st.just("")
        case "array":
            return st.lists(schema_values(schema.get("items", {})), max_size=3)
        case "object":
            fields = {k: schema_values(v) for k, v in schema.get("properties", {}).items()}
            return st.fixed_dictionaries({}, optional=fields)
        case _:
            return st.text(max_size=20)


def resolved(schema: Any, document: dict[str, Any]) -> Any:
    """The schema without references."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            found: Any = document
            for part in schema["$ref"].removeprefix("#/").split("/"):
                found = found[part]
            return resolved(found, document)
        return {key: resolved(value, document) for key, value in schema.items()}
    return [resolved(item, document) for item in schema] if isinstance(schema, list) else schema


def operations(document: dict[str, Any]) -> list[Operation]:
    """Method, path, description; without the probes."""
    return [
        (method, path, resolved(what, document))
        for path, methods in document["paths"].items()
        for method, what in methods.items()
        if path not in {"/healthz", "/readyz", "/metrics"}
    ]


def body_of(data: st.DataObject, what: dict[str, Any]) -> dict[str, Any]:
    """A JSON body as described, any JSON, or none at all; nothing where none is described."""
    if "requestBody" not in what:
        return {}
    schema = what["requestBody"]["content"]["application/json"]["schema"]
    junk = st.recursive(st.none() | st.integers() | JUNK, lambda x: st.lists(x, max_size=3))
    kind = data.draw(st.sampled_from(["described", "json", "octets"]))
    if kind == "octets":
        return {
            "content": data.draw(st.binary(max_size=60)),
            "headers": {"Content-Type": "application/json"},
        }
    return {"json": data.draw(schema_values(schema) if kind == "described" else junk)}


def request(data: st.DataObject, operation: Operation) -> tuple[str, str, dict[str, Any]]:
    """One request: each parameter as described, or junk."""
    method, path, what = operation
    query: list[tuple[str, str]] = []
    where = path
    for parameter in what.get("parameters", []):
        name = parameter["name"]
        valid = schema_values(parameter.get("schema", {}))
        value = str(data.draw(valid | JUNK, label=name))
        if parameter["in"] == "path":
            where = where.replace("{" + name + "}", quote(value, safe="") or "_")
            where = where.replace("{" + name + ":path}", quote(value, safe="/") or "_")
        elif parameter["in"] == "query" and (path, name) not in ENDLESS:
            query.append((name, value))
    return method, where, {"params": query, **body_of(data, what)}


def problem_of(answer: httpx.Response) -> str:
    """What is wrong with an answer; "" for one that is well."""
    if answer.status_code >= 500 and answer.status_code not in {503, 504}:
        return f"{answer.status_code}: {answer.text[:300]}"
    if "json" in answer.headers.get("content-type", "").replace("x-ndjson", ""):
        try:
            json.loads(answer.content)
        except ValueError:
            return f"no JSON: {answer.text[:100]}"
    if answer.status_code in {400, 404, 422} and "error" not in answer.json():
        return f"an error that does not say what: {answer.text[:100]}"
    return ""


@pytest.mark.timeout(240)
@pytest.mark.parametrize("service", SERVICES)
def test_no_request_is_an_internal_error(cluster: LabCluster, service: str) -> None:
    """Each operation, with parameters as described and with junk: an answer, and never a 500."""
    status = cluster.status()
    (item, *_) = [i for i in status["services"] if i["service"] == service]
    headers = {}
    if service == "agent":
        token = (Path(status["kubeconfig"]).parent / "token").read_text(encoding="ascii")
        headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=item["url"], headers=headers, trust_env=False, timeout=20) as client:
        document = client.get("/openapi.json").json()
        found = operations(document)
        assert found

        @settings(
            max_examples=EXAMPLES * len(found),
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(data=st.data())
        def fuzz(data: st.DataObject) -> None:
            operation = data.draw(st.sampled_from(found), label="operation")
            method, where, arguments = request(data, operation)
            answer = client.request(method, where, **arguments)
            problem = problem_of(answer)
            assert not problem, f"{method} {where} {arguments}: {problem}"

        fuzz()
        assert client.get("/healthz").status_code == 200


def test_the_oracle_can_fail() -> None:
    """A 500, broken JSON and an error without words are found."""
    assert problem_of(httpx.Response(500, text="oops"))
    json_type = {"Content-Type": "application/json"}
    assert problem_of(httpx.Response(200, content=b"{", headers=json_type))
    assert problem_of(httpx.Response(422, json={}))
    assert not problem_of(httpx.Response(422, json={"error": "query.limit: too much"}))
