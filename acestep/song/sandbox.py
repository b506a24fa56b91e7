"""Runs what reads strangers' audio, and what may crash at writing, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from acestep.song import aac_encoder, decoder

MIB = 2**20
# Starting Python and reading from a busy disk take time that is not the file's fault.
_GRACE = 20.0


class TooMuchError(Exception):
    """The reader took too much time or memory, or crashed."""


class TooLongError(TooMuchError):
    """The reader was still at work when its time was over."""


@dataclass(frozen=True)
class Allowance:
    """What reading one file may take.

    Attributes:
        seconds, shortest: of audio.
        cpu_seconds, memory: computing time, and bytes.
    """

    seconds: float
    shortest: float = 0.0
    cpu_seconds: float = 600.0
    memory: int = 2048 * MIB


def decoded(path: Path, allowance: Allowance, rate: int = decoder.RATE) -> decoder.Samples:
    """The samples of a file, `[samples, 2]` at `rate`.

    Raises:
        decoder.Refused: it is no audio, or not of the length allowed.
        TooMuchError: it took too much, or crashed its reader.
    """
    bounds = (rate, allowance.seconds, allowance.shortest, allowance.cpu_seconds, allowance.memory)
    try:
        done = subprocess.run(
            _command(decoder.__file__, str(path.absolute()), *map(str, bounds)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=_environment(),
            timeout=allowance.cpu_seconds + _GRACE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TooLongError from None
    if done.returncode == decoder.REFUSED:
        raise decoder.Refused(_last_line(done.stderr) or "is not readable as audio")
    if done.returncode != 0:
        raise TooMuchError
    return np.frombuffer(done.stdout, np.float32).reshape(-1, 2)


def encode_aac(
    target: Path,
    blocks: Iterable[decoder.Samples],
    muxer: str,
    rate: int,
    channels: int,
    kbits: int,
) -> None:
    """Write AAC, `[samples, channels]` a block.

    Raises:
        OSError: it cannot be written, or the encoder crashed.
    """
    arguments = (str(target.absolute()), muxer, str(rate), str(channels), str(kbits))
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            _command(aac_encoder.__file__, *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=_environment(),
        )
        assert process.stdin is not None
        try:
            with process, process.stdin as stream:
                for block in blocks:
                    stream.write(np.ascontiguousarray(block, np.float32).data)
        except BrokenPipeError:
            pass  # it ended early; its exit status below says why
        except BaseException:
            process.kill()
            raise
        if process.returncode != 0:
            errors.seek(0)
            reason = _last_line(errors.read()) or f"exit {process.returncode}"
            raise OSError(f"the AAC encoder failed ({reason})")


def _command(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-I", program, *arguments, os.pathsep.join(sys.path)]


def _environment() -> dict[str, str]:
    """What such a process needs to start, and no secrets."""
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
    return {**kept, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def _last_line(text: bytes) -> str:
    lines = text.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:200] if lines else ""
