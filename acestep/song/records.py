"""What is written down of a song: everything needed to make it again, beside its audio."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from acestep.song import audio_files
from acestep.song.planning import metadata_of
from acestep.song.request import REPAINT_TASKS, Request

if TYPE_CHECKING:
    from acestep.device import DevicePolicy
    from acestep.song.outcome import Generation

_REPAINTING = (
    "repaint_mode", "repaint_strength", "repaint_latent_crossfade_frames",
    "repaint_wav_crossfade_sec",
)  # fmt: skip


class Named(Protocol):
    """A checkpoint, as far as a record goes."""

    @property
    def name(self) -> str:
        """What to call it."""


class Maker(Protocol):
    """What made a song, such as `AceStepHandler`."""

    @property
    def checkpoint(self) -> Named | None:
        """What is loaded."""

    @property
    def policy(self) -> DevicePolicy:
        """Where it is."""


def describe(handler: Maker, made: Generation, number: int) -> dict[str, Any]:
    """Everything needed to make a song of a batch again, as plain data."""
    song = made.songs[number]
    return {
        **_asked(made.request, number),
        "seed": song.seed,
        "batch_index": number,
        "seconds": round(song.seconds, 3),
        "checkpoint": handler.checkpoint.name if handler.checkpoint else None,
        "device": handler.policy.name,
        "dtype": {name: choice.name for name, choice in handler.policy.dtypes.items()},
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def save_song(path: Path, made: Generation, number: int, record: dict[str, Any]) -> None:
    """Write a song, and its parameters in a JSON file of the same name beside it.

    Raises:
        RequestError: one of the two cannot be written; neither is left behind new.
    """
    song = made.songs[number]
    text = json.dumps(record, ensure_ascii=False, indent=2, default=str) + "\n"
    with audio_files.replacing(path.with_suffix(".json")) as part:
        part.write_text(text, encoding="utf-8")
        audio_files.write(path, song.audio, song.sample_rate)


def _asked(request: Request, number: int) -> dict[str, Any]:
    """The fields that say something about this song; audio is not among them."""
    plain = replace(request, src_audio=None, reference_audio=None)
    record = {name: value for name, value in asdict(plain).items() if value not in (None, "", ())}
    for name in ("planning", "planned", *(() if plain.task in REPAINT_TASKS else _REPAINTING)):
        record.pop(name, None)
    if codes := record.pop("song_codes", ()):
        record["audio_codes"] = codes[number]
    if request.planned:
        record["planned"] = metadata_of(request)
    return record
