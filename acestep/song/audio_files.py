"""Audio files in and out: any rate and channel count in, whole files or none out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acestep.errors import RequestError
from acestep.song import decoder, flac, formats, sandbox
from acestep.song.formats import FORMATS, Encoding, encoding, file_format
from acestep.song.placing import TakenError, part_beside, place, replacing
from acestep.song.tags import Tags
from acestep.song.tags import write as write_tags

__all__ = [
    "FORMATS",
    "Encoding",
    "Tags",
    "TakenError",
    "encode",
    "encoding",
    "file_format",
    "part_beside",
    "place",
    "read",
    "replacing",
    "write",
]

# A compressed file of a few kB can claim hours of audio; more than this is not a song.
MAX_INPUT_SECONDS = 3600
# libsndfile's Vorbis encoder puts what it is given at once on the stack.
_BLOCK = 4096
# Samples that are rounded at once: as many as the processor's cache holds.
_ROUNDED = 1 << 15
# PCM, float, and the header that says which of the two in a longer form.
_PLAIN_WAV = (1, 3, 0xFFFE)


def read(path: str | Path, sample_rate: int = 48000) -> torch.Tensor:
    """Read a song.

    Plain WAV and FLAC are read here, all else in a process of its own, whose crash is an error.

    Args:
        path: a file in a format of libsndfile (wav, flac, ogg, opus, mp3, aiff, …), or, where
            PyAV is installed, m4a or aac.
        sample_rate: rate of the result, Hz.

    Returns:
        float32 `[2, samples]`; mono is doubled, of more channels the first two are kept.

    Raises:
        RequestError: the file is missing, unreadable, empty, silent of samples or not finite.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise RequestError(f"{path}: no such audio file")
    try:
        if _is_plain(path):
            samples = decoder.read(str(path), MAX_INPUT_SECONDS, rate=sample_rate)
        else:
            allowance = sandbox.Allowance(MAX_INPUT_SECONDS)
            samples = sandbox.decoded(path, allowance, sample_rate)
    except decoder.Refused as verdict:
        reason = str(verdict).removeprefix("is ")
        raise RequestError(f"{path}: {reason}; {_advice(path)}") from None
    except sandbox.TooMuchError:
        raise RequestError(
            f"{path}: reading it takes too much time or memory; {_advice(path)}"
        ) from None
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror})") from None
    return torch.from_numpy(samples.T.copy())


def write(
    path: str | Path,
    audio: torch.Tensor,
    sample_rate: int = 48000,
    *,
    bit_depth: int | None = None,
    bitrate: int | None = None,
    tags: Tags | None = None,
    overwrite: bool = True,
) -> None:
    """Write a song; the file appears whole or not at all, and holds just the samples given.

    Args:
        path: its extension, one of `FORMATS`, decides the format.
        audio: `[channels, samples]` in -1 to 1, on any device; what is louder is clipped,
            except in float files.
        sample_rate: Hz.
        bit_depth, bitrate: bits a sample and kbit/s; None for the format's own.
        tags: what the file says of itself.
        overwrite: whether a file that exists is replaced.

    Raises:
        TakenError: the file exists, and is not to be replaced.
        RequestError: unknown extension, or the file cannot be written there.
    """
    path = Path(path)
    how = encoding(file_format(path), bit_depth, bitrate)
    with replacing(path, overwrite=overwrite) as part:
        encode(part, audio, sample_rate, how, tags)


def encode(
    part: Path, audio: torch.Tensor, sample_rate: int, how: Encoding, tags: Tags | None = None
) -> None:
    """Write a song to a file of any name, which stays half written where that fails.

    Args:
        part: the file.
        audio: as for `write`.
        sample_rate: Hz.
        how: of which kind, and how precise.
        tags: what the file says of itself.

    Raises:
        OSError: it cannot be written.
    """
    channels, made = audio.shape[0], how.format
    if made.foreign:
        sandbox.encode_aac(
            part, _blocks(audio, 0), made.container, sample_rate, channels, how.bitrate or 0
        )
    elif how.kind == "flac" and audio.shape[-1] > flac.PIECE and flac.threads() > 1:
        _in_pieces(part, audio, sample_rate, how.bits)
    else:
        _by_libsndfile(part, audio, sample_rate, how)
    if tags is not None:
        write_tags(part, how.kind, tags)


