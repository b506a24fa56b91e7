"""Decoding by kernels of our own: as `decoding.Decoding`, with a token in few launches.

Sequences are not padded to one length: each has its own places in the cache, from the first
on. So what an item gets does not depend on the rest of its batch, not even in its last bit.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
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

WIDE = 1024
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
            weights, cache, WIDE, policy, used=WIDE, alone=False, tiles=language_step.READING_TILES
        )
        self._step.make_room(width)
        self._wide.make_room(0)
        self._choice = Choice(_drawing(plan, width, first), slots, device)
        self.chosen, self.made = self._choice.chosen, self._choice.made
        self._mask_buffer = policy.host_buffer(*self._choice.masks.shape, dtype=torch.int32)
        self._cache, self._lengths = cache, [0] * rows
        self._step.sequences[:rows] = torch.arange(rows, dtype=torch.int32, device=device)
        self._capture()

    def start(self, prompts: Sequence[Prompt], seeds: Sequence[int], made: int = 0) -> None:
        """Read the prompts: afterwards the first tokens can be chosen.

        Args:
            prompts: one for each item of the batch.
            seeds: likewise.
            made: tokens of the text that the prompts hold already, when one goes on.
        """
        rows = rows_of(prompts, self.plan.sampling)
        self._lengths = [0] * len(rows)
        self._choice.seeds.copy_(torch.tensor(fold(seeds)))
        self._choice.steps.fill_(made)
        # Songs of one request have one prompt, which is read once.
        told: dict[tuple[int, ...], int] = {}
        origins = [told.setdefault(tuple(row), number) for number, row in enumerate(rows)]
        self._read({number: rows[number] for number in told.values()})
        for number, origin in enumerate(origins):
            if number != origin:
                self._repeat(origin, number)
        self._score()

    def feed(self, tokens: Sequence[Sequence[int]], made: int) -> None:
        """Go on with tokens that are given, equally many for each item; see `Decoding.feed`."""
        self._choice.steps.fill_(made)
        rows = [*tokens, *tokens] if self.plan.sampling.guided else tokens
        self._read(dict(enumerate(rows)))
        self._score()

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

        def advance(layers: int | None = None) -> None:
            step(layers)
            step.head(head, choice.logits)

        def both(layers: int | None = None) -> None:
            choose()
            advance(layers)

        def one_layer() -> None:
            # What takes longest to compile comes first.
            self._wide(1)
            both(1)

        if self._policy.records:
            with compiling_together():
                one_layer()
            # A kernel is loaded when it is first launched, which is nothing to be recorded.
            one_layer()
        pool = self._policy.recording_pool()
        if self.plan.masked:
            self._choose_graph = self._policy.captured(choose, pool, ours=True)
            self._advance_graph = self._policy.captured(advance, pool, ours=True)
        else:
            self._both_graph = self._policy.captured(both, pool, ours=True)
        self._wide_graph: Callable[[], None] = self._policy.captured(self._wide, pool, ours=True)

    def _read(self, rows: Mapping[int, Sequence[int]]) -> None:
        """Append tokens to sequences, and leave what follows the last ones where a step would."""
        placed, ends = self._places(rows)
        wide, step = self._wide, self._step
        last = list(itertools.accumulate(len(row) for row in rows.values()))
        for start in range(0, placed.shape[1], WIDE):
            wide.placed.copy_(placed[:, start : start + WIDE])
            self._wide_graph()
            # Rows that end in this pass. What they are is there already: nothing is waited for.
            first, stop = (bisect_right(last, place) for place in (start, start + WIDE))
            source, target = ends[:, first:stop]
            step.ready.index_copy_(0, target, wide.ready[source - start])
            step.powers.index_copy_(1, target, wide.powers[:, source - start])
        for sequence, row in rows.items():
            self._lengths[sequence] += len(row)

    def _places(self, rows: Mapping[int, Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens to be read with their places and sequences, for whole passes; and which of them
        end a row, and of which sequence."""
        tokens, places, sequences, ends, count = [], [], [], [], 0
        for sequence, row in rows.items():
            begin, count = self._lengths[sequence], count + len(row)
            tokens.append(torch.tensor(row, dtype=torch.int32))
            places.append(torch.arange(begin, begin + len(row), dtype=torch.int32))
            sequences.append(torch.full((len(row),), sequence, dtype=torch.int32))
            ends.append((count - 1, sequence))
        placed = torch.stack([torch.cat(tokens), torch.cat(places), torch.cat(sequences)])
        whole = torch.full((3, count + -count % WIDE), -1, dtype=torch.int32)
        whole[:, :count] = placed
        # Unused slots have no place, but must have a token that there is.
        whole[0, count:] = 0
        device = self._policy.device
        return whole.to(device), torch.tensor(ends).T.to(device)

    def _repeat(self, origin: int, number: int) -> None:
        """Let a sequence be what another one is."""
        length, step = self._lengths[origin], self._step
        self._cache.repeat(origin, number, length)
        step.ready[number].copy_(step.ready[origin])
        step.powers[:, number].copy_(step.powers[:, origin])
        self._lengths[number] = length

    def _score(self) -> None:
        """The scores after the last tokens that were read."""
        places = torch.tensor(self._lengths, dtype=torch.int32) - 1
        self._step.positions[: len(places)] = places.to(self._policy.device)
        self._step.head(self._head, self._choice.logits)


def _drawing(plan: Plan, width: int, first_id: int) -> Drawing:
    sampling: Sampling = plan.sampling
    top_p = 1.0 if sampling.top_p is None else sampling.top_p
    steps = 0 if plan.masked else plan.steps
    return Drawing(
        plan.batch, width, steps, first_id, sampling.guidance, sampling.temperature, top_p
    )


def _rows(plan: Plan) -> int:
    return plan.batch * (2 if plan.sampling.guided else 1)
