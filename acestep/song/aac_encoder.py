"""Writes AAC through FFmpeg, as a program, so that a crash in there is an error out here.

Run as `python -I aac_encoder.py OUT MUXER RATE CHANNELS KBITS PATHS` it reads interleaved float
samples from its standard input. It imports nothing of this package.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # Run with `-I`, which leaves PYTHONPATH out; the caller says where its packages are.
    sys.path += [folder for folder in sys.argv.pop().split(os.pathsep) if os.path.isabs(folder)]

from collections.abc import Sequence
from fractions import Fraction
from typing import BinaryIO

import numpy as np

# What the encoder takes at a time; the last one may be shorter.
FRAME = 1024
_LAYOUTS = {1: "mono", 2: "stereo"}


def encode(
    source: BinaryIO, target: str, muxer: str, rate: int, channels: int, bitrate: int
) -> None:
    """Encode everything that a stream holds; `bitrate` in kbit/s."""
    import av

    # The edit list, which holds the length, counts in the movie's own time.
    options = {"movie_timescale": str(rate), "movflags": "+faststart"} if muxer == "ipod" else {}
    with av.open(f"file:{target}", "w", format=muxer, options=options) as container:
        stream = container.add_stream("aac", rate=rate, layout=_LAYOUTS[channels])
        stream.bit_rate = bitrate * 1000
        position = 0
        while data := source.read(FRAME * channels * 4):
            samples = np.frombuffer(data, np.float32).reshape(-1, channels)
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples.T), format="fltp", layout=_LAYOUTS[channels]
            )
            frame.sample_rate, frame.pts, frame.time_base = rate, position, Fraction(1, rate)
            position += len(samples)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def main(arguments: Sequence[str]) -> int:
    """Encode to the file that the arguments name."""
    target, muxer, rate, channels, bitrate = arguments
    encode(sys.stdin.buffer, target, muxer, int(rate), int(channels), int(bitrate))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
