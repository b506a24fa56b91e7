"""The handler's part in lyric alignment: attention of one song, its timestamps and score."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from acestep.alignment.aligner import MusicStampsAligner
from acestep.alignment.decoding import TokenDecoder, TokenIds, id_list, lyric_span
from acestep.alignment.heads import alignment_heads
from acestep.alignment.scorer import MusicLyricScorer
from acestep.diffusion.conditions import Conditioner
from acestep.diffusion.prompts import lyric_ids
from acestep.engines.protocol import Engine, Traits
from acestep.errors import AceStepError, RequestError
from acestep.song.request import Request

if TYPE_CHECKING:
    from acestep.checkpoint.kinds import Checkpoint
    from acestep.device import DevicePolicy

HeadOverride = Mapping[Any, Sequence[int]]

# The alignment needs lyrics and audio; the caption only fills its place in the prompt.
ANY_SONG = "a song with vocals"

# A song that exists says nothing of steps; these are those of the turbo checkpoints, whose
# heads are known.
_STEPS = 8

_SCORES = ("dit_score", "lm_score", "coverage", "monotonicity", "confidence", "lyrics_score")


@dataclass(frozen=True)
class SongInputs:
    """One song as the transformer knows it; tensors on any device.

    Attributes:
        pred_latent: the song, `[1, frames, channels]`, 25 frames a second.
        encoder_hidden_states: its condition, `[1, tokens, width]`, lyrics first.
        context_latents: its source latents and mask, `[1, frames, 2 * channels]`.
        lyric_token_ids: the lyrics as the text encoder was given them, heading and all.
        total_duration_seconds: length of the song; by default that of its latents.
        inference_steps: of the generation; attention is read at time 1 / steps.
        seed: of the noise that is mixed in, drawn on the host.
        custom_layers_config: layer to heads, in place of the checkpoint's table.
        heard_seconds: where the song ends that was handed out, if before its latents do; no time
            lies beyond.
        encoder_attention_mask: `[1, tokens]`, which positions of the condition are real; the
            transformer attends to all, so it only guards against padding.
    """

    pred_latent: torch.Tensor
    encoder_hidden_states: torch.Tensor
    context_latents: torch.Tensor
    lyric_token_ids: TokenIds
    total_duration_seconds: float | None = None
    inference_steps: int = 8
    seed: int = 42
    custom_layers_config: HeadOverride | None = None
    encoder_attention_mask: torch.Tensor | None = None
    heard_seconds: float | None = None

    def checked(self, lyric_stop: int, traits: Traits) -> SongInputs:
        """These inputs, known to be of one song, and to fit the transformer.

        Args:
            lyric_stop: the token at which the lyrics end.
            traits: of the checkpoint.

        Raises:
            RequestError: they are not; the message names the shapes that differ.
        """
        tensors = (self.pred_latent, self.encoder_hidden_states, self.context_latents)
        latent, encoded, context = (list(tensor.shape) for tensor in tensors)
        if any(len(shape) != 3 or shape[0] != 1 for shape in (latent, encoded, context)):
            raise RequestError(
                "alignment takes one song: pred_latent [1, frames, channels], "
                "encoder_hidden_states [1, tokens, width] and context_latents "
                f"[1, frames, 2 * channels], got {latent}, {encoded} and {context}"
            )
        expected = [traits.channels, traits.condition_width, traits.context_width]
        if (found := [latent[2], encoded[2], context[2]]) != expected:
            raise RequestError(
                f"pred_latent {latent}, encoder_hidden_states {encoded} and context_latents "
                f"{context} end in {found}, but this checkpoint takes {expected}"
            )
        if latent[1] != context[1] or latent[1] == 0:
            raise RequestError(
                f"pred_latent {latent} and context_latents {context} differ in frames, or "
                "have none; pass those of the same song"
            )
        mask = self.encoder_attention_mask
        real = encoded[1] if mask is None else int(mask.sum())
        if lyric_stop > real:
            raise RequestError(
                f"the lyrics reach token {lyric_stop}, but encoder_hidden_states {encoded} "
                f"holds {real}; pass those of the same song"
            )
        if self.inference_steps < 1:
            raise RequestError(
                f"number of steps {self.inference_steps} is out of range; expected at least 1"
            )
        return self


def song_inputs(extra_outputs: Mapping[str, Any], number: int = 0) -> dict[str, Any]:
    """The arguments of `get_lyric_timestamp` and `get_lyric_score` for one song of a batch.

    They are also the fields of `SongInputs`.

    Args:
        extra_outputs: of a generation, or of `condition_on_lyrics`.
        number: which song, counted from 0.

    Raises:
        RequestError: the batch has no such song.
    """
    songs = len(extra_outputs["latents"])
    if not 0 <= number < songs:
        raise RequestError(f"there is no song {number} in a batch of {songs}, counted from 0")
    one = slice(number, number + 1)
    return {
        "pred_latent": extra_outputs["latents"][one],
        "encoder_hidden_states": extra_outputs["encoder_hidden_states"][one],
        "context_latents": extra_outputs["context_latents"][one],
        "lyric_token_ids": extra_outputs["lyric_token_ids"],
        "total_duration_seconds": extra_outputs["latent_duration"],
        "inference_steps": extra_outputs["steps"],
        "seed": extra_outputs["seeds"][number],
        "heard_seconds": extra_outputs["duration"],
    }


@dataclass(frozen=True)
class _Reading:
    """What one forward pass shows of one song's lyrics.

    Attributes:
        weights: `[1, heads, lyric tokens, frames]`, on the model's device.
        heads: a table that names all of them.
        ids: the lyric tokens, without heading and end.
        tokenizer: what they were made with.
        seconds: length of the song by its latents.
    """

    weights: torch.Tensor
    heads: dict[int, list[int]]
    ids: list[int]
    tokenizer: TokenDecoder
    seconds: float


class LyricAlignmentMixin:
    """Lyric timestamps and scores for `AceStepHandler`, from its loaded transformer."""

    if TYPE_CHECKING:
        policy: DevicePolicy
        checkpoint: Checkpoint | None
        engine: Engine | None
        _lock: threading.RLock

    def get_lyric_timestamp(
        self,
        pred_latent: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        context_latents: torch.Tensor,
        lyric_token_ids: TokenIds,
        total_duration_seconds: float | None = None,
        inference_steps: int = 8,
        seed: int = 42,
        custom_layers_config: HeadOverride | None = None,
        return_matrices: bool = False,
        *,
        encoder_attention_mask: torch.Tensor | None = None,
        heard_seconds: float | None = None,
    ) -> dict[str, Any]:
        """When each token and line of the lyrics is sung.

        The arguments are the fields of `SongInputs`, and `return_matrices` as in
        `align_lyrics`.

        Returns:
            `success`, `error` (a line, or None), `lrc_text`, `sentence_timestamps` and
            `token_timestamps`; the last three are empty after a failure.
        """
        song = SongInputs(
            pred_latent,
            encoder_hidden_states,
            context_latents,
            lyric_token_ids,
            total_duration_seconds,
            inference_steps,
            seed,
            custom_layers_config,
            encoder_attention_mask,
            heard_seconds,
        )
        empty = {"lrc_text": "", "sentence_timestamps": [], "token_timestamps": []}
        return _answered(lambda: self.align_lyrics(song, return_matrices), empty)

    def get_lyric_score(
        self,
        pred_latent: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        context_latents: torch.Tensor,
        lyric_token_ids: TokenIds,
        total_duration_seconds: float | None = None,
        inference_steps: int = 8,
        seed: int = 42,
        custom_layers_config: HeadOverride | None = None,
        *,
        encoder_attention_mask: torch.Tensor | None = None,
        heard_seconds: float | None = None,
    ) -> dict[str, Any]:
        """How well a song sings its lyrics.

        The arguments are the fields of `SongInputs`; the length does not matter.

        Returns:
            `success`, `error` (a line, or None) and what `score_lyrics` returns, which is
            all 0 after a failure.
        """
        song = SongInputs(
            pred_latent,
            encoder_hidden_states,
            context_latents,
            lyric_token_ids,
            total_duration_seconds,
            inference_steps,
            seed,
            custom_layers_config,
            encoder_attention_mask,
            heard_seconds,
        )
        return _answered(lambda: self.score_lyrics(song), dict.fromkeys(_SCORES, 0.0))

    def align_lyrics(self, song: SongInputs, return_matrices: bool = False) -> dict[str, Any]:
        """What `get_lyric_timestamp` does, for callers that want errors raised.

        Args:
            song: one song.
            return_matrices: also return `energy_matrix` and `path_coords` for a picture.

        Raises:
            RequestError: the inputs are not usable, or the attention is not finite.
            CheckpointError: the checkpoint has no table of heads, and none was given.
            GenerationError: memory ran out.
        """
        with self._lock, self._loaded()[0].working():
            read = self._read_lyrics(song, last_step=True)
            seconds = song.total_duration_seconds
            aligner = MusicStampsAligner(read.tokenizer)
            info = aligner.stamps_align_info(
                read.weights, read.ids, read.seconds if seconds is None else seconds, read.heads
            )
            found = aligner.get_timestamps_and_lrc(**info, heard_seconds=song.heard_seconds)
            if return_matrices:
                scorer = MusicLyricScorer(read.tokenizer)
                seen = scorer.lyrics_alignment_info(read.weights, read.ids, read.heads)
                found |= {name: seen[name] for name in ("energy_matrix", "path_coords")}
            return found

    def score_lyrics(self, song: SongInputs) -> dict[str, float]:
        """What `get_lyric_score` does, for callers that want errors raised.

        Returns:
            `dit_score` (of the song), `lm_score` (of pure noise under the same condition,
            which says what the condition alone asks for), and of the song `coverage`,
            `monotonicity`, `confidence` and `lyrics_score`, the same as `dit_score`.

        Raises:
            RequestError, CheckpointError, GenerationError: as for `align_lyrics`.
        """
        scores = []
        with self._lock, self._loaded()[0].working():
            for last_step in (True, False):
                read = self._read_lyrics(song, last_step=last_step)
                scorer = MusicLyricScorer(read.tokenizer)
                info = scorer.lyrics_alignment_info(read.weights, read.ids, read.heads)
                scores.append(scorer.calculate_score(**info))
        sung, asked = scores
        return {**sung, "dit_score": sung["lyrics_score"], "lm_score": asked["lyrics_score"]}

    def condition_on_lyrics(
        self, audio: torch.Tensor, lyrics: str, language: str = "unknown", caption: str = ANY_SONG
    ) -> dict[str, Any]:
        """What a generation would have left behind, for a song that exists already.

        Args:
            audio: `[2, samples]` at 48 kHz.
            lyrics: its words.
            language: one of `request.LANGUAGES`.
            caption: what the music is like.

        Returns:
            dict for `song_inputs`: latents, condition, lyric tokens, duration, seeds, steps.

        Raises:
            RequestError: no checkpoint is loaded, or the audio or text is not usable.
            GenerationError: memory ran out.
        """
        with self._lock:
            engine, _ = self._loaded()
            rate = engine.traits.sample_rate
            request = Request(
                caption, (0,), lyrics, duration=audio.shape[-1] / rate, language=language
            ).validated(("text2music",), rate)
            with engine.working():
                latents, conditioner = engine.encode(audio), Conditioner(engine)
                seconds = audio.shape[-1] / rate
                encoded = engine.host(conditioner.encoded(request, request.task, seconds, None))
            frames = len(latents)
            context = conditioner.context(engine.silence(frames)[None], request)
            return {
                "pred_latents": latents[None],
                "latents": latents[None],
                "encoder_hidden_states": encoded,
                "context_latents": context,
                "lyric_token_ids": lyric_ids(engine.tokenizer, request),
                "duration": min(seconds, frames / engine.traits.frame_rate),
                "latent_duration": frames / engine.traits.frame_rate,
                "seeds": [0],
                "steps": _STEPS,
            }

    def _read_lyrics(self, song: SongInputs, *, last_step: bool) -> _Reading:
        """Cross-attention on the lyrics, at the last step of the diffusion or on pure noise."""
        engine, checkpoint = self._loaded()
        heads = alignment_heads(checkpoint.name, song.custom_layers_config)
        ids = id_list(song.lyric_token_ids)
        start, stop = lyric_span(engine.tokenizer, ids)
        song.checked(stop, engine.traits)
        time = 1 / song.inference_steps if last_step else 1.0
        latent = song.pred_latent.float().cpu()
        noise = torch.randn(latent.shape, generator=self.policy.generator(song.seed))
        inputs = {
            "hidden_states": time * noise + (1 - time) * latent,
            "timestep": torch.full((1,), time),
            "encoder_hidden_states": song.encoder_hidden_states,
            "context_latents": song.context_latents,
        }
        weights = engine.cross_attention(inputs, heads, slice(start, stop))
        seconds = latent.shape[1] / engine.traits.frame_rate
        named = {0: list(range(weights.shape[1]))}
        return _Reading(weights, named, ids[start:stop], engine.tokenizer, seconds)

    def _loaded(self) -> tuple[Engine, Checkpoint]:
        if self.engine is None or self.checkpoint is None:
            raise RequestError("no checkpoint is loaded; call initialize_service first")
        return self.engine, self.checkpoint


def _answered(work: Callable[[], dict[str, Any]], empty: dict[str, Any]) -> dict[str, Any]:
    """The result as handlers give it: an error is a line in the dict."""
    try:
        return {"success": True, "error": None, **work()}
    except AceStepError as error:
        return {"success": False, "error": str(error), **empty}
