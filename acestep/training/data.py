"""Training data: a folder of songs with descriptions, and what the models make of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from acestep.checkpoint.files import read_json
from acestep.device import DevicePolicy
from acestep.engines.torch import codec
from acestep.errors import RequestError
from acestep.song import audio_files
from acestep.song.request import BPM_RANGE, LANGUAGES, TIME_SIGNATURES, check_range

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".aiff", ".aif")
MIN_SECONDS = 1.0
# Part of every cached file's name: a changed way of preparing never meets an old cache.
_CACHE_VERSION = 1


@dataclass(frozen=True)
class Example:
    """A song to learn from, and the words that a request would have for it.

    Attributes:
        path: its audio.
        caption: what the music is like.
        lyrics: words with section tags; empty for none.
        bpm: beats a minute, or None.
        key: for example `C major`, or empty.
        timesignature: 2, 3, 4 or 6 as text, or empty.
        language: of the vocals.
    """

    path: Path
    caption: str
    lyrics: str = ""
    bpm: int | None = None
    key: str = ""
    timesignature: str = ""
    language: str = "unknown"


@dataclass(frozen=True)
class Clip:
    """A song as the transformer is trained on it; tensors on the host.

    Attributes:
        latents: `[1, frames, channels]`.
        condition: `encoder_hidden_states` `[1, tokens, width]`.
        silence: what stands in the context where nothing is given, `[1, 1, channels]`.
        frame_rate: latent frames of a second.
    """

    latents: torch.Tensor
    condition: torch.Tensor
    silence: torch.Tensor
    frame_rate: float

    def batch(self, seconds: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """A batch of one: a random stretch of at most so many seconds."""
        frames = min(self.latents.shape[1], max(1, round(seconds * self.frame_rate)))
        last = self.latents.shape[1] - frames
        start = int(torch.randint(last + 1, (1,), generator=generator))
        latents = self.latents[:, start : start + frames]
        context = torch.cat([self.silence.expand_as(latents), torch.ones_like(latents)], dim=-1)
        return {
            "latents": latents,
            "encoder_hidden_states": self.condition,
            "context_latents": context,
        }


def find_examples(folder: Path) -> list[Example]:
    """The songs of a folder, in the order of their names.

    Beside each lies a file of the same name that ends in `.json` (an object with `caption`
    and the other fields of `Example`) or in `.txt` (the caption, as it stands).

    Raises:
        RequestError: there is no audio, or a description is missing or wrong.
    """
    if not folder.is_dir():
        raise RequestError(f"{folder}: no such folder; give one with audio files by --data")
    songs = sorted(p for p in folder.iterdir() if p.suffix.lower() in AUDIO_SUFFIXES)
    if not songs:
        raise RequestError(
            f"{folder}: no audio found; put files ending in {', '.join(AUDIO_SUFFIXES)} there"
        )
    return [_example(song) for song in songs]


def prepare(
    examples: Sequence[Example],
    pipeline: Any,
    policy: DevicePolicy,
    cache: Path,
    identity: str,
    on_clip: Callable[[int, int], None] | None = None,
) -> list[Clip]:
    """What the VAE and the text encoder make of the examples, computed once.

    Args:
        examples: see `find_examples`.
        pipeline: whose modules encode; a `Pipeline` on the policy's device.
        policy: device, dtypes and limits.
        cache: folder that keeps the results; a file appears there whole or not at all.
        identity: of the checkpoint; another one's results are not taken.
        on_clip: told (done, all) after each.

    Raises:
        RequestError: a file cannot be read, or is too short.
    """
    cache.mkdir(parents=True, exist_ok=True)
    clips = []
    for number, example in enumerate(examples):
        file = cache / f"{_digest(example, identity)}.safetensors"
        tensors = _cached(file)
        if tensors is None:
            tensors = _encode(example, pipeline, policy)
            with audio_files.replacing(file) as part:
                save_file(tensors, part)
        clips.append(Clip(frame_rate=float(pipeline.latents_per_second), **tensors))
        if on_clip is not None:
            on_clip(number + 1, len(examples))
    return clips


def _example(song: Path) -> Example:
    described, written = song.with_suffix(".json"), song.with_suffix(".txt")
    if described.is_file():
        return _from_json(song, described)
    if not written.is_file():
        raise RequestError(
            f"{song}: has no description; write its caption to {written.name}, or its fields to "
            f"{described.name}"
        )
    try:
        caption = written.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{written}: not readable as UTF-8 text ({error})") from None
    if not caption:
        raise RequestError(f"{written}: holds no caption")
    return Example(song, caption)


def _from_json(song: Path, file: Path) -> Example:
    known = {field.name for field in fields(Example)} - {"path"}
    given = read_json(file)
    if unknown := sorted(set(given) - known):
        raise RequestError(
            f"{file}: unknown field '{unknown[0]}'; known are {', '.join(sorted(known))}"
        )
    if not str(given.get("caption", "")).strip():
        raise RequestError(f"{file}: has no 'caption'")
    for name, value in given.items():
        wanted: type | tuple[type, ...] = (int, type(None)) if name == "bpm" else str
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise RequestError(f"{file}: '{name}' is {value!r}; expected text, or a number for bpm")
    check_range(f"{file}: bpm", given.get("bpm"), *BPM_RANGE)
    for name, choices in (("timesignature", TIME_SIGNATURES), ("language", LANGUAGES)):
        if given.get(name) and given[name] not in choices:
            raise RequestError(
                f"{file}: {name} '{given[name]}' is unknown; choose from {', '.join(choices)}"
            )
    return Example(song, **given)


def _digest(example: Example, identity: str) -> str:
    """Name of an example's results: of its audio, its words and the checkpoint."""
    digest = hashlib.sha256()
    try:
        digest.update(example.path.read_bytes())
    except OSError as error:
        raise RequestError(f"{example.path}: cannot be read ({error.strerror})") from None
    words = {k: v for k, v in asdict(example).items() if k != "path"}
    digest.update(json.dumps([_CACHE_VERSION, identity, words], sort_keys=True).encode())
    return digest.hexdigest()[:32]


