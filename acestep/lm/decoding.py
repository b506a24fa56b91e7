"""One shape of decoding: static buffers, and a step that works in place on them.

Conditional and unconditional prompts are rows of one batch. Where only audio codes may
follow, or only text, only their rows of the output matrix are computed: that is exact,
since the other tokens are forbidden, and saves most of the largest matrix. On CUDA the step is captured
in a graph, so that a token costs one launch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional
from transformers import AttentionInterface, StaticCache

from acestep.device import DevicePolicy
from acestep.engines.recent import rounded_up
from acestep.lm.following import rows_of
from acestep.lm.prompts import Prompt
from acestep.lm.sampling import Sampling, fold, gumbel
from acestep.lm.tokens import AudioTokens

ATTENTION = "acestep_grouped"
# Lengths are rounded up to this, so that songs of similar length share their buffers.
_BUCKET = 256
_WORD_BITS = 32


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention on grouped heads without repeating the cache for every head of a group.

    Args:
        query: `[rows, heads, length, width]`.
        key, value: `[rows, kv_heads, cached, width]`.
        attention_mask: bool `[rows, 1, length, cached]`.

    Returns:
        `[rows, length, heads, width]`, as transformers expects it, and no weights.
    """
    rows, heads, length, width = query.shape
    groups = heads // key.shape[1]
    folded = query.reshape(rows, key.shape[1], groups * length, width)
    mask = attention_mask.repeat(1, 1, groups, 1) if length > 1 else attention_mask
    output = functional.scaled_dot_product_attention(
        folded, key, value, attn_mask=mask, scale=scaling
    )
    return output.reshape(rows, heads, length, width).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, grouped_attention)


@dataclass(frozen=True)
class Plan:
    """What decides the buffers.

    Attributes:
        batch: items; with guidance there are twice as many rows.
        length: most positions of prompt and text together.
        steps: most tokens to make.
        masked: whether text is written, with a mask for each token; otherwise only audio
            codes may follow.
    """

    batch: int
    length: int
    steps: int
    sampling: Sampling
    masked: bool

    @classmethod
    def of(cls, prompts: Sequence[Prompt], sampling: Sampling, limit: int, *, masked: bool) -> Plan:
        """The plan for some prompts and so many tokens after them."""
        longest = max(len(ids) for ids in rows_of(prompts, sampling))
        length, steps = rounded_up(longest + limit, _BUCKET), rounded_up(limit, _BUCKET)
        return cls(len(prompts), length, steps, sampling, masked)


class Decoder(Protocol):
    """What decodes a plan; see `Decoding`."""

    chosen: torch.Tensor
    made: torch.Tensor

    def start(self, prompts: Sequence[Prompt], seeds: Sequence[int], made: int = 0) -> None:
        """Read the prompts: afterwards the first tokens can be chosen."""
        ...

    def feed(self, tokens: Sequence[Sequence[int]], made: int) -> None:
        """Go on with tokens that are given; see `Decoding.feed`."""
        ...

    def choose(self, masks: torch.Tensor) -> None:
        """Choose a token for each item among those that the masks allow."""
        ...

    def advance(self) -> None:
        """Let the model read the tokens chosen."""
        ...

    def choose_and_advance(self) -> None:
        """Both, where no mask is needed."""
        ...


