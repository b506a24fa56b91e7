"""The seam "prompts to tokens": what every engine of the language model offers.

Above it (`writer`, `planner`, `describing`) everything is written once and knows an engine by
`Backend` alone; `loading` is the one place that knows them all. Below it each engine has a file
of its own. No tensor crosses the seam, and it imports no library, so that an engine may compute
with any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from acestep.lm.prompts import Prompt
    from acestep.lm.sampling import Sampling
    from acestep.lm.tokens import AudioTokens

OnToken = Callable[[int, int], None]
"""Called with (tokens made, most tokens that there can be); may raise to stop the work."""


@dataclass(frozen=True)
class TextJob:
    """Text to be written, held to a grammar where one is given.

    Attributes:
        prompts: one for each item of the batch.
        seeds: likewise.
        grammar: see `grammar.lark`; None for free text, which holds no audio codes.
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
    """An engine with a model loaded: prompts go in as token ids, token ids come out.

    An engine is made with a model's folder and a `DevicePolicy`. It computes on that device
    and in the policy's dtype for `lm`, or refuses in its constructor (`CheckpointError`: the
    folder does not hold a 5 Hz language model; `RequestError`: it does not fit into memory).

    - Guidance: where `sampling.guided`, every prompt has its unconditional counterpart. The
      scores of both are mixed as `unconditional + scale * (conditional - unconditional)`,
      before penalties and temperature, and both go on with the token that was chosen.
    - Seeds: each item of a batch has its own, and the rest of the batch does not matter to it.
      Noise of `sampling.gumbel` is alike on every device, so engines that draw it agree.
    - Whatever `on_token` raises passes through, and the engine can be used again afterwards.
    - Callers make one call at a time.

    Attributes:
        name: which engine, one of `device.BACKEND_CHOICES`.
        tokenizer: the model's own, of transformers.
        tokens: the ids in it that matter to the planner.
    """

    name: str
    tokenizer: Any
    tokens: AudioTokens

    def text(self, job: TextJob, on_token: OnToken) -> list[list[int]]:
        """Token ids of each item's text, its end token included.

        Raises:
            GenerationError: the text cannot be brought to an end, or memory ran out.
        """
        ...

    def codes(self, job: CodeJob, on_token: OnToken) -> list[list[int]]:
        """The audio codes of each item, as numbers of the codebook.

        Raises:
            GenerationError: memory ran out.
        """
        ...

    def close(self) -> None:
        """Give back the memory; the engine is of no use afterwards."""
        ...
