"""Reads one audio file, in blocks; as a program, one that is not trusted.

Run as `python -I decoder.py IN RATE SECONDS SHORTEST CPU_SECONDS BYTES PATHS` it writes stereo
float samples to its standard output, or one line on stderr. It imports nothing of this package,
so that it starts quickly and holds nothing worth stealing.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # Run with `-I`, which leaves PYTHONPATH out; the caller says where its packages are.
    sys.path += [folder for folder in sys.argv.pop().split(os.pathsep) if os.path.isabs(folder)]

import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

RATE = 48000
RATES = (4000, 384000)
MOST_CHANNELS = 8
REFUSED = 3
"""Exit code when the file is at fault."""

_BLOCK = 65536
# FFmpeg knows playlists that name other files, and addresses: a stranger's file gets neither.
_FFMPEG_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,aac",
    "protocol_whitelist": "file",
}
Samples = np.ndarray[Any, np.dtype[np.float32]]


class Refused(Exception):  # noqa: N818 (a verdict on the file, no fault of the program)
    """The file cannot be used; the message says of it what it is or has."""


class Sound(NamedTuple):
    """An open file: its rate, channels and claimed samples, and the samples block by block."""

    rate: int
    channels: int
    samples: int
    blocks: Iterator[Samples]


def confine(cpu_seconds: float, memory: int) -> None:
    """Limit this process's computing time, memory and files, where the system can."""
    if sys.platform == "win32":
        return
    import resource

    soft = int(cpu_seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, soft + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform != "darwin":
        # macOS counts the shared libraries of the whole system as address space.
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def blocks(
    path: str, most_seconds: float, shortest: float = 0.0, rate: int = RATE
) -> Iterator[Samples]:
    """The samples of a file, `[samples, 2]` a block; mono is doubled, of more two are kept.

    The header is judged before anything is decoded, and what it claims is not believed:
    reading stops where the limit is passed.

    Raises:
        Refused: it is no audio, too long, too short or not finite.
    """
    sound = _opened(path)
    most = int(most_seconds * sound.rate)
    if sound.samples > most:
        raise Refused(f"is longer than {most_seconds:g} s")
    if not RATES[0] <= sound.rate <= RATES[1]:
        raise Refused(f"has a sample rate of {sound.rate} Hz, outside {RATES[0]} to {RATES[1]} Hz")
    if not 1 <= sound.channels <= MOST_CHANNELS:
        raise Refused(f"has {sound.channels} channels; the most are {MOST_CHANNELS}")
    count, stream = 0, None
    if sound.rate != rate:
        import soxr

        stream = soxr.ResampleStream(sound.rate, rate, 2, dtype="float32")
    for block in _checked(sound.blocks):
        count += len(block)
        if count > most:
            raise Refused(f"is longer than {most_seconds:g} s")
        stereo = np.repeat(block, 2, axis=1) if block.shape[1] == 1 else block[:, :2]
        stereo = np.ascontiguousarray(stereo)
        yield stereo if stream is None else stream.resample_chunk(stereo)
    if count == 0:
        raise Refused("holds no audio")
    if count < shortest * sound.rate:
        raise Refused(f"is shorter than {shortest:g} s")
    if stream is not None:
        yield stream.resample_chunk(np.zeros((0, 2), np.float32), last=True)


def read(path: str, most_seconds: float, shortest: float = 0.0, rate: int = RATE) -> Samples:
    """All of `blocks` in one.

    Raises:
        Refused: as `blocks`.
    """
    return np.concatenate(list(blocks(path, most_seconds, shortest, rate)))


def _checked(parts: Iterator[Samples]) -> Iterator[Samples]:
    for part in parts:
        if not np.isfinite(part).all():
            raise Refused("holds samples that are not numbers")
        yield part


def _opened(path: str) -> Sound:
    """The file by libsndfile, else by FFmpeg where PyAV is installed."""
    import soundfile

    class Forward(soundfile.SoundFile):  # type: ignore[misc]
        """Read without going back: soundfile seeks after each block, which MP3 decoders hear."""

        def seekable(self) -> bool:
            return False

    # As bytes: the name may be in another encoding than soundfile's own, UTF-8.
    name = path if sys.platform == "win32" else os.fsencode(path)
    try:
        file = Forward(name)
    except soundfile.LibsndfileError as error:
        if importlib.util.find_spec("av") is None:
            raise Refused(f"is not readable as audio ({error.error_string})") from None
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        raise Refused(f"is not readable as audio ({error})") from None
    else:
        return Sound(file.samplerate, file.channels, file.frames, _by_libsndfile(file))
    return _by_ffmpeg(path)


def _by_libsndfile(file: Any) -> Iterator[Samples]:
    import soundfile

    size = max(_BLOCK // file.channels, 1)
    with file:
        try:
            while len(part := file.read(size, dtype="float32", always_2d=True)):
                yield part
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise Refused(f"is not readable as audio ({error})") from None


def _by_ffmpeg(path: str) -> Sound:
    """Audio of a container that libsndfile does not know (m4a, aac, webm, …)."""
    import av

    try:
        container = av.open(f"file:{path}", options=_FFMPEG_OPTIONS)
        stream = container.streams.audio[0]
    except (av.FFmpegError, IndexError, ValueError):
        raise Refused("is not readable as audio") from None
    ticks = (stream.duration or 0) * (stream.time_base or 0)
    claimed = round(ticks * stream.rate)
    # A bare AAC stream only estimates its length; that of an MP4 is its edit list's.
    exact = claimed if "mp4" in container.format.name.split(",") else 0
    return Sound(stream.rate, stream.channels, claimed, _frames(container, stream, exact))


def _frames(container: Any, stream: Any, exact: int) -> Iterator[Samples]:
    import av

    left = exact or sys.maxsize
    resampler = av.AudioResampler(format="flt")
    with container:
        try:
            for frame in container.decode(stream):
                for plain in resampler.resample(frame):
                    part = plain.to_ndarray().reshape(-1, len(plain.layout.channels))
                    # The last frame is padded to its full size.
                    yield part[:left]
                    left -= min(len(part), left)
        except av.FFmpegError as error:
            raise Refused(f"is not readable as audio ({error.strerror})") from None


def main(arguments: Sequence[str]) -> int:
    """Decode the file that the arguments name."""
    source, rate, seconds, shortest, cpu_seconds, memory = arguments
    import soundfile  # noqa: F401 (before the limits, as its library is mapped)

    confine(float(cpu_seconds), int(memory))
    try:
        for part in blocks(source, float(seconds), float(shortest), int(rate)):
            sys.stdout.buffer.write(part.tobytes())
        sys.stdout.buffer.flush()
    except Refused as verdict:
        print(verdict, file=sys.stderr)  # noqa: T201 (how this program answers)
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
