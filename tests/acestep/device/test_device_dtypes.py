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


@pytest.mark.parametrize(
    ("units", "runs_in"),
    [({"amx_bf16": True}, "bfloat16"), ({"bf16": True}, "bfloat16"), ({"avx2": True}, "float32")],
)
def test_on_the_host_a_checkpoint_decides_where_the_processor_can(
    units: dict[str, bool], runs_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    policy = resolve("cpu")
    made = policy.for_weights("BF16")
    assert {choice.name for choice in made.dtypes.values()} == {runs_in}
    assert policy.for_weights("F32") is policy, "nothing is lost that was there"
    for asked in ("float32", "bfloat16"):
        own = resolve("cpu", dtype=asked)
        assert own.for_weights("BF16") is own, "one word away"
    if runs_in == "bfloat16":
        assert "--dtype float32" in made.dtypes["dit"].reason


def test_float64_is_missing_only_on_mps() -> None:
    assert supports_float64("cpu")
    assert supports_float64("cuda:0")
    assert not supports_float64(torch.device("mps"))
