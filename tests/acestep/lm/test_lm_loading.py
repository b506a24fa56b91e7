"""Loading a language model: the engine that a device gets, and the line that says so."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from acestep.device import DevicePolicy, resolve
from acestep.errors import RequestError
from acestep.lm import loading


class _CudaPolicy:
    name = "cuda:0"
    prefers_vllm = True
    lm_backend = "pt"
    lm_backend_reason = "vLLM is not installed"
    quantization: str | None = None
    lm_backend_problem = DevicePolicy.lm_backend_problem


def test_the_engine_is_chosen_by_the_device() -> None:
    policy: Any = _CudaPolicy()
    assert loading.choose(None, resolve("cpu")) == ("pt", None)
    assert loading.choose("pt", policy) == ("pt", None)
    assert loading.choose("auto", policy) == (
        "pt",
        "vLLM is not installed: the language model uses pt",
    )
    with pytest.raises(RequestError, match="vLLM is not installed; use pt"):
        loading.choose("vllm", policy)
    policy.lm_backend = "vllm"
    assert loading.choose("", policy) == ("vllm", None)
    policy.quantization = "int8"
    assert loading.choose("", policy) == ("pt", None), "vLLM has other ways"
    with pytest.raises(RequestError, match="leave out --quantize"):
        loading.choose("vllm", policy)


def test_nothing_is_loaded_to_find_a_model() -> None:
    """What will be loaded is known, and told, before anything is."""
    found = loading.find("demo", resolve("cpu", dtype="bfloat16"))
    assert (found.engine, found.note) == ("pt", None)
    assert found.status == f"{found.folder.name} on cpu (bfloat16), backend pt"
    noted = dataclasses.replace(found, note="a line")
    assert noted.status == f"{found.status}; a line"
    small = loading.find("demo", resolve("cpu", quantization="int8"))
    assert small.status == f"{found.folder.name} on cpu (float32, int8 weights), backend pt"
    with pytest.raises(RequestError, match="offloading is pointless on cpu"):
        loading.find("demo", resolve("cpu"), offload=True)
