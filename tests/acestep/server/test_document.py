"""A hundred requests made up from the OpenAPI document: none breaks the service, none hangs.

`python -m acestep.bench.requests_benchmark` sends 2,000 made up by schemathesis.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_support import Server

# What a client may put anywhere: of every kind, and odd ones of each.
JUNK = st.sampled_from(
    [None, True, False, 0, -1, 7, 10**30, 0.5, -1e300, "", " ", "x", "-1", "N/A", "1e9", "../x",
     "\ud800", "[", "{", "auto", "true", "1,2", [], [[]], ["x", 5], {}, {"a": {"b": []}}, "é" * 300]
)  # fmt: skip


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """What a schema allows, and at times what it does not."""
    kinds = {
        "string": st.sampled_from(
            ["piano", "[verse]\nla", "C major", "wav", "cover", "\x00", "日本"]
        ),
        "number": st.floats(-10, 700, allow_nan=False),
        "integer": st.integers(-10, 400),
        "boolean": st.booleans(),
        "array": st.lists(st.text(max_size=5), max_size=3),
        "object": st.dictionaries(
            st.sampled_from(["bpm", "keyscale", "duration"]), JUNK, max_size=2
        ),
    }
    named = schema.get("type")
    allowed = [kinds[kind] for kind in ([named] if isinstance(named, str) else named or [])]
    return st.one_of(*allowed, JUNK)


def bodies(document: dict[str, Any]) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """An address and a body for it."""
    made = []
    for path, operations in document["paths"].items():
        if "post" in operations:
            content = operations["post"]["requestBody"]["content"]["application/json"]
            fields = {name: values(one) for name, one in content["schema"]["properties"].items()}
            body = st.fixed_dictionaries({}, optional=fields)
            made.append(st.tuples(st.just(path), body))
    return st.one_of(made)


def test_made_up_requests(idle: Server) -> None:
    document = idle.client.get("/openapi.json").json()
    # What would wait for a worker is told that the service stops.
    idle.service.line.close()

    @settings(max_examples=100, suppress_health_check=list(HealthCheck))
    @given(bodies(document))
    def send(made: tuple[str, dict[str, Any]]) -> None:
        path, body = made
        content = json.dumps(body, ensure_ascii=True)
        answer = idle.client.post(path, content=content)
        assert answer.status_code < 500 or answer.status_code == 503, (body, answer.text)
        if answer.status_code != 200:
            assert "detail" in answer.json()

    send()
