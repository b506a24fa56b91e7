"""Audio that clients send or name: checked at the door, read apart, handed on as samples."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from acestep.errors import RequestError
from acestep.server.options import MIB, Limits

if TYPE_CHECKING:
    import torch

    from acestep.server.store import Store

_SHORTEST = 0.1
_ADVICE = "give a wav, flac, ogg or mp3 file"


class Sounds:
    """What files a task may read, and how.

    Args:
        store: of uploads and results.
        allowed: folders that paths may lead below.
        limits: of size, length, computing time and memory.
    """

    def __init__(self, store: Store, allowed: Sequence[Path], limits: Limits) -> None:
        self.store, self.limits = store, limits
        self.allowed = [folder.resolve() for folder in allowed]
        self._readers = threading.Semaphore(limits.decoders)

    def named(self, name: str, text: str) -> Path:
        """The file that a `*_path` parameter names: a result, or one in an allowed folder.

        Raises:
            RequestError: it is neither, whatever lies there.
        """
        if result := self.store.result(result_name(text)):
            return result
        try:
            path = Path(text).resolve()
            if any(path.is_relative_to(folder) for folder in self.allowed) and path.is_file():
                return path
        except (OSError, ValueError):
            pass  # no path at all, such as one with a NUL
        raise RequestError(
            f"{name}_path names neither a result nor a file that may be read here; send the file "
            f"itself as {name}"
        )

    def check(self, path: Path) -> None:
        """See that a file is audio that can be used.

        Raises:
            RequestError: it is not; one line.
        """
        size, most = path.stat().st_size, self.limits.upload_bytes
        if size > most:
            raise RequestError(
                f"the audio file has {size / MIB:.0f} MiB; the most is {most / MIB:.0f} MiB"
            )
        self.read(path)

    def read(self, path: Path) -> torch.Tensor:
        """The samples of a file, `[2, samples]` at 48 kHz, read in a process of its own.

        Raises:
            RequestError: it is no audio, or too much of it; one line.
        """
        import torch

        from acestep.song import decoder, sandbox

        limits = self.limits
        allowance = sandbox.Allowance(
            limits.upload_seconds, _SHORTEST, limits.decode_seconds, limits.decode_bytes
        )
        try:
            with self._readers:
                samples = sandbox.decoded(path, allowance)
        except decoder.Refused as verdict:
            raise RequestError(f"the audio file cannot be used: it {verdict}; {_ADVICE}") from None
        except sandbox.TooMuchError:
            raise RequestError(
                f"reading the audio file takes too much time or memory; {_ADVICE}"
            ) from None
        return torch.from_numpy(samples.T.copy())


def result_name(text: str) -> str:
    """The name of a result, given alone or as the address that it is fetched from."""
    if "?" not in text:
        return text
    try:
        return parse_qs(urlsplit(text).query).get("path", [text])[0]
    except ValueError:  # an address that is none
        return text
