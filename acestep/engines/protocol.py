"""The seam: what an engine computes, so that everything above it is written once.

An engine turns words, audio and codes into what a song is conditioned on, conditions into
velocities, and latents into audio and back. Tasks, schedules, guidance, repainting, seeds,
batches, progress and files lie above it and know no engine by name. The other heavy part,
prompts to tokens, is the language model's; its seam is `lm.backend.Backend`.

What crosses the seam on the host is a float32 `torch.Tensor` there, or numbers. What stays on
the device is an `Array`: an array of the engine's own library, which the code above only
adds, multiplies, slices, and hands to the functions of `Engine.xp`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

Array = Any
"""An array of the engine's own library, on its device."""

Velocity = Callable[[Array, int], Array]
"""Of a state `[batch, frames, channels]` and a step's number: the velocity there."""

TIMBRE_SECONDS = 30
"""What the timbre encoder hears, of a reference or of silence where there is none."""

Report = Callable[[float], None]
"""Told the share of a piece of work that is done, 0 to 1; may raise to stop it."""


@dataclass(frozen=True)
class Traits:
    """What is fixed by the checkpoint that an engine has loaded.

    Attributes:
        is_turbo: guidance is in the weights: three tasks, and no second pass.
        version: the config's `model_version`, or nothing.
        sample_rate: of the audio, Hz.
        frame_samples: samples of audio in a latent frame.
        channels: of a latent frame.
        condition_width: of a token of the condition.
        context_width: channels of the context, source latents and mask.
        code_frames: latent frames that one audio code stands for; 0 without an audio tokenizer.
        codes: how many different audio codes there are.
    """

    is_turbo: bool
    version: str
    sample_rate: int
    frame_samples: int
    channels: int
    condition_width: int
    context_width: int
    code_frames: int
    codes: int

    @classmethod
    def of(cls, transformer: Any, vae: Any, tokenizer: Any) -> Traits:
        """Those of diffusers' modules, which may be empty; None for no audio tokenizer."""
        config, channels = transformer.config, transformer.config.audio_acoustic_hidden_dim
        return cls(
            is_turbo=bool(config.is_turbo),
            version=str(config.get("model_version") or ""),
            sample_rate=int(vae.config.sampling_rate),
            frame_samples=math.prod(vae.config.downsampling_ratios),
            channels=channels,
            condition_width=config.encoder_hidden_size or config.hidden_size,
            context_width=config.in_channels - channels,
            code_frames=tokenizer.config.pool_window_size if tokenizer else 0,
            codes=tokenizer.quantizer.codebook_size if tokenizer else 0,
        )

    @property
    def frame_rate(self) -> float:
        """Latent frames in a second."""
        return self.sample_rate / self.frame_samples


def lasting(silence: torch.Tensor, frames: int) -> torch.Tensor:
    """Latents of silence, `[frames, channels]`, repeated where fewer are known."""
    return silence.repeat(-(-frames // len(silence)), 1)[:frames]


class Engine(Protocol):
    """The heavy parts of one loaded checkpoint, on one device.

    One thread uses an engine at a time, within `working`.
    """

    @property
    def name(self) -> str:
        """What users call this kind of engine, for example `torch`."""
        ...

    @property
    def traits(self) -> Traits:
        """What the checkpoint fixes."""
        ...

    @property
    def tokenizer(self) -> Any:
        """The text encoder's tokenizer, of the `transformers` library."""
        ...

    @property
    def xp(self) -> Any:
        """The library of its arrays, for what has no operator: `sqrt`, `sin`, `where`, `clip`,
        `concatenate`, `broadcast_to` and their like, with numpy's names and meaning."""
        ...

    def working(self) -> AbstractContextManager[None]:
        """The time of one request. Running out of memory within it becomes a `GenerationError`."""
        ...

    def array(self, host: torch.Tensor) -> Array:
        """A float32 tensor of the host as a float32 array on the device."""
        ...

    def host(self, array: Array) -> torch.Tensor:
        """An array as a float32 tensor on the host."""
        ...

    def precise(self, array: Array) -> Array:
        """An array in float32, where it is."""
        ...

    def advance(self, state: Array, velocity: Array, by: float) -> Array:
        """`state + by * velocity` in the state's precision, in one launch where it can."""
        ...

    def encode_words(self, text: Sequence[int], lyrics: Sequence[int]) -> tuple[Array, Array]:
        """What the transformer attends to of a prompt and its lyrics.

        Args:
            text: ids of the formatted prompt.
            lyrics: ids of the formatted lyrics.

        Returns:
            the lyrics, `[1, lyric tokens, width]`, and the text, `[1, text tokens, width]`.
        """
        ...

    def encode_timbre(self, latents: torch.Tensor | None) -> Array:
        """A timbre to follow, `[1, 1, width]`.

        Args:
            latents: of the reference, `[frames, channels]`; None for that of silence.
        """
        ...

    def unconditional(self, encoded: Array) -> Array:
        """The learned condition that says nothing, in the shape of another one."""
        ...

    def velocity(self, encoded: Array, context: torch.Tensor, times: Sequence[float]) -> Velocity:
        """The transformer's velocities over the steps of one batch.

        Several may be in use at a time, unless their batches and lengths are the same: then
        the one made last is.

        Args:
            encoded: the condition, `[batch, tokens, width]`.
            context: source latents and mask, `[batch, frames, context width]`.
            times: of the steps, in (0, 1].
        """
        ...

    def silence(self, frames: int) -> torch.Tensor:
        """Latents of silence, `[frames, channels]`."""
        ...

    def encode(self, audio: torch.Tensor) -> torch.Tensor:
        """Audio `[2, samples]` to latents `[samples // frame_samples, channels]`."""
        ...

    def decode(self, latents: Array, samples: int, report: Report | None = None) -> torch.Tensor:
        """Latents `[batch, frames, channels]` to audio `[batch, 2, samples]`.

        It is the start of the audio of all the frames, which are to be enough for it.
        """
        ...

    def codes_of(self, latents: torch.Tensor) -> list[int]:
        """Latents `[frames, channels]` to audio codes; the last is filled up with silence."""
        ...

    def latents_of(self, codes: Sequence[int]) -> torch.Tensor:
        """Audio codes to latents `[codes * code_frames, channels]`."""
        ...

    def cross_attention(
        self,
        inputs: Mapping[str, torch.Tensor],
        heads: Mapping[int, Sequence[int]],
        tokens: slice,
    ) -> torch.Tensor:
        """Where some heads look while the transformer runs once.

        Args:
            inputs: `hidden_states` `[1, frames, channels]`, `timestep` `[1]`,
                `encoder_hidden_states` and `context_latents`.
            heads: layer to heads.
            tokens: the positions of the condition to keep.

        Returns:
            `[1, heads, tokens, frames]` on the device that the engine's policy names, softmax
            over all tokens.
        """
        ...

    def leave(self) -> None:
        """The transformer is done for this request: it may make room for what follows."""
        ...

    def after_step(self) -> None:
        """Housekeeping between two steps."""
        ...

    def close(self) -> None:
        """Give the memory back; the engine is not used again."""
        ...
