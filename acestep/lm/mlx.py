"""The engine `mlx`: mlx-lm's Qwen3 on Apple silicon, or wherever MLX computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models import qwen3

from acestep.device import DevicePolicy
from acestep.engines.mlx.place import Place
from acestep.errors import CheckpointError
from acestep.lm import models, tokens
from acestep.lm.backend import CodeJob, OnToken, TextJob
from acestep.lm.following import constraint_of, ended, extended, follow
from acestep.lm.grammar import Constraint, Vocabulary
from acestep.lm.mlx_decoding import Head, MlxDecoding
from acestep.lm.mlx_weights import load_model

# How often the host waits for the device while codes are made, and how often freed blocks are
# given back: the caches grow, and each length leaves blocks of its own behind.
_WAIT_EVERY, _FLUSH_EVERY = 25, 250


class MlxBackend:
    """A Qwen3 model of mlx-lm on one device.

    Args:
        folder: the model's folder, as it was published or as `mlx_weights.save` wrote it.
        policy: the device; the model has its dtype for `lm`, and its bits.

    Raises:
        CheckpointError: the folder does not hold a 5 Hz language model.
        RequestError: the model does not fit into the device's memory.
    """

    name = "mlx"

    def __init__(self, folder: Path, policy: DevicePolicy) -> None:
        models.check_memory(folder, policy)
        tokenizer = tokens.load_tokenizer(folder)
        audio = tokens.audio_tokens(tokenizer, folder)
        with Place(policy).working():
            model = load_model(folder, policy)
        rows = _output(model).weight.shape[0]
        if rows <= max(audio.codes):
            raise CheckpointError(
                f"{folder}: its weights have {rows} tokens, its tokenizer has more; fetch it again"
            )
        self._hold(model, tokenizer, audio, policy)

    @classmethod
    def of(
        cls, model: qwen3.Model, tokenizer: Any, audio: tokens.AudioTokens, policy: DevicePolicy
    ) -> MlxBackend:
        """The engine over a model that is no file, for benchmarks.

        Args:
            model: of mlx-lm, computed.
            tokenizer: its tokenizer.
            audio: which tokens are what.
            policy: the device.
        """
        backend = cls.__new__(cls)
        backend._hold(model, tokenizer, audio, policy)
        return backend

    def _hold(
        self, model: qwen3.Model, tokenizer: Any, audio: tokens.AudioTokens, policy: DevicePolicy
    ) -> None:
        self.model, self.tokenizer, self.tokens, self._policy = model, tokenizer, audio, policy
        self._place = Place(policy)
        rows = _output(model).weight.shape[0]
        self._vocabulary = Vocabulary(tokenizer, audio.text or rows)

    def text(self, job: TextJob, on_token: OnToken) -> list[list[int]]:
        """See `Backend`."""
        constraint = constraint_of(self._vocabulary, self.tokens, job)
        texts: list[list[int]] = [[] for _ in job.prompts]
        with self._running():
            self._write(job, constraint, texts, on_token)
        return ended(job, constraint, texts)

    def _write(
        self, job: TextJob, constraint: Constraint, texts: list[list[int]], on_token: OnToken
    ) -> None:
        # What the grammar forces is read with the prompt, not written token by token.
        follow(constraint, texts, [], job.limit)
        finished = constraint.finished
        if finished:
            return
        width = self._vocabulary.size
        decoding = MlxDecoding(
            self.model.model, self._head(slice(0, width)), width, job.sampling,
            [extended(p, text) for p, text in zip(job.prompts, texts, strict=True)],
            job.seeds, made=len(texts[0]), counted=True,
        )  # fmt: skip
        while not finished and len(texts[0]) < job.limit:
            # The host works on the mask while the device works on the scores.
            choice = decoding.choose(constraint.masks().numpy())
            chosen = [[token] for token in choice.tolist()]
            fed = follow(constraint, texts, chosen, job.limit - len(texts[0]))
            on_token(len(texts[0]), job.limit)
            finished = constraint.finished
            if not finished:
                decoding.read(fed, len(texts[0]))

    def codes(self, job: CodeJob, on_token: OnToken) -> list[list[int]]:
        """See `Backend`."""
        ids, most = self.tokens.codes, max(job.counts)
        rows: Any = slice(ids[0], ids[-1] + 1) if self.tokens.is_run else mx.array(ids)
        with self._running():
            numbers = None if self.tokens.is_run else mx.array(ids)
            decoding = MlxDecoding(
                self.model.model, self._head(rows), len(ids), job.sampling, job.prompts, job.seeds
            )
            made = []
            for step in range(1, most + 1):
                made.append(decoding.choose())
                mx.async_eval(made[-1])
                if step < most:
                    column = made[-1]
                    token = column + ids[0] if numbers is None else numbers[column]
                    decoding.advance(column, token)
                if step % _WAIT_EVERY == 0 or step == most:
                    mx.eval(made)
                    on_token(step, most)
                if step % _FLUSH_EVERY == 0:
                    self._policy.flush()
            table: Any = mx.stack(made, axis=1).tolist()
        return [row[:count] for row, count in zip(table, job.counts, strict=True)]

    def close(self) -> None:
        """See `Backend`."""
        del self.model
        self._policy.flush()

    def _head(self, rows: Any) -> Head:
        """Some rows of the output matrix: exact where no other token may follow, and most of
        the work of the smaller models saved."""
        layer = _output(self.model)
        weight = layer.weight[rows]
        if (scales := getattr(layer, "scales", None)) is None:
            return lambda hidden: hidden @ weight.T
        scales, biases = scales[rows], layer.biases[rows]

        def scores(hidden: Any) -> Any:
            return mx.quantized_matmul(
                hidden, weight, scales, biases,
                transpose=True, group_size=layer.group_size, bits=layer.bits,
            )  # fmt: skip

        return scores

    @contextmanager
    def _running(self) -> Iterator[None]:
        """While it lasts MLX computes on the policy's device; what a generation held is then
        given back."""
        try:
            with self._place.working():
                yield
        finally:
            self._policy.flush()


def _output(model: qwen3.Model) -> Any:
    """The layer that gives the scores: the embedding, where the two are one."""
    return model.model.embed_tokens if model.args.tie_word_embeddings else model.lm_head
