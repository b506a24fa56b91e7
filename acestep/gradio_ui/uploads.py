"""Audio from visitors: checked for size, decoded apart, handed on as plain samples."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from acestep.errors import RequestError
from acestep.gradio_ui.limits import MIB, Limits
from acestep.song import decoder, sandbox

EXTENSIONS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".aiff", ".aif")
SHORTEST = 0.1
_ADVICE = "give a wav, flac, ogg or mp3 file"
# A folder is made a moment before its file.
_EMPTY_SECONDS = 60.0


def within(path: str | Path, folder: Path) -> Path:
    """A path that is known to lie in a folder, links and dots resolved.

    Raises:
        RequestError: it does not, or it is no file.
    """
    try:
        real = Path(path).resolve()
        inside = real.is_relative_to(folder.resolve()) and real.is_file()
    except (OSError, ValueError):
        inside = False
    if not inside:
        raise RequestError("that file was not uploaded here; upload it again")
    return real


def decoded(path: Path, target: Path, limits: Limits) -> Path:
    """Decode an upload to 48 kHz stereo in a process of its own.

    Args:
        path: the upload.
        target: the WAV file to write.
        limits: of size, length, computing time and memory.

    Raises:
        RequestError: the file is too large, too long, or no audio; one sentence.
    """
    size, most = path.stat().st_size, limits.upload_bytes
    if size > most:
        raise RequestError(
            f"the audio file has {size / MIB:.0f} MiB; the most is {most / MIB:.0f} MiB"
        )
    if path.suffix.lower() not in EXTENSIONS:
        raise RequestError(f"the audio file has an unknown ending; {_ADVICE}")
    allowance = sandbox.Allowance(
        limits.upload_seconds, SHORTEST, limits.decode_seconds, limits.decode_bytes
    )
    try:
        samples = sandbox.decoded(path, allowance)
    except decoder.Refused as verdict:
        reason = f"it {verdict}"
        raise RequestError(f"the audio file cannot be used: {reason}; {_ADVICE}") from None
    except sandbox.TooLongError:
        raise RequestError(f"reading the audio file takes too long; {_ADVICE}") from None
    except sandbox.TooMuchError:
        raise RequestError(
            f"reading the audio file takes too much time or memory; {_ADVICE}"
        ) from None
    import soundfile

    soundfile.write(target, samples.clip(-1, 1), decoder.RATE, format="WAV", subtype="FLOAT")
    return target


def clean(folder: Path, limits: Limits) -> None:
    """Remove uploads that are too old, and the folders they leave empty."""
    now = time.time()
    for path in sorted(folder.rglob("*"), reverse=True):
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                if now - path.stat().st_mtime > _EMPTY_SECONDS:
                    path.rmdir()
            elif now - path.lstat().st_mtime > limits.scratch_seconds:
                path.unlink()
