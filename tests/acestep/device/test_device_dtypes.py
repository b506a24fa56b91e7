"""The precision of each component."""

from __future__ import annotations

import pytest
import torch

from acestep.device import resolve, supports_float64
from acestep.errors import RequestError


def test_every_component_has_a_dtype_with_reason_and_source() -> None:
    policy = resolve("cpu")
    assert set(policy.dtypes) == {"dit", "text_encoder", "vae", "lm"}
    for choice in policy.dtypes.values():
        assert choice.dtype != torch.float16
        assert choice.reason
        assert choice.source
        assert choice.name == "float32"


def test_dtype_override() -> None:
    policy = resolve("cpu", dtype="bfloat16")
    assert {choice.dtype for choice in policy.dtypes.values()} == {torch.bfloat16}
    assert resolve("cpu", dtype="auto").dtype == torch.float32
    with pytest.raises(RequestError, match="unknown dtype 'int4'"):
        resolve("cpu", dtype="int4")


def test_float64_is_missing_only_on_mps() -> None:
    assert supports_float64("cpu")
    assert supports_float64("cuda:0")
    assert not supports_float64(torch.device("mps"))
