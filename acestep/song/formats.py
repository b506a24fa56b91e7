"""What kinds of audio file can be written, with which precision and bit rate.

| kind | holds | length as decoders see it |
| --- | --- | --- |
| flac | 16 or 24 bits, lossless | exact |
| wav | 16 or 24 bits, or 32-bit float | exact |
| mp3 | 32 to 320 kbit/s, constant; without a rate LAME's variable one (-V 4) | exact where the LAME header is read (libsndfile, FFmpeg, players since 2005), else longer |
| ogg | Vorbis, by quality | exact |
| opus | 16 to 510 kbit/s, variable | exact |
| m4a | AAC, 32 to 320 kbit/s | exact where the edit list is read (Apple, this package), else up to 1023 samples longer |
| aac | AAC as a bare stream | 1024 samples of lead and up to 1023 of padding: the kind has no place for a length |
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from acestep.errors import RequestError

_MP3_RATES = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_AAC_DEFAULT = 192


@dataclass(frozen=True)
class Format:
    """A kind of audio file.

    Attributes:
        container: libsndfile's name of it, or of FFmpeg's muxer where PyAV writes it.
        subtypes: bits a sample to libsndfile's subtype; the key 0 where bits are not chosen.
        bits: the key of `subtypes` that is taken unless asked otherwise.
        rates: kbit/s that can be asked for, the steps or the two bounds; empty for none.
        steps: whether `rates` are all there are.
        foreign: written by PyAV, which is an extra, rather than libsndfile.
    """

    container: str
    subtypes: dict[int, str] = field(default_factory=dict)
    bits: int = 0
    rates: Sequence[int] = ()
    steps: bool = False
    foreign: bool = False


FORMATS = {
    "flac": Format("FLAC", {16: "PCM_16", 24: "PCM_24"}, 24),
    "wav": Format("WAV", {16: "PCM_16", 24: "PCM_24", 32: "FLOAT"}, 16),
    "mp3": Format("MP3", {0: "MPEG_LAYER_III"}, rates=_MP3_RATES, steps=True),
    "ogg": Format("OGG", {0: "VORBIS"}),
    "opus": Format("OGG", {0: "OPUS"}, rates=(16, 510)),
    "m4a": Format("ipod", rates=(32, 320), foreign=True),
    "aac": Format("adts", rates=(32, 320), foreign=True),
}
"""File extension to what it is."""

BIT_DEPTHS = (16, 24, 32)
"""Bits a sample that some kind can have."""


@dataclass(frozen=True)
class Encoding:
    """A kind of file with its precision; made by `encoding`, which checks it.

    Attributes:
        kind: a key of `FORMATS`.
        bits: 16 or 24, 32 for float samples, 0 where the kind has no such choice.
        bitrate: kbit/s, or None for the kind's own way.
    """

    kind: str
    bits: int = 0
    bitrate: int | None = None

    @property
    def format(self) -> Format:
        """The kind's properties."""
        return FORMATS[self.kind]

    @property
    def subtype(self) -> str:
        """libsndfile's name of the samples' coding."""
        return self.format.subtypes[self.bits]


def encoding(kind: str, bit_depth: int | None = None, bitrate: int | None = None) -> Encoding:
    """How a song is to be written.

    Args:
        kind: a key of `FORMATS`.
        bit_depth: bits a sample; None for the kind's default.
        bitrate: kbit/s; None for the kind's default.

    Raises:
        RequestError: there is no such kind, or it has no such precision or rate here.
    """
    if kind not in FORMATS:
        raise RequestError(f"unknown audio format '{kind}'; choose from {', '.join(FORMATS)}")
    made = FORMATS[kind]
    if bit_depth is not None and bit_depth not in made.subtypes:
        depths = " or ".join(str(bits) for bits in made.subtypes if bits)
        raise RequestError(
            f"{kind} cannot have a bit depth of {bit_depth}; "
            + (f"choose {depths}" if depths else "leave it out, or choose flac or wav")
        )
    if bitrate is not None:
        _check_rate(kind, made, bitrate)
    elif made.foreign:
        bitrate = _AAC_DEFAULT
    if made.foreign and not has_pyav():
        raise RequestError(
            f"{kind} files need PyAV; install it with: pip install 'acestep[aac]', or choose "
            + ", ".join(name for name, other in FORMATS.items() if not other.foreign)
        )
    return Encoding(kind, made.bits if bit_depth is None else bit_depth, bitrate)


def has_pyav() -> bool:
    """Whether PyAV is installed, which writes and reads AAC."""
    return importlib.util.find_spec("av") is not None


def _check_rate(kind: str, made: Format, bitrate: int) -> None:
    if not made.rates:
        raise RequestError(
            f"{kind} has no bit rate to choose; leave it out, or choose "
            + ", ".join(name for name, other in FORMATS.items() if other.rates)
        )
    if made.steps and bitrate not in made.rates:
        raise RequestError(
            f"{kind} has no bit rate of {bitrate} kbit/s; choose from "
            + ", ".join(map(str, made.rates))
        )
    if not made.rates[0] <= bitrate <= made.rates[-1]:
        raise RequestError(
            f"{kind} has no bit rate of {bitrate} kbit/s; choose {made.rates[0]} to "
            f"{made.rates[-1]}"
        )


def file_format(path: str | Path) -> str:
    """The kind that a file name asks for.

    Raises:
        RequestError: the extension is not one of `FORMATS`.
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    name = Path(path).name
    if name.lower() in (f".{one}" for one in FORMATS):
        raise RequestError(
            f"{path}: there is no name before the ending; give for example song{name}"
        )
    if kind not in FORMATS:
        raise RequestError(
            f"{path}: unknown audio format; end the name in " + ", ".join(f".{k}" for k in FORMATS)
        )
    return kind
