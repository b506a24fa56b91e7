"""Training material of the built-in checkpoint: sound to encode, and prompts beside latents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from acestep.demo.captions import INSTRUCTIONS, describe
from acestep.demo.music import FRAME_RATE, Song, compose
from acestep.demo.synth import SAMPLE_RATE, Voices
from acestep.device import DevicePolicy

HOP = SAMPLE_RATE // FRAME_RATE
"""Samples of one latent frame; 25 frames are a second."""

_AT_ONCE = 64
_EVERY = 8


def songs(count: int, seconds: float, seed: int) -> list[Song]:
    """New pieces in the keys that training may use."""
    random = np.random.default_rng(seed)
    return [compose(random, seconds) for _ in range(count)]


def sound(pieces: list[Song], voices: Voices) -> Iterator[torch.Tensor]:
    """The pieces' audio, `[up to 64, 2, samples]` at a time, on the voices' device."""
    for first in range(0, len(pieces), _AT_ONCE):
        yield voices.render(pieces[first : first + _AT_ONCE])


def latents_of(pieces: list[Song], voices: Voices, vae: Any, policy: DevicePolicy) -> torch.Tensor:
    """Mean latents of pieces of one length, `[pieces, frames, channels]`, half precision."""
    parts = []
    with torch.no_grad(), policy.autocast("vae"), policy.fixed_shapes():
        for audio in sound(pieces, voices):
            # Smaller groups where pieces are long: the encoder's first layers are wide.
            size = max(1, int(_AT_ONCE * 10.24 * SAMPLE_RATE / audio.shape[-1]))
            for group in torch.split(audio, size):
                mean = vae.encode(group).latent_dist.mean
                parts.append(mean.transpose(1, 2).to(torch.float16))
    return torch.cat(parts)


@dataclass(frozen=True)
class Drawn:
    """A batch to train on.

    Attributes:
        latents: `[batch, frames, channels]`, float32.
        tokens: `[batch, tokens]`, all of one length.
        task: what the prompts' instruction asks for.
    """

    latents: torch.Tensor
    tokens: torch.Tensor
    task: str


class Material:
    """Pieces as latents, with several prompts each, drawn so that no prompt needs padding.

    Args:
        pieces: all of one length.
        latents: `[pieces, frames, channels]`.
        tokenizer: of the text encoder.
        lengths: seconds from the start that pieces are cut to.
        prompts: descriptions made of each piece for each length.
        seed: of the words.
        often: tasks with so many descriptions; the others have one of each piece.
    """

    def __init__(
        self,
        pieces: list[Song],
        latents: torch.Tensor,
        tokenizer: Any,
        lengths: tuple[float, ...],
        prompts: int,
        seed: int,
        often: tuple[str, ...] = ("text2music",),
    ) -> None:
        self._latents = latents
        self._groups: dict[tuple[str, float], list[tuple[torch.Tensor, torch.Tensor]]] = {}
        random = np.random.default_rng(seed)
        for task in INSTRUCTIONS:
            for length in lengths:
                # Of tasks that are a small part of training one prompt is enough.
                times = prompts if task in often else 1
                texts, owners = [], []
                for number, piece in enumerate(pieces):
                    for _ in range(times):
                        texts.append(describe(piece, random).text(length, task))
                        owners.append(number)
                self._groups[task, length] = _by_length(tokenizer, texts, owners, latents.device)

    def draw(self, random: np.random.Generator, task: str, seconds: float, batch: int) -> Drawn:
        """A batch of prompts of one length, with the pieces they describe."""
        groups = self._groups[task, seconds]
        sizes = np.array([len(owners) for _, owners in groups], dtype=np.float64)
        tokens, owners = groups[int(random.choice(len(groups), p=sizes / sizes.sum()))]
        chosen = torch.as_tensor(random.integers(len(owners), size=batch), device=tokens.device)
        frames = round(seconds * FRAME_RATE)
        return Drawn(self._latents[owners[chosen], :frames].float(), tokens[chosen], task)


def _by_length(
    tokenizer: Any, texts: list[str], owners: list[int], device: torch.device
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids `[texts, length]` and the piece of each, a pair for each length that is common.

    Only lengths that leave one remainder, the commonest, are kept: every shape of a training
    step is recorded by itself (`steps.py`), and `_EVERY` times fewer say as much.
    """
    ids = tokenizer(texts)["input_ids"]
    kept = Counter(len(line) % _EVERY for line in ids).most_common(1)[0][0]
    groups: dict[int, tuple[list[list[int]], list[int]]] = {}
    for line, owner in zip(ids, owners, strict=True):
        if len(line) % _EVERY != kept:
            continue
        lines, whose = groups.setdefault(len(line), ([], []))
        lines.append(line)
        whose.append(owner)
    # A rare length would be drawn with few pieces; its texts are left out.
    enough = min(32, len(texts) // 50)
    return [
        (torch.tensor(lines, device=device), torch.tensor(whose, device=device))
        for lines, whose in groups.values()
        if len(lines) >= max(1, enough)
    ]
