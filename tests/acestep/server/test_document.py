"""A hundred requests made up from the OpenAPI document: none breaks the service, none hangs.

`python -m acestep.bench.requests_benchmark` sends 2,000 made up by schemathesis.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_support import Server

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20) | st.sampled_from(["-1", "N/A", "1e9", "../x", "\ud800", "[", "auto"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """What a schema allows, and at times what it does not."""
    kinds = {
        "string": st.text(max_size=30),
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
            body = st.fixed_dictionaries({}, optional={**fields, "prompt": st.text(max_size=10)})
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
