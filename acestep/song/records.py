"""What is written down of a song: everything needed to make it again, beside its audio."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from acestep.song import saving
from acestep.song.formats import Encoding, encoding, file_format
from acestep.song.planning import metadata_of
from acestep.song.request import REPAINT_TASKS, UNKNOWN_LANGUAGE, Request

if TYPE_CHECKING:
    from acestep.device import DevicePolicy
    from acestep.song.outcome import Generation

_CHANGEABLE = ("duration", "bpm", "key", "time_signature")
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
    asked = made.asked or made.request
    loudness = {}
    if song.loudness is not None:
        target, reached = song.loudness
        loudness = {"loudness": {"asked": target, "made": reached}}
    return {
        **_made(made.request, number),
        "seed": song.seed,
        "batch_index": number,
        "seconds": round(song.seconds, 3),
        **loudness,
        "asked": _wanted(asked),
        **({"warnings": list(made.warnings)} if made.warnings else {}),
        "checkpoint": handler.checkpoint.name if handler.checkpoint else None,
        "device": handler.policy.name,
        "engine": handler.policy.engine_name,
        "dtype": {name: choice.name for name, choice in handler.policy.dtypes.items()},
        **({"quantization": bits} if (bits := handler.policy.quantization) else {}),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def save_song(
    path: Path | Iterable[Path],
    made: Generation,
    number: int,
    record: dict[str, Any],
    how: Encoding | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Write a song, and its parameters in a JSON file beside it.

    That is of the same name, or, where that is taken, `song.flac.json`.

    Args:
        path: where to, or several places of which the first that is free is taken.
        made: the generation.
        number: which song of it.
        record: what `describe` says of it.
        how: the kind of file; the name decides where it is not given.
        overwrite: whether files that exist are replaced.

    Returns:
        Where the song is.

    Raises:
        TakenError: a file is there, and was not to be replaced.
        RequestError: one of the two cannot be written; neither is left behind new.
    """
    song = made.songs[number]
    names = iter([path] if isinstance(path, Path) else path)
    first = next(names)
    how = how or encoding(file_format(first))
    names = itertools.chain([first], names)
    return saving.save(names, song.audio, song.sample_rate, record, how, overwrite=overwrite)


def _wanted(request: Request) -> dict[str, Any]:
    """What the person asked for, of that which limits and planning may change."""
    fields = {
        "caption": request.caption,
        **{name: getattr(request, name) for name in _CHANGEABLE if getattr(request, name)},
    }
    if request.language != UNKNOWN_LANGUAGE:
        fields["language"] = request.language
    if request.task in REPAINT_TASKS:
        fields["repaint"] = request.repaint
    return fields


def _made(request: Request, number: int) -> dict[str, Any]:
    """The fields that say something about this song; audio is not among them."""
    plain = replace(request, src_audio=None, reference_audio=None)
    record = {name: value for name, value in asdict(plain).items() if value not in (None, "", ())}
    for name in ("planning", "planned", *(() if plain.task in REPAINT_TASKS else _REPAINTING)):
        record.pop(name, None)
    if plain.task in REPAINT_TASKS and request.src_audio is not None:
        record["repaint"] = request.repainted
    if codes := record.pop("song_codes", ()):
        record["audio_codes"] = codes[number]
    if request.planned:
        record["planned"] = metadata_of(request)
    return record
