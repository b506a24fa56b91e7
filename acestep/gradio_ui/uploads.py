"""Audio from visitors: checked for size, decoded apart, handed on as plain samples."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

from acestep.errors import RequestError
from acestep.gradio_ui import decoder
from acestep.gradio_ui.limits import MIB, Limits

EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif")
_ADVICE = "give a wav, flac, ogg or mp3 file"
# Starting Python and reading from a busy disk take time that is not the file's fault.
_GRACE = 20.0
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
    bounds = (limits.upload_seconds, limits.decode_seconds, limits.decode_bytes)
    command = [sys.executable, "-I", decoder.__file__, str(path), str(target), *map(str, bounds)]
    command.append(os.pathsep.join(sys.path))
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=_environment(),
            timeout=limits.decode_seconds + _GRACE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RequestError(f"reading the audio file takes too long; {_ADVICE}") from None
    if done.returncode == 0:
        return target
    if done.returncode == decoder.REFUSED:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        verdict = lines[-1][:200] if lines else "it is not readable as audio"
        raise RequestError(f"the audio file cannot be used: {verdict}; {_ADVICE}")
    raise RequestError(f"reading the audio file takes too much time or memory; {_ADVICE}")


def _environment() -> dict[str, str]:
    """What a decoder needs to start, and no secrets."""
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
    return {**kept, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


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
