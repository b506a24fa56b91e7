"""Fixtures for training: a folder of songs, clips, and a model small enough to train often."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from acestep.song import audio_files
from acestep.training.data import Clip


def tone(seconds: float, pitch: float) -> torch.Tensor:
    """A stereo sine `[2, samples]` at 48 kHz."""
    wave = 0.3 * torch.sin(2 * torch.pi * pitch * torch.arange(int(seconds * 48000)) / 48000)
    return torch.stack([wave, wave])


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """A folder with three songs: two captions as text, one description as JSON."""
    folder = tmp_path / "songs"
    folder.mkdir()
    for number, name in enumerate(("a", "b", "c")):
        audio_files.write(folder / f"{name}.wav", tone(1.0 + 0.4 * number, 220.0 * (number + 1)))
    (folder / "a.txt").write_text("a low hum")
    (folder / "b.txt").write_text("a hum")
    (folder / "c.json").write_text(json.dumps({"caption": "a high hum", "bpm": 90}))
    return folder


@pytest.fixture
def clips() -> list[Clip]:
    """Five clips of random latents and conditions of two lengths."""
    generator = torch.Generator().manual_seed(5)

    def clip(tokens: int) -> Clip:
        return Clip(
            1.5 + 0.3 * torch.randn(1, 12, 4, generator=generator),
            torch.randn(1, tokens, 8, generator=generator),
            torch.zeros(1, 1, 4),
            25.0,
        )

    return [clip(3 + number % 2) for number in range(5)]


class Velocity(torch.nn.Module):
    """A velocity model of two layers that looks at everything it is given."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.inner = torch.nn.Linear(4 + 8 + 8 + 1, 16)
            self.outer = torch.nn.Linear(16, 4)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        context_latents: torch.Tensor,
        **_: object,
    ) -> tuple[torch.Tensor]:
        """The velocity, in a tuple as diffusers returns it."""
        told = encoder_hidden_states.mean(1, keepdim=True).expand(-1, hidden_states.shape[1], -1)
        times = timestep[:, None, None].expand(-1, hidden_states.shape[1], 1)
        seen = torch.cat([hidden_states, context_latents, told, times], dim=-1)
        return (self.outer(torch.tanh(self.inner(seen))),)


@pytest.fixture
def model() -> Velocity:
    """A fresh `Velocity`."""
    return Velocity()
