"""Audio files in and out: any rate and channel count in, whole files or none out."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from acestep.errors import RequestError

FORMATS = {"flac": "FLAC", "wav": "WAV", "mp3": "MP3", "ogg": "OGG"}
"""File extension to libsndfile's name of the container."""

_SUBTYPES = {"flac": "PCM_24", "wav": "PCM_16", "mp3": "MPEG_LAYER_III", "ogg": "VORBIS"}
# A compressed file of a few kB can claim hours of audio; more than this is not a song.
MAX_INPUT_SECONDS = 3600


def read(path: str | Path, sample_rate: int = 48000) -> torch.Tensor:
    """Read a song.

    Args:
        path: a file in a format of libsndfile (wav, flac, ogg, mp3, aiff, …).
        sample_rate: rate of the result, Hz.

    Returns:
        float32 `[2, samples]`; mono is doubled, of more channels the first two are kept.

    Raises:
        RequestError: the file is missing, unreadable, empty, silent of samples or not finite.
    """
    import soundfile

    path = Path(path).expanduser()
    if not path.is_file():
        raise RequestError(f"{path}: no such audio file")
    try:
        with soundfile.SoundFile(path) as file:
            if file.frames > MAX_INPUT_SECONDS * file.samplerate:
                raise RequestError(
                    f"{path}: longer than {MAX_INPUT_SECONDS} s; give a shorter file"
                )
            samples = file.read(dtype="float32", always_2d=True)
            rate = file.samplerate
    except (soundfile.LibsndfileError, OSError, RuntimeError, ValueError) as error:
        raise RequestError(
            f"{path}: not readable as audio ({error}); give a wav, flac, ogg or mp3 file"
        ) from None
    if samples.size == 0:
        raise RequestError(f"{path}: holds no audio")
    if not np.isfinite(samples).all():
        raise RequestError(f"{path}: holds samples that are not numbers")
    if rate != sample_rate:
        import soxr

        samples = soxr.resample(samples, rate, sample_rate)
    stereo = np.repeat(samples, 2, axis=1) if samples.shape[1] == 1 else samples[:, :2]
    return torch.from_numpy(np.ascontiguousarray(stereo.T, dtype=np.float32))


def write(path: str | Path, audio: torch.Tensor, sample_rate: int = 48000) -> None:
    """Write a song; the file appears whole or not at all.

    Args:
        path: its extension, one of `FORMATS`, decides the format.
        audio: `[channels, samples]` in -1 to 1, on any device.
        sample_rate: Hz.

    Raises:
        RequestError: unknown extension, or the file cannot be written there.
    """
    import soundfile

    path = Path(path)
    kind = file_format(path)
    samples = audio.detach().to("cpu", torch.float32).clamp(-1, 1).T.numpy()
    with replacing(path) as part:
        try:
            soundfile.write(
                part, samples, sample_rate, format=FORMATS[kind], subtype=_SUBTYPES[kind]
            )
        except soundfile.LibsndfileError as error:
            raise OSError(str(error)) from None


def file_format(path: str | Path) -> str:
    """The format that a file name asks for.

    Raises:
        RequestError: the extension is not one of `FORMATS`.
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise RequestError(
            f"{path}: unknown audio format; end the name in " + ", ".join(f".{k}" for k in FORMATS)
        )
    return kind


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place on success and goes otherwise.

    Raises:
        RequestError: the system refuses to write there (permissions, full disk, …).
    """
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        part = Path(name)
        yield part
        part.chmod(0o666 & ~_umask())
        os.replace(part, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RequestError(
            f"cannot write {path}: {reason}; free some space or choose another place with -o"
        ) from None
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current