def _cached(file: Path) -> dict[str, torch.Tensor] | None:
    """The results in a file, or None where they must be computed (again)."""
    try:
        return load_file(file)
    except (OSError, SafetensorError):
        return None


@torch.no_grad()
def _encode(example: Example, pipeline: Any, policy: DevicePolicy) -> dict[str, torch.Tensor]:
    audio = audio_files.read(example.path)
    seconds = audio.shape[-1] / pipeline.sample_rate
    if seconds < MIN_SECONDS:
        raise RequestError(f"{example.path}: {seconds:.2f} s long; expected at least {MIN_SECONDS}")
    latents = codec.encode(pipeline.vae, audio[None], policy).transpose(1, 2)
    text, text_mask, lyrics, lyric_mask = pipeline.encode_prompt(
        prompt=[example.caption],
        lyrics=[example.lyrics],
        device=policy.device,
        vocal_language=[example.language],
        audio_duration=seconds,
        bpm=example.bpm,
        keyscale=example.key,
        timesignature=example.timesignature,
    )
    encoder = pipeline.condition_encoder
    # Without reference audio the timbre encoder hears 30 seconds of silence.
    silence = encoder.silence_latent[:, : round(30 * pipeline.latents_per_second)]
    condition, _ = encoder(
        text_hidden_states=text,
        text_attention_mask=text_mask,
        lyric_hidden_states=lyrics,
        lyric_attention_mask=lyric_mask,
        refer_audio_acoustic_hidden_states_packed=silence,
        refer_audio_order_mask=torch.zeros(1, dtype=torch.long, device=policy.device),
    )
    made = {"latents": latents, "condition": condition, "silence": silence[:, :1]}
    return {name: t.to("cpu", torch.float32).contiguous() for name, t in made.items()}
