"""An engine in NumPy whose model is a few sums: proof that what lies above needs no torch there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from acestep.engines.protocol import Report, Traits

WIDTH, CHANNELS, FRAME = 6, 4, 1920


class NumpyEngine:
    """Implements `acestep.engines.protocol.Engine` with arrays of NumPy.

    The "transformer" pulls the state towards the mean of condition and context; the "VAE" repeats
    a frame's channels over its samples.
    """

    name = "numpy"
    xp = np

    def __init__(self, tokenizer: Any, is_turbo: bool = True) -> None:
        self.tokenizer = tokenizer
        self.traits = Traits(
            is_turbo=is_turbo,
            version="",
            sample_rate=48000,
            frame_samples=FRAME,
            channels=CHANNELS,
            condition_width=WIDTH,
            context_width=2 * CHANNELS,
            code_frames=5,
            codes=16,
        )
        self.calls: list[str] = []
        self.closed = False

    @contextmanager
    def working(self) -> Iterator[None]:
        self.calls.append("working")
        yield

    def array(self, host: torch.Tensor) -> np.ndarray:
        return host.numpy().astype(np.float32)

    def host(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(array, dtype=np.float32, order="C"))

    def precise(self, array: np.ndarray) -> np.ndarray:
        return array.astype(np.float32)

    def advance(self, state: np.ndarray, velocity: np.ndarray, by: float) -> np.ndarray:
        return state + np.float32(by) * velocity

    def encode_words(
        self, text: Sequence[int], lyrics: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        def states(ids: Sequence[int]) -> np.ndarray:
            angles = np.outer(np.asarray(ids), np.arange(1, WIDTH + 1))
            return np.sin(angles)[None].astype(np.float32)

        return states(lyrics), states(text)

    def encode_timbre(self, latents: torch.Tensor | None) -> np.ndarray:
        heard = self.silence(9) if latents is None else latents
        return np.full((1, 1, WIDTH), float(heard.mean()), np.float32)

    def unconditional(self, encoded: np.ndarray) -> np.ndarray:
        return np.zeros_like(encoded)

    def velocity(
        self, encoded: np.ndarray, context: torch.Tensor, times: Sequence[float]
    ) -> Callable[[np.ndarray, int], np.ndarray]:
        source = self.array(context)[..., :CHANNELS]
        wish = encoded.mean(axis=(1, 2), keepdims=True)
        return lambda state, step: (state - wish - 0.5 * source) / np.float32(times[step])

    def silence(self, frames: int) -> torch.Tensor:
        return torch.linspace(-0.1, 0.1, CHANNELS).expand(frames, -1)

    def encode(self, audio: torch.Tensor) -> torch.Tensor:
        frames = audio.shape[-1] // FRAME
        levels = audio[:, : frames * FRAME].reshape(2, frames, FRAME).mean(dim=2)
        return levels.T.repeat(1, CHANNELS // 2)

    def decode(
        self, latents: np.ndarray, samples: int, report: Report | None = None
    ) -> torch.Tensor:
        if report is not None:
            report(1.0)
        ripple = np.cos(np.arange(FRAME) / 20)
        waves = latents[:, :, :2, None] * ripple
        audio = waves.transpose(0, 2, 1, 3).reshape(len(latents), 2, -1)
        return self.host(audio[..., :samples])

    def codes_of(self, latents: torch.Tensor) -> list[int]:
        return [int(abs(float(part.sum())) * 10) % 16 for part in latents.split(5)]

    def latents_of(self, codes: Sequence[int]) -> torch.Tensor:
        levels = torch.tensor([code / 16 for code in codes]).repeat_interleave(5)
        return levels[:, None].repeat(1, CHANNELS)

    def cross_attention(
        self,
        inputs: Mapping[str, torch.Tensor],
        heads: Mapping[int, Sequence[int]],
        tokens: slice,
    ) -> torch.Tensor:
        count, frames = tokens.stop - tokens.start, inputs["hidden_states"].shape[1] // 2
        number = sum(len(members) for members in heads.values())
        drawn = np.random.default_rng(0).random((1, number, count, frames))
        return self.host(drawn / drawn.sum(axis=2, keepdims=True))

    def leave(self) -> None:
        self.calls.append("leave")

    def after_step(self) -> None:
        self.calls.append("after_step")

    def close(self) -> None:
        self.closed = True
