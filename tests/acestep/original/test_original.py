"""The same music as the original: its own cases, number for number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inputs import arguments_of

from acestep.device import resolve
from acestep.engines.recent import Recent
from acestep.handler import AceStepHandler

HERE = Path(__file__).parent

CASES = sorted((HERE / "cases").glob("*/*.json"))
BOUNDS = {"encoder_hidden_states": 1e-5, "context_latents": 1e-5, "pred_latents": 5e-5}
"""Of what other people's kernels, on another machine, rounded in float32."""
ELSEWHERE = 2e-4
"""The same for latents on an accelerator."""


@lru_cache
def original(kind: str) -> AceStepHandler:
    """A handler with one of the original's checkpoints, in float32 where `auto` puts it."""
    handler = AceStepHandler()
    path = HERE / "checkpoints" / f"acestep-v15-{kind}"
    message, ok = handler.initialize_service(None, str(path), "auto", dtype="float32")
    assert ok, message
    return handler


def made(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    result = original(case["kind"]).generate_music(**arguments_of(case))
    assert result["success"], result["error"]
    outputs: dict[str, torch.Tensor] = result["extra_outputs"]
    return outputs


@contextmanager
def heard(handler: AceStepHandler) -> Iterator[list[tuple[list[int], list[int]]]]:
    """The tokens of prompt and lyrics that reach the text encoder, as they do."""
    engine, maker = handler.engine, handler.maker
    assert engine is not None
    assert maker is not None
    seen: list[tuple[list[int], list[int]]] = []
    encode = engine.encode_words

    def noted(text: Any, lyrics: Any) -> Any:
        seen.append((list(text), list(lyrics)))
        return encode(text, lyrics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "encode_words", noted)
        # What an earlier case encoded is encoded again.
        patch.setattr(maker.conditioner, "kept", Recent(9))
        yield seen


@pytest.mark.parametrize("file", CASES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_the_same_music(file: Path) -> None:
    """Also the same words, token for token."""
    case = json.loads(file.read_text(encoding="utf-8"))
    handler, wanted = original(case["kind"]), np.load(file.with_suffix(".npz"))
    with heard(handler) as seen:
        found = made(case)
    assert ([seen[0][0]], [seen[0][1]]) == (case["text_ids"][:1], case["lyric_ids"][:1])
    for name, bound in BOUNDS.items():
        if resolve("auto").is_accelerator:
            bound = max(bound, ELSEWHERE)
        assert tuple(found[name].shape) == wanted[name].shape
        worst = float(np.abs(found[name].numpy() - wanted[name]).max())
        assert worst <= bound, f"{name} differs by {worst:.1e}"
