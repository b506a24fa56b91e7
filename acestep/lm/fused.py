"""Decoding by kernels of our own: as `decoding.Decoding`, with a token in few launches.

Sequences are not padded to one length: each has its own places in the cache, from the first
on. So what an item gets does not depend on the rest of its batch, not even in its last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from acestep.device import DevicePolicy
from acestep.engines.torch import language_step
from acestep.engines.torch.language_choice import Choice, Drawing
from acestep.engines.torch.language_step import Cache, LanguageWeights, Pass, fits
from acestep.engines.torch.launching import compiling_together
from acestep.lm.decoding import Plan
from acestep.lm.following import rows_of
from acestep.lm.prompts import Prompt
from acestep.lm.sampling import Sampling, fold
from acestep.lm.tokens import AudioTokens

WIDE = 64
"""Tokens of prompts, or such that a grammar forces, that are read in one pass."""

_FEWEST, _MOST = 16, 64


def serves(model: Any, tokens: AudioTokens, plan: Plan, policy: DevicePolicy) -> bool:
    """Whether the kernels run here, and compute this model and what the plan asks for."""
    sampling = plan.sampling
    if not policy.has_language_kernels(policy.dtype_of("lm")):
        return False
    if sampling.top_k or sampling.repetition_penalty != 1 or _rows(plan) > _MOST:
        return False
    return (plan.masked or tokens.is_run) and fits(model)


class FusedDecoding:
    """The buffers of a plan, and on CUDA its graphs; see `decoding.Decoding`.

    Attributes:
        chosen: int64 `[batch]`, the tokens chosen last (audio codes when not masked).
        made: int64 `[batch, steps]`, all audio codes.
    """

    def __init__(
        self, weights: LanguageWeights, tokens: AudioTokens, plan: Plan, policy: DevicePolicy
    ) -> None:
        self.plan, self._policy = plan, policy
        device, rows = policy.device, _rows(plan)
        table = weights.model.get_output_embeddings().weight
        first = 0 if plan.masked else tokens.codes[0]
        self._head = table[: tokens.text] if plan.masked else table[first : tokens.codes[-1] + 1]
        width = self._head.shape[0]
        slots = max(_FEWEST, 1 << (rows - 1).bit_length())
        cache = Cache(weights, rows, plan.length)
        whole = language_step.WHOLE_TILES if weights.is_whole else language_step.TILES
        tiles = whole if slots == _FEWEST else language_step.WIDE_TILES
        self._step = Pass(weights, cache, slots, policy, used=rows, alone=True, tiles=tiles)
        self._wide = Pass(
            weights, cache, WIDE, policy, used=WIDE, alone=False, tiles=language_step.WIDE_TILES
        )
        self._step.make_room(width)
        self._wide.make_room(0)
        self._choice = Choice(_drawing(plan, width, first), slots, device)
        self.chosen, self.made = self._choice.chosen, self._choice.made
        self._mask_buffer = policy.host_buffer(*self._choice.masks.shape, dtype=torch.int32)
        self._placed = policy.host_buffer(3, WIDE, dtype=torch.int32)
        self._lengths = [0] * rows
        self._step.sequences[:rows] = torch.arange(rows, dtype=torch.int32, device=device)
        self._capture()

    def start(self, prompts: Sequence[Prompt], seeds: Sequence[int], made: int = 0) -> None:
        """Read the prompts: afterwards the first tokens can be chosen.

        Args:
            prompts: one for each item of the batch.
            seeds: likewise.
            made: tokens of the text that the prompts hold already, when one goes on.
        """
        self._lengths = [0] * len(self._lengths)
        self._choice.seeds.copy_(torch.tensor(fold(seeds)))
        self._choice.steps.fill_(made)
        self._read(rows_of(prompts, self.plan.sampling))

    def feed(self, tokens: Sequence[Sequence[int]], made: int) -> None:
        """Go on with tokens that are given, equally many for each item; see `Decoding.feed`."""
        self._choice.steps.fill_(made)
        self._read([*tokens, *tokens] if self.plan.sampling.guided else tokens)

    def choose(self, masks: torch.Tensor) -> None:
        """Choose a token for each item among those that the masks allow."""
        self._mask_buffer.copy_(masks)
        self._choice.masks.copy_(self._mask_buffer, non_blocking=True)
        self._choose_graph()

    def advance(self) -> None:
        """Let the model read the tokens chosen; returns before the device has finished."""
        self._advance_graph()
        self._lengths = [length + 1 for length in self._lengths]

    def choose_and_advance(self) -> None:
        """Both, where no mask is needed."""
        self._both_graph()
        self._lengths = [length + 1 for length in self._lengths]

    def _capture(self) -> None:
        """Record the steps before any prompt is read, since that runs them."""
        step, choice, head = self._step, self._choice, self._head

        def choose() -> None:
            choice(step)

        def advance() -> None:
            step()
            step.head(head, choice.logits)

        def both() -> None:
            choose()
            advance()

        if self._policy.records:
            with compiling_together():
                both()
                self._wide()
        pool = self._policy.recording_pool()
        if self.plan.masked:
            self._choose_graph = self._policy.captured(choose, pool)
            self._advance_graph = self._policy.captured(advance, pool)
        else:
            self._both_graph = self._policy.captured(both, pool)
        self._wide_graph: Callable[[], None] = self._policy.captured(self._wide, pool)

    def _read(self, rows: Sequence[Sequence[int]]) -> None:
        """Append tokens to every sequence, and leave the scores after the last ones."""
        entries = [
            (token, self._lengths[sequence] + number, sequence, number + 1 == len(row))
            for sequence, row in enumerate(rows)
            for number, token in enumerate(row)
        ]
        for start in range(0, len(entries), WIDE):
            self._read_some(entries[start : start + WIDE])
        self._lengths = [n + len(row) for n, row in zip(self._lengths, rows, strict=True)]
        places = torch.tensor(self._lengths, dtype=torch.int32) - 1
        self._step.positions[: len(rows)] = places.to(self._policy.device)
        self._step.head(self._head, self._choice.logits)

    def _read_some(self, entries: Sequence[tuple[int, int, int, bool]]) -> None:
        wide, step, count = self._wide, self._step, len(entries)
        # The device may still read the buffer for the pass before.
        self._policy.synchronize()
        self._placed.zero_()[1].fill_(-1)
        self._placed[:, :count] = torch.tensor([entry[:3] for entry in entries]).T
        wide.placed.copy_(self._placed, non_blocking=True)
        self._wide_graph()
        ends = [(slot, entry[2]) for slot, entry in enumerate(entries) if entry[3]]
        if ends:
            device = self._policy.device
            source, target = torch.tensor(ends).T.to(device)
            step.ready.index_copy_(0, target, wide.ready[source])
            step.powers.index_copy_(1, target, wide.powers[:, source])


def _drawing(plan: Plan, width: int, first_id: int) -> Drawing:
    sampling: Sampling = plan.sampling
    top_p = 1.0 if sampling.top_p is None else sampling.top_p
    steps = 0 if plan.masked else plan.steps
    return Drawing(
        plan.batch, width, steps, first_id, sampling.guidance, sampling.temperature, top_p
    )


def _rows(plan: Plan) -> int:
    return plan.batch * (2 if plan.sampling.guided else 1)
