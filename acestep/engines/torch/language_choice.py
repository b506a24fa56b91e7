"""The choice of the next token by kernels of our own: its buffers and launches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from acestep.engines.torch.language_step import Pass, kernels
from acestep.engines.torch.launching import launch

_SCORE_WARPS, _PICK_WARPS = 8, 32
_PICK_BLOCK = 16384
_WORD_BITS = 32


@dataclass(frozen=True)
class Drawing:
    """How tokens are drawn.

    Attributes:
        batch: items; with guidance their unconditional rows follow.
        width: scores of a row.
        steps: most tokens that are kept in `Choice.made`; 0 where masks tell what may follow.
        first_id: token of the first score.
        guidance: scale; 1 is none.
        temperature: 0 takes the best.
        top_p: probability that counts; 1 is all.
    """

    batch: int
    width: int
    steps: int
    first_id: int
    guidance: float
    temperature: float
    top_p: float


class Choice:
    """Draws a token for each item from the scores of a pass, and hands it to that pass.

    Attributes:
        logits: float32 `[slots, width]`, to be filled by the pass.
        masks: int32 `[batch, words]`, a bit for each token that may follow.
        seeds: int64 `[batch]`, values of 32 bits.
        steps: int32 `[batch]`, the number of the next token.
        chosen: int64 `[batch]`, scores chosen last.
        made: int64 `[batch, steps]`, all of them.
    """

    def __init__(self, drawing: Drawing, slots: int, device: torch.device) -> None:
        self._drawing = drawing
        batch, width = drawing.batch, drawing.width
        blocks = -(-width // kernels()[1].STRETCH)

        def numbers(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.logits = numbers(slots, width, dtype=torch.float32)
        self.masks = numbers(batch, -(-width // _WORD_BITS), dtype=torch.int32).fill_(-1)
        self.seeds, self.steps = numbers(batch), numbers(batch, dtype=torch.int32)
        self.chosen, self.made = numbers(batch), numbers(batch, max(drawing.steps, 1))
        self._scores = numbers(batch, width, dtype=torch.float32)
        self._tops = numbers(batch, blocks, dtype=torch.float32)
        self._masses, self._bests = torch.zeros_like(self._tops), torch.zeros_like(self._tops)
        self._places = numbers(batch, blocks, dtype=torch.int32)

    def __call__(self, slots: Pass) -> None:
        """Draw: afterwards the pass holds the tokens, each at the next place of its sequence."""
        drawing, choice = self._drawing, kernels()[1]
        guided, greedy = drawing.guidance > 1, drawing.temperature == 0
        blocks = self._tops.shape[1]
        ahead: dict[str, Any] = {"launch_pdl": True} if slots.ahead else {}
        launch(
            choice.score, (drawing.batch, blocks),
            self.logits, self.masks, self.masks.shape[1], self.seeds, self.steps, self._scores,
            self._tops, self._masses, self._bests, self._places, drawing.width, drawing.batch,
            float(drawing.guidance), float(drawing.temperature),
            GUIDED=guided, MASKED=not drawing.steps, GREEDY=greedy, BLOCK=choice.STRETCH,
            AHEAD=slots.ahead, num_warps=_SCORE_WARPS, **ahead,
        )  # fmt: skip
        launch(
            choice.pick, (drawing.batch,),
            self._scores, self._tops, self._masses, self._bests, self._places, self.seeds,
            self.steps, slots.positions, self.chosen, self.made, slots.ids, drawing.width,
            drawing.batch, blocks, self.made.shape[1], drawing.first_id, float(drawing.top_p),
            GUIDED=guided, NUCLEUS=not greedy and drawing.top_p < 1, KEEP=bool(drawing.steps),
            BLOCKS=1 << (blocks - 1).bit_length(), BLOCK=_PICK_BLOCK, AHEAD=slots.ahead,
            num_warps=_PICK_WARPS, **ahead,
        )  # fmt: skip
