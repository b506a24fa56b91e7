"""The page: which devices and backends it offers, and which it starts with."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

from conformance.entrypoints import covers
from conformance.suite.support import Api
from conformance.targets import Target

SECTION = "gradio_ui.interfaces.generation:create_generation_section"


def dropdown(parts: dict[str, Any], offered: str) -> Any:
    """The component that offers a choice."""
    found = [part for part in parts.values() if offered in choices(part)]
    assert found, f"no component offers '{offered}'"
    return found[0]


def choices(part: Any) -> list[str]:
    """The values that a component offers; gradio keeps them as (label, value)."""
    offered = getattr(part, "choices", None) or []
    return [str(c[1] if isinstance(c, tuple | list) else c) for c in offered]


def section(api: Api) -> dict[str, Any]:
    """The components of the page's generation part, made as the page makes them."""
    create = api.get(SECTION, optional="gradio")
    handler = api.get("handler:AceStepHandler")()
    llm = api.get("llm_inference:LLMHandler")()
    gradio: Any = importlib.import_module("gradio")

    async def make() -> dict[str, Any]:
        # Within a loop: without one, gradio makes loops that it never closes.
        with gradio.Blocks(analytics_enabled=False):
            parts: dict[str, Any] = create(handler, llm, init_params=None, language="en")
        return parts

    return asyncio.run(make())


@covers("S3", SECTION)
def test_device_dropdown(api: Api, target: Target) -> None:
    part = dropdown(section(api), "cuda")
    assert set(choices(part)) == {"auto", "cuda", "mps", "cpu"}
    assert part.value == "auto"


@covers("S5", SECTION)
def test_backend_dropdown(api: Api, target: Target) -> None:
    part = dropdown(section(api), "vllm")
    assert {"pt", "vllm"} <= set(choices(part))
    assert part.value in (("pt", "vllm") if target.device == "cuda" else ("pt",))