class Decoding:
    """The buffers of a plan; `start` begins a generation, `choose` and `advance` go on.

    Attributes:
        chosen: int64 `[batch]`, the tokens chosen last (audio codes when not masked).
        made: int64 `[batch, steps]`, all audio codes.
    """

    def __init__(
        self,
        model: Any,
        tokens: AudioTokens,
        plan: Plan,
        policy: DevicePolicy,
        compile_model: bool = False,
    ) -> None:
        self.plan, self._policy = plan, policy
        self._body = model.get_decoder()
        model.set_attn_implementation(ATTENTION)
        weight = model.get_output_embeddings().weight
        device = policy.device
        if plan.masked:
            self._head = weight[: tokens.text]
        elif tokens.is_run:
            self._head = weight[tokens.codes[0] : tokens.codes[-1] + 1]
        else:
            self._head = weight[torch.tensor(tokens.codes, device=device)]
        self._width = self._head.shape[0]
        self._ids = None
        if not plan.masked:
            self._ids = torch.tensor(tokens.codes, device=device)
        rows = plan.batch * (2 if plan.sampling.guided else 1)
        self._cache = StaticCache(model.config, max_cache_len=plan.length)
        self._allocate(rows, device)
        self._processors = plan.sampling.processors()
        body = torch.compile(self._forward, dynamic=False) if compile_model else self._forward
        self._prepare(body, policy)

    def start(self, prompts: Sequence[Prompt], seeds: Sequence[int], made: int = 0) -> None:
        """Read the prompts: afterwards the first tokens can be chosen.

        Args:
            prompts: one for each item of the batch.
            seeds: likewise.
            made: tokens of the text that the prompts hold already, when one goes on.
        """
        rows = rows_of(prompts, self.plan.sampling)
        longest = max(len(ids) for ids in rows)
        # Prompts end together, so that one column of the cache serves all rows.
        padded = torch.tensor([[0] * (longest - len(ids)) + ids for ids in rows])
        self._first.copy_(torch.tensor([longest - len(ids) for ids in rows]))
        self._seeds.copy_(torch.tensor(fold(seeds))[:, None])
        self._cache.reset()
        self._column.fill_(longest)
        self._step.fill_(made)
        self._remember(rows[: self.plan.batch], longest)
        self._read(padded, 0)

    def feed(self, tokens: Sequence[Sequence[int]], made: int) -> None:
        """Go on with tokens that are given, read in one forward.

        Args:
            tokens: equally many for each item.
            made: tokens of the text with them.
        """
        ids = torch.tensor(tokens)
        count, begin = ids.shape[1], int(self._column)
        self._history[:, begin : begin + count] = ids.to(self._history.device)
        rows = self._tokens.shape[0] // self.plan.batch
        self._read(ids.repeat(rows, 1), begin)
        self._column.add_(count)
        self._step.fill_(made)

    def _read(self, ids: torch.Tensor, begin: int) -> None:
        """Read `[rows, length]` tokens from a column on, in one forward."""
        device = self._policy.device
        columns = torch.arange(self.plan.length, device=device)
        queries = torch.arange(begin, begin + ids.shape[1], device=device)[:, None]
        # Padding sees itself: a row that sees nothing would become NaN.
        visible = (columns >= self._first[:, None, None]) | (columns == queries)
        visible = visible & (columns <= queries)
        positions = (queries.T - self._first[:, None]).clamp(min=0)
        self._logits.copy_(self._run(ids.to(device), visible[:, None], positions))

    def choose(self, masks: torch.Tensor) -> None:
        """Choose a token for each item among those that the masks allow."""
        self._masks.copy_(masks, non_blocking=True)
        self._choose_graph()

    def advance(self) -> None:
        """Let the model read the tokens chosen; returns before the device has finished."""
        self._advance_graph()

    def choose_and_advance(self) -> None:
        """Both, where no mask is needed."""
        self._both_graph()

    def _allocate(self, rows: int, device: torch.device) -> None:
        batch, steps = self.plan.batch, self.plan.steps

        def numbers(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        self.chosen, self.made = numbers(batch), numbers(batch, steps)
        self._tokens, self._first = numbers(rows, 1), numbers(rows)
        self._column, self._step, self._seeds = numbers(1), numbers(1), numbers(batch, 1)
        self._logits = torch.zeros(rows, self._width, device=device)
        words = -(-self._width // _WORD_BITS)
        self._masks = torch.full((batch, words), -1, dtype=torch.int32, device=device)
        self._history = numbers(batch, self.plan.length)
        self._columns = torch.arange(self.plan.length, device=device)
        self._bits = torch.arange(_WORD_BITS, dtype=torch.int32, device=device)

    def _prepare(self, forward: Callable[[], None], policy: DevicePolicy) -> None:
        """Capture the steps before any prompt is read, since that runs them."""

        def both() -> None:
            self._choose()
            forward()

        if self.plan.masked:
            self._choose_graph = policy.captured(self._choose)
            self._advance_graph = policy.captured(forward)
        else:
            self._both_graph = policy.captured(both)

    def _remember(self, prompts: list[list[int]], longest: int) -> None:
        """Fill the history for the repetition penalty with the prompts, where they count.

        Places not written yet hold `width`, a column that is added for them.
        """
        self._history.fill_(self._width)
        if self.plan.masked:
            rows = [[self._width] * (longest - len(ids)) + ids for ids in prompts]
            self._history[:, :longest] = torch.tensor(rows, device=self._history.device)

    def _run(
        self, ids: torch.Tensor, visible: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        hidden = self._body(
            input_ids=ids,
            attention_mask={"full_attention": visible},
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        return functional.linear(hidden, self._head).float()

    def _forward(self) -> None:
        seen = (self._columns >= self._first[:, None]) & (self._columns <= self._column)
        positions = (self._column - self._first)[:, None]
        self._logits.copy_(self._run(self._tokens, seen[:, None, None, :], positions))
        self._column.add_(1)

    def _choose(self) -> None:
        sampling = self.plan.sampling
        scores = sampling.guide(self._history, self._logits)
        if self.plan.masked:
            bits = (self._masks[:, :, None] >> self._bits) & 1
            allowed = bits.flatten(1)[:, : self._width] == 1
            scores = scores.masked_fill(~allowed, -torch.inf)
        # One column more takes the places of the history that are not written yet.
        scores = functional.pad(scores, (0, 1), value=-torch.inf)
        scores = self._processors(self._history, scores)[:, : self._width]
        if not sampling.greedy:
            scores = scores + gumbel(self._seeds, self._step, self._width)
        choice = scores.argmax(dim=-1)
        self.chosen.copy_(choice)
        if not self.plan.masked:
            self.made.index_copy_(1, self._step, choice[:, None])
        self._history.index_copy_(1, self._column, choice[:, None])
        ids = choice if self._ids is None else self._ids[choice]
        self._tokens.copy_(ids.repeat(self._tokens.shape[0] // self.plan.batch)[:, None])
        self._step.add_(1)
