"""What a batch is conditioned on: words, timbre, and the context that songs are made beside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from acestep.diffusion.lengths import Lengths
from acestep.diffusion.prompts import lyric_ids, plainly, prompt_text, text_ids
from acestep.diffusion.repaint import Repaint
from acestep.engines.protocol import TIMBRE_SECONDS, Array, Engine
from acestep.engines.recent import Recent
from acestep.errors import RequestError
from acestep.song.request import Request, audio_codes_in

MAX_ENCODINGS = 32
"""Encoded prompts kept for the next request with the same words; about 1 MB each at turbo size."""

MIN_FRAMES = 128
"""Latent frames of the shortest song that the model makes, 5.12 s; what is asked for is cut
from it."""

SILENT = 1e-6
"""A reference that stays below this everywhere says nothing of a timbre."""


@dataclass
class Conditions:
    """What the diffusion of one batch is given.

    Attributes:
        encoded: words and timbre, `[batch, tokens, width]`, on the device.
        context: source latents and mask, `[batch, frames, context width]`, on the host.
        plain: the same two for text-to-music alone, on which a weak cover goes on; or None.
        source: latents of the source, `[frames, channels]` on the host, where a part of it is
            kept.
        repaint: which part is not; None where all is made anew.
        samples: of each song.
    """

    encoded: Array
    context: torch.Tensor
    plain: tuple[Array, torch.Tensor] | None
    source: torch.Tensor | None
    repaint: Repaint | None
    samples: int


class Conditioner:
    """Encodes requests for one engine, and keeps what the next may ask for again."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.kept: Recent[Any, Array] = Recent(MAX_ENCODINGS)

    def __call__(self, request: Request) -> Conditions:
        """The conditions of a request that is valid for the engine's checkpoint.

        Raises:
            RequestError: audio codes are asked for of a checkpoint that knows none.
        """
        traits = self.engine.traits
        codes = [audio_codes_in(text) for text in _code_texts(request)]
        task = "cover" if codes and request.task == "text2music" else request.task
        source, repaint = self._source(request)
        sources = self._sources(task, codes, source, request.batch_size)
        lengths = Lengths.of(request, traits, [len(latents) for latents in sources], repaint)
        frames = max(lengths.frames, MIN_FRAMES)
        known: list[torch.Tensor | None] = [*sources] or [None]
        latents = torch.stack([self._filled(source, frames) for source in known])
        if repaint is not None and not repaint.keeps_source:
            inside = repaint.inside(frames, traits.frame_rate)
            latents[:, inside] = self.engine.silence(frames)[inside]
        timbre = self._timbre(request)
        encoded = self.encoded(request, task, lengths.said, timbre)
        plain = None
        if request.cover_strength < 1 and task in ("cover", "repaint"):
            # The original stacks both texts and cuts this one to the length of the other.
            most = len(text_ids(self.engine.tokenizer, prompt_text(request, task, lengths.said)))
            words = self.encoded(plainly(request), "text2music", lengths.said, timbre, most)
            silence = self.engine.silence(frames)[None]
            plain = self._spread(words, request), self.context(silence, request)
        return Conditions(
            self._spread(encoded, request),
            self.context(latents, request),
            plain,
            self._filled(source, frames) if repaint is not None else None,
            repaint,
            lengths.samples,
        )

    def _spread(self, encoded: Array, request: Request) -> Array:
        """The same condition for every song."""
        return self.engine.xp.broadcast_to(encoded, (request.batch_size, *encoded.shape[1:]))

    def context(self, latents: torch.Tensor, request: Request) -> torch.Tensor:
        """Source latents beside a mask that asks for every frame."""
        traits = self.engine.traits
        mask = torch.ones(*latents.shape[:2], traits.context_width - traits.channels)
        return torch.cat([latents, mask], dim=-1).expand(request.batch_size, -1, -1)

    def _source(self, request: Request) -> tuple[torch.Tensor | None, Repaint | None]:
        """Latents of the source audio, which goes on as far as the range that is repainted."""
        audio, rate = request.src_audio, self.engine.traits.sample_rate
        if audio is None:
            return None, None
        repaint = Repaint.of(request, audio.shape[-1] / rate)
        if repaint is not None:
            audio = repaint.extended(audio, rate)
        latents = self.engine.encode(audio)
        # A short one goes on as silence, of which a cover's codes are made too.
        return self._filled(latents, max(len(latents), MIN_FRAMES)), repaint

    def _sources(
        self, task: str, codes: list[list[int]], source: torch.Tensor | None, batch: int
    ) -> list[torch.Tensor]:
        """Latents of what each song follows, one for all where they are the same; or none."""
        if codes:
            if not self.engine.traits.codes:
                raise RequestError("this checkpoint has no audio tokenizer; leave audio codes out")
            most = self.engine.traits.codes - 1
            made = [self.engine.latents_of([min(code, most) for code in song]) for song in codes]
            # The last song's codes serve those for which none were given.
            return made if len(made) == 1 else [*made, *[made[-1]] * batch][:batch]
        if source is None:
            return []
        if task == "cover":
            restored = self.engine.latents_of(self.engine.codes_of(source))
            return [restored[: len(source)]]
        return [source]

    def _filled(self, latents: torch.Tensor | None, frames: int) -> torch.Tensor:
        """Latents of a length, with silence where there are none."""
        filled = self.engine.silence(frames)
        if latents is not None:
            filled = torch.cat([latents, filled[: frames - len(latents)]])
        return filled

    def _timbre(self, request: Request) -> torch.Tensor | None:
        """Latents of the reference's excerpts, from its start, middle and end:
        `[frames, channels]`."""
        audio = request.reference_audio
        if audio is None or audio.abs().max() <= SILENT:
            return None
        samples = TIMBRE_SECONDS * self.engine.traits.sample_rate
        excerpt = samples // 3
        audio = audio.clamp(-1, 1)
        if audio.shape[-1] < samples:
            audio = audio.repeat(1, -(-samples // audio.shape[-1]))
        length = audio.shape[-1]
        starts = (0, length // 3, length - excerpt)
        return self.engine.encode(torch.cat([audio[:, s : s + excerpt] for s in starts], dim=-1))

    def encoded(
        self,
        request: Request,
        task: str,
        seconds: float,
        timbre: torch.Tensor | None,
        most: int | None = None,
    ) -> Array:
        """Words and timbre of one item, `[1, tokens, width]`.

        A batch shares caption, lyrics and reference, so that one item is all there is to encode.

        Args:
            request: its caption, metadata and lyrics are read.
            task: whose instruction the prompt begins with.
            seconds: what the prompt says of the length.
            timbre: latents of the reference, or None for silence.
            most: tokens of the prompt that are read; None for all.
        """
        engine, text = self.engine, prompt_text(request, task, seconds)

        def encode() -> Array:
            sung, read = engine.encode_words(
                text_ids(engine.tokenizer, text)[:most], lyric_ids(engine.tokenizer, request)
            )
            return engine.xp.concatenate([sung, engine.encode_timbre(timbre), read], axis=1)

        if timbre is not None:
            return encode()
        return self.kept.find((text, most, request.lyrics, request.language), encode)


def _code_texts(request: Request) -> list[str]:
    """The codes of each song, one text for all where they share it; empty for none."""
    return list(request.song_codes) or ([request.audio_codes] if request.audio_codes else [])
