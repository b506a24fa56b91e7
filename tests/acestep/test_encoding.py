"""Tests of the prompt's encoding: diffusers' values, whatever room a recording has."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from acestep import encoding
from acestep.device import DevicePolicy, resolve
from acestep.encoding import PromptEncoder
from acestep.handler import AceStepHandler
from acestep.request import Request


class Recording(DevicePolicy):
    """The host in the part of a device that records."""

    @property
    def records(self) -> bool:
        return True


@pytest.fixture
def recording() -> DevicePolicy:
    host = resolve("cpu")
    return Recording(**{f.name: getattr(host, f.name) for f in dataclasses.fields(host)})


def tokens(count: int) -> torch.Tensor:
    return torch.arange(5, 5 + count)[None] % 1000


def test_a_recording_gives_what_encoding_gives(
    diffusers_pipeline: Any, policy: DevicePolicy, recording: DevicePolicy
) -> None:
    """Longer words, then shorter ones in the same room, then some that need more."""
    plain, recorded = (PromptEncoder(diffusers_pipeline, p) for p in (policy, recording))
    for text, lyrics in ((60, 90), (7, 3), (64, 128), (65, 3)):
        wanted, made = (encode(tokens(text), tokens(lyrics)) for encode in (plain, recorded))
        for one, other in zip(made, wanted, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert list(recorded._recordings) == [(64, 128), (128, 128)]
    for room in range(encoding.MAX_RECORDINGS):
        recorded(tokens(5), tokens(128 * room + 1))
    assert len(recorded._recordings) == encoding.MAX_RECORDINGS


def test_a_prompt_is_encoded_once(
    handler: AceStepHandler, monkeypatch: pytest.MonkeyPatch, song: torch.Tensor
) -> None:
    calls: list[int] = []
    encode = PromptEncoder._encode

    def count(self: PromptEncoder, *inputs: Any) -> Any:
        calls.append(1)
        return encode(self, *inputs)

    monkeypatch.setattr(PromptEncoder, "_encode", count)
    request = Request("a harp nobody heard before", (1,), duration=0.6, steps=1)
    first = handler.generate(request).tensors["encoder_hidden_states"]
    again = handler.generate(dataclasses.replace(request, seeds=(2,)))
    assert len(calls) == 1
    assert torch.equal(first, again.tensors["encoder_hidden_states"])
    # Another language, or a timbre to follow, is another condition.
    handler.generate(dataclasses.replace(request, language="en"))
    heard = handler.generate(dataclasses.replace(request, reference_audio=song))
    assert len(calls) == 3
    assert not torch.equal(heard.tensors["encoder_hidden_states"], first)