def _by_libsndfile(part: Path, audio: torch.Tensor, sample_rate: int, how: Encoding) -> None:
    import soundfile

    options = {} if how.bitrate is None else _rate_options(how, audio.shape[0])
    if how.kind == "flac":
        options["compression_level"] = flac.LEVEL
    try:
        with soundfile.SoundFile(
            part, "w", sample_rate, audio.shape[0],
            format=how.format.container, subtype=how.subtype, **options,
        ) as file:  # fmt: skip
            for block in _blocks(audio, how.bits):
                file.write(block)
    except soundfile.LibsndfileError as error:
        raise OSError(str(error)) from None


def _in_pieces(path: Path, audio: torch.Tensor, sample_rate: int, bits: int) -> None:
    channels, samples = audio.shape
    numbers = audio.detach().to("cpu", torch.float32).numpy()
    kept = threading.local()

    def part(start: int, end: int) -> np.ndarray[Any, Any]:
        # A thread's memory is the same for all its pieces: new memory takes the system's time.
        if not hasattr(kept, "room"):
            kept.room = np.empty((flac.PIECE, channels), np.int32)
        return _whole(numbers[:, start:end], bits, kept.room[: end - start])

    flac.write(path, flac.Stream(samples, channels, sample_rate, bits), part)


def _rate_options(how: Encoding, channels: int) -> dict[str, Any]:
    """A bit rate in libsndfile's words: where between the best and the smallest it lies."""
    assert how.bitrate is not None
    if how.kind == "mp3":
        return {"bitrate_mode": "CONSTANT", "compression_level": (320 - how.bitrate) / (320 - 32)}
    low, high = 6 * channels, 256 * channels
    return {"compression_level": min(max((high - how.bitrate) / (high - low), 0.0), 1.0)}


def _blocks(audio: torch.Tensor, bits: int) -> Iterator[np.ndarray[Any, Any]]:
    """The samples, `[samples, channels]` a block, as whole numbers where a file holds such."""
    audio = audio.detach().to("cpu", torch.float32)
    for start in range(0, audio.shape[-1], _BLOCK):
        block = audio[:, start : start + _BLOCK].numpy()
        if bits in (0, 32):
            block = np.ascontiguousarray(block.T)
            yield block if bits else block.clip(-1, 1)
        else:
            yield _whole(block, bits)


def _whole(
    block: np.ndarray[Any, Any], bits: int, room: np.ndarray[Any, Any] | None = None
) -> np.ndarray[Any, Any]:
    """Samples `[channels, samples]` as whole numbers `[samples, channels]`, in the upper bits.

    They are scaled by a power of two, as readers do: what was read from a file of as many bits
    is written back the same.
    """
    full, up = np.float32(2.0 ** (bits - 1)), np.float32(2.0 ** (32 - bits))
    whole = np.empty(block.shape[::-1], np.int32) if room is None else room
    for start in range(0, block.shape[1], _ROUNDED):
        for number, channel in enumerate(block[:, start : start + _ROUNDED]):
            scaled = channel * full
            np.rint(scaled, out=scaled)
            np.clip(scaled, -full, full - 1, out=scaled)
            # Into the upper bits: of 24 all are kept, for so many a float32 has.
            whole[start : start + _ROUNDED, number] = np.multiply(scaled, up, out=scaled)
    return whole


def _is_plain(path: Path) -> bool:
    """Whether a file is simple enough to be read in this process: FLAC, or WAV without a codec."""
    with path.open("rb") as stream:
        head = stream.read(22)
    if head[:4] == b"fLaC":
        return True
    wav = head[:4] in (b"RIFF", b"RF64") and head[8:16] == b"WAVEfmt "
    return wav and int.from_bytes(head[20:22], "little") in _PLAIN_WAV


def _advice(path: Path) -> str:
    kind = FORMATS.get(path.suffix.lower().removeprefix("."))
    if kind is not None and kind.foreign and not formats.has_pyav():
        return "m4a and aac need PyAV; install it with: pip install 'acestep[aac]'"
    return "give a wav, flac, ogg or mp3 file"
