"""How a token is chosen: transformers' processors, and noise that is alike on every device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import (
    ClassifierFreeGuidanceLogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from acestep.errors import RequestError

_BITS_32 = 0xFFFFFFFF


@dataclass(frozen=True)
class Sampling:
    """Settings of one generation.

    Attributes:
        temperature: 0 always takes the most probable token.
        top_k: most tokens to choose from; 0 or None for no limit.
        top_p: probability that the tokens to choose from must reach; None or 1 for all.
        repetition_penalty: above 1 discourages tokens that occurred before.
        guidance: scale of classifier-free guidance; 1 is none.
    """

    temperature: float = 0.85
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    guidance: float = 1.0

    def checked(self) -> Sampling:
        """These settings.

        Raises:
            RequestError: one of them is out of range.
        """
        for name, value, low, high in (
            ("lm temperature", self.temperature, 0, 100),
            ("lm top_k", self.top_k or 0, 0, math.inf),
            ("lm top_p", 1 if self.top_p is None else self.top_p, 0, 1),
            ("lm repetition penalty", self.repetition_penalty, 0.01, 100),
            ("lm guidance scale", self.guidance, 1, 100),
        ):
            if not low <= value <= high:
                raise RequestError(
                    f"{name} {value:g} is out of range; expected {low:g} to {high:g}"
                )
        return self

    @property
    def guided(self) -> bool:
        """Whether an unconditional prompt runs beside the conditional one."""
        return self.guidance > 1

    @property
    def greedy(self) -> bool:
        """Whether no chance is involved."""
        return self.temperature == 0

    def guide(self, history: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """`[2 * batch, vocabulary]`, conditional half first, to `[batch, vocabulary]`."""
        if not self.guided:
            return logits
        mixed: torch.Tensor = ClassifierFreeGuidanceLogitsProcessor(self.guidance)(history, logits)
        return mixed

    def processors(self) -> LogitsProcessorList:
        """What happens to the scores between guidance and choice."""
        steps = LogitsProcessorList()
        if self.repetition_penalty != 1:
            steps.append(RepetitionPenaltyLogitsProcessor(float(self.repetition_penalty)))
        if self.greedy:
            return steps
        if self.temperature != 1:
            steps.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k:
            steps.append(TopKLogitsWarper(self.top_k))
        if self.top_p is not None and self.top_p < 1:
            steps.append(TopPLogitsWarper(self.top_p))
        return steps


def fold(seeds: Sequence[int]) -> list[int]:
    """Seeds of any size as 32-bit numbers."""
    return [(seed ^ (seed >> 32)) & _BITS_32 for seed in seeds]


def gumbel(seeds: torch.Tensor, step: torch.Tensor, width: int) -> torch.Tensor:
    """Gumbel noise `[batch, width]`, float32, that depends on seed, step and column alone.

    The bits come from integer arithmetic, which is exact, so they are the same on every
    device and in any batch; adding the noise to log-probabilities and taking the maximum
    draws from the distribution. Products stay below 2**63.

    Args:
        seeds: int64 `[batch, 1]`, 32-bit values.
        step: int64, one element: the number of the token.
        width: size of the vocabulary.
    """
    columns = torch.arange(width, device=seeds.device)
    bits = _mix(_mix(seeds + _mix(step + 1)) + columns * 0x27D4EB2F)
    # 23 bits and a half: exact in float32, and never 0 or 1.
    uniform = ((bits >> 9).float() + 0.5) / 2**23
    return -torch.log(-torch.log(uniform))


def _mix(value: torch.Tensor) -> torch.Tensor:
    """A bijection of 32-bit numbers that scatters them (a xor-multiply hash)."""
    value = value & _BITS_32
    for _ in range(2):
        value = ((value ^ (value >> 16)) * 0x45D9F3B) & _BITS_32
    return value ^ (value >> 16)
