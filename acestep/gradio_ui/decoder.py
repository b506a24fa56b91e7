"""Reads one untrusted audio file, in a process of its own that has little to lose.

Run as a program: `python decoder.py IN OUT SECONDS CPU_SECONDS BYTES PATHS`. It writes 48 kHz
stereo float samples to OUT as a WAV file, or one line on stderr. It imports nothing of this
package, so that it starts quickly and holds nothing worth stealing.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # Run with `-I`, which leaves PYTHONPATH out; the caller says where its packages are.
    sys.path += [folder for folder in sys.argv.pop().split(os.pathsep) if os.path.isabs(folder)]

from collections.abc import Sequence
from typing import Any

import numpy as np

RATE = 48000
RATES = (4000, 384000)
MOST_CHANNELS = 8
SHORTEST = 0.1
REFUSED = 3
"""Exit code when the file is at fault."""

_BLOCK = 65536


class Refused(Exception):  # noqa: N818 (a verdict on the file, no fault of the program)
    """The file cannot be used; the message is one sentence."""


def confine(cpu_seconds: float, memory: int) -> None:
    """Limit this process's computing time, memory and files, where the system can."""
    if sys.platform == "win32":
        return
    import resource

    soft = int(cpu_seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, soft + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    resource.setrlimit(resource.RLIMIT_FSIZE, (memory, memory))
    if sys.platform != "darwin":
        # macOS counts the shared libraries of the whole system as address space.
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def read(path: str, most_seconds: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The samples of a file, `[samples, 2]` at 48 kHz.

    The header is judged before anything is decoded, and what it claims is not believed:
    reading stops where the limit is passed.

    Raises:
        Refused: it is no audio, too long, too short or not finite.
    """
    import soundfile

    with soundfile.SoundFile(path) as file:
        rate, channels = file.samplerate, file.channels
        if not RATES[0] <= rate <= RATES[1]:
            raise Refused(f"its sample rate of {rate} Hz is outside {RATES[0]} to {RATES[1]} Hz")
        if not 1 <= channels <= MOST_CHANNELS:
            raise Refused(f"it has {channels} channels; the most are {MOST_CHANNELS}")
        most = int(most_seconds * rate)
        if file.frames > most:
            raise Refused(f"it is longer than {most_seconds:g} s")
        parts, count = [], 0
        while len(part := file.read(_BLOCK, dtype="float32", always_2d=True)):
            count += len(part)
            if count > most:
                raise Refused(f"it is longer than {most_seconds:g} s")
            parts.append(part[:, :2])
    if count < SHORTEST * rate:
        raise Refused(f"it is shorter than {SHORTEST:g} s")
    samples = np.concatenate(parts)
    if not np.isfinite(samples).all():
        raise Refused("it holds samples that are not numbers")
    if rate != RATE:
        import soxr

        samples = soxr.resample(samples, rate, RATE)
    if samples.shape[1] == 1:
        samples = np.repeat(samples, 2, axis=1)
    return np.ascontiguousarray(samples.clip(-1, 1), dtype=np.float32)


def main(arguments: Sequence[str]) -> int:
    """Decode the file that the arguments name."""
    source, target, seconds, cpu_seconds, memory = arguments
    import soundfile

    confine(float(cpu_seconds), int(memory))
    try:
        samples = read(source, float(seconds))
        soundfile.write(target, samples, RATE, format="WAV", subtype="FLOAT")
    except Refused as verdict:
        print(verdict, file=sys.stderr)  # noqa: T201 (how this program answers)
        return REFUSED
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError, OSError):
        print("it is not readable as audio", file=sys.stderr)  # noqa: T201
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
