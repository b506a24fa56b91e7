"""The engine `pt`: transformers' model, decoded without a wait between the tokens.

Where the device runs kernels of our own they compute its step (`fused`), else its modules do
(`decoding`).
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from acestep.device import DevicePolicy
from acestep.engines.recent import Recent
from acestep.engines.torch.language_step import LanguageWeights
from acestep.errors import CheckpointError, GenerationError, first_line
from acestep.gpu_config import is_short
from acestep.lm import fused, models, tokens
from acestep.lm.backend import CodeJob, OnToken, TextJob
from acestep.lm.decoding import Decoder, Decoding, Plan
from acestep.lm.following import constraint_of, ended, extended, follow
from acestep.lm.grammar import Constraint, Vocabulary
from acestep.lm.pt_weights import load_model

# How often the host waits for the device while codes are made: often enough for progress
# and cancellation, seldom enough to cost nothing.
_WAIT_EVERY = 25
_MOST_KEPT = 2
# Tokens of text that fit into the first buffers; each further stage is twice as long.
_FIRST_ROOM = 256


class PtBackend:
    """A Qwen3 model of transformers on one device.

    Args:
        folder: the model's folder.
        policy: the device; the model has its dtype for `lm`.
        offload: keep the model on the host between generations.
        compile_model: compile the decoding step on first use (about a minute), for
            processes that generate often; where kernels of our own compute it there is
            nothing to compile.

    Raises:
        CheckpointError: the folder does not hold a 5 Hz language model.
        RequestError: the model does not fit into the device's memory.
    """

    name = "pt"

    beside = False
    """Whether another thread makes music meanwhile: then this work has a stream of its own."""

    def __init__(
        self,
        folder: Path,
        policy: DevicePolicy,
        *,
        offload: bool = False,
        compile_model: bool = False,
    ) -> None:
        models.check_memory(folder, policy)
        tokenizer = tokens.load_tokenizer(folder)
        audio = tokens.audio_tokens(tokenizer, folder)
        self._offload, self._compile = offload, compile_model
        place = torch.device("cpu") if offload else policy.device
        with policy.current():
            self._hold(load_model(folder, policy, place), tokenizer, audio, policy)
        if self._rows <= max(self.tokens.codes):
            raise CheckpointError(
                f"{folder}: its weights have {self._rows} tokens, its tokenizer has more; fetch it "
                "again"
            )

    @classmethod
    def of(
        cls, model: Any, tokenizer: Any, audio: tokens.AudioTokens, policy: DevicePolicy
    ) -> PtBackend:
        """The engine over a model that is no file, for benchmarks.

        Args:
            model: of transformers, on the policy's device.
            tokenizer: its tokenizer.
            audio: which tokens are what.
            policy: the device.
        """
        backend = cls.__new__(cls)
        backend._offload = backend._compile = False
        backend._hold(model, tokenizer, audio, policy)
        return backend

    def _hold(
        self, model: Any, tokenizer: Any, audio: tokens.AudioTokens, policy: DevicePolicy
    ) -> None:
        self.model, self.tokenizer, self.tokens, self._policy = model, tokenizer, audio, policy
        self._rows = model.get_output_embeddings().weight.shape[0]
        self._vocabulary = Vocabulary(tokenizer, audio.text or self._rows)
        self._kept: Recent[Plan, Decoder] = Recent(_MOST_KEPT)
        self._weights: LanguageWeights | None = None
        # Then buffers go when they have served; the next song's are made anew.
        self.short = is_short(policy)

    def text(self, job: TextJob, on_token: OnToken) -> list[list[int]]:
        """See `Backend`."""
        constraint = constraint_of(self._vocabulary, self.tokens, job)
        texts: list[list[int]] = [[] for _ in job.prompts]
        room = _FIRST_ROOM
        with self._running(), torch.inference_mode():
            while not constraint.finished and len(texts[0]) < job.limit:
                self._write(job, constraint, texts, min(room, job.limit - len(texts[0])), on_token)
                room *= 2
        return ended(job, constraint, texts)

    def _write(
        self,
        job: TextJob,
        constraint: Constraint,
        texts: list[list[int]],
        room: int,
        on_token: OnToken,
    ) -> None:
        """Go on with the texts, in place, for so many tokens at most.

        Buffers for the longest text that a grammar allows would be read in full at every
        token; few texts come near it, so that room is made in stages.
        """
        # What the grammar forces is read with the prompt, not written token by token.
        follow(constraint, texts, [], room)
        prompts = [extended(p, text) for p, text in zip(job.prompts, texts, strict=True)]
        decoding = self._decoding(Plan.of(prompts, job.sampling, room, masked=True))
        decoding.start(prompts, job.seeds, made=len(texts[0]))
        most = min(len(texts[0]) + room, job.limit)
        finished = constraint.finished
        while not finished and len(texts[0]) < most:
            # The host works on the mask while the device works on the logits.
            decoding.choose(constraint.masks())
            chosen = [[token] for token in decoding.chosen.tolist()]
            fed = follow(constraint, texts, chosen, most - len(texts[0]))
            on_token(len(texts[0]), job.limit)
            finished = constraint.finished
            if len(fed[0]) > 1 and not finished:
                decoding.feed(fed, len(texts[0]))
            elif not finished:
                decoding.advance()

    def codes(self, job: CodeJob, on_token: OnToken) -> list[list[int]]:
        """See `Backend`."""
        most = max(job.counts)
        plan = Plan.of(job.prompts, job.sampling, most, masked=False)
        with self._running(), torch.inference_mode():
            decoding = self._decoding(plan)
            decoding.start(job.prompts, job.seeds)
            for step in range(most):
                decoding.choose_and_advance()
                if (step + 1) % _WAIT_EVERY == 0 or step + 1 == most:
                    self._policy.synchronize()
                    on_token(step + 1, most)
            made = decoding.made[:, :most].tolist()
        return [row[:count] for row, count in zip(made, job.counts, strict=True)]

    def close(self) -> None:
        """See `Backend`."""
        self._kept.clear()
        self._weights = None
        del self.model
        self._policy.flush()

    def _decoding(self, plan: Plan) -> Decoder:
        """The buffers (and on CUDA the graphs) for a plan, kept for the next one like it."""
        return self._kept.find(plan, lambda: self._new_decoding(plan))

    def _new_decoding(self, plan: Plan) -> Decoder:
        if not fused.serves(self.model, self.tokens, plan, self._policy):
            return Decoding(self.model, self.tokens, plan, self._policy, self._compile)
        if self._weights is None or not self._weights.is_current(self.model):
            self._weights = LanguageWeights(self.model)
        return fused.FusedDecoding(self._weights, self.tokens, plan, self._policy)

    def _running(self) -> _Running:
        return _Running(self)


class _Running:
    """While it lasts the model is on its device; running out of memory is one line."""

    def __init__(self, backend: PtBackend) -> None:
        self._backend, self._place = backend, ExitStack()

    def __enter__(self) -> None:
        self._place.enter_context(self._backend._policy.current())
        if self._backend.beside:
            self._place.enter_context(self._backend._policy.own_stream())
        if self._backend._offload:
            self._backend.model.to(self._backend._policy.device)

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        backend = self._backend
        if error is not None or backend._offload or backend.short:
            backend._kept.clear()
        if backend._offload:
            backend._weights = None
            backend.model.to("cpu")
        if backend._offload or backend.short:
            backend._policy.flush()
        self._place.close()
        if isinstance(error, torch.OutOfMemoryError):
            raise GenerationError(
                f"{backend._policy.name} ran out of memory in the language model "
                f"({first_line(error)}); plan a shorter song or a smaller batch"
            ) from None
