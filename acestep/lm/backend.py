"""The interface that every engine of the language model offers, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from acestep.device import BACKEND_CHOICES, DevicePolicy
from acestep.errors import RequestError
from acestep.lm.prompts import Prompt
from acestep.lm.sampling import Sampling

OnToken = Callable[[int, int], None]
"""Called with (tokens made, most tokens that there can be); may raise to stop the work."""


@dataclass(frozen=True)
class TextJob:
    """Text to be written, held to a grammar where one is given.

    Attributes:
        prompts: one for each item of the batch.
        seeds: likewise.
        grammar: see `grammar.lark`; None for free text.
        end_id: token that ends the text.
        limit: most tokens; a grammar is always followed to its end.
    """

    prompts: Sequence[Prompt]
    seeds: Sequence[int]
    sampling: Sampling
    grammar: str | None
    end_id: int
    limit: int


@dataclass(frozen=True)
class CodeJob:
    """Audio codes to be written: for each item exactly so many.

    Attributes:
        prompts, seeds: one for each item of the batch.
        counts: number of codes of each item.
    """

    prompts: Sequence[Prompt]
    seeds: Sequence[int]
    sampling: Sampling
    counts: Sequence[int]


class Backend(Protocol):
    """An engine with a model loaded."""

    name: str
    tokenizer: Any

    def text(self, job: TextJob, on_token: OnToken) -> list[list[int]]:
        """Token ids of each item's text, its end token included.

        Raises:
            GenerationError: the text cannot be brought to an end, or memory ran out.
        """
        ...

    def codes(self, job: CodeJob, on_token: OnToken) -> list[list[int]]:
        """The audio codes of each item, as numbers of the codebook."""
        ...

    def close(self) -> None:
        """Give back the memory; the engine is of no use afterwards."""
        ...


def choose(requested: str | None, policy: DevicePolicy) -> tuple[str, str | None]:
    """The engine for a device, and a line for the user where it differs from the ideal.

    Args:
        requested: one of `BACKEND_CHOICES`; None, empty or `auto` lets the device decide.
        policy: the device.

    Raises:
        RequestError: the engine is unknown, or the device or installation lacks it.
    """
    wanted = (requested or "auto").strip().lower()
    if wanted == "auto":
        missing = policy.lm_backend == "pt" and policy.prefers_vllm
        note = "vLLM is not installed: the language model uses pt" if missing else None
        return policy.lm_backend, note
    if wanted not in BACKEND_CHOICES:
        raise RequestError(f"unknown backend '{wanted}'; choose from {', '.join(BACKEND_CHOICES)}")
    if wanted != "pt" and wanted != policy.lm_backend:
        raise RequestError(
            f"the backend '{wanted}' cannot be used on {policy.name}: "
            f"{policy.lm_backend_reason}; use {policy.lm_backend}"
        )
    return wanted, None


def load(name: str, folder: Path, policy: DevicePolicy, **options: Any) -> Backend:
    """Load a model into an engine that `choose` returned.

    Args:
        options: `offload` and `compile_model`, see `pt.PtBackend`; vLLM places and compiles
            by itself and ignores them.

    Raises:
        CheckpointError: the folder does not hold a 5 Hz language model.
        RequestError: the model does not fit into the device's memory.
    """
    if name == "vllm":
        from acestep.lm.vllm import VllmBackend

        return VllmBackend(folder, policy)
    from acestep.lm.pt import PtBackend

    return PtBackend(folder, policy, **options)
