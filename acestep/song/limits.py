"""What a machine can hold of a request, asked before the work: lengths, and songs at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from acestep.device import budget
from acestep.errors import RequestError
from acestep.gpu_config import (
    MIN_DURATION,
    GPUConfig,
    check_duration_limit,
    host_audio_gb,
    host_need_gb,
)
from acestep.song.outcome import Generation
from acestep.song.request import SOURCE_TASKS, Request

_SHARE = 0.9
"""Of the free memory that may be asked for: what is free is not free of surprises."""


@dataclass(frozen=True)
class Room:
    """What there is for one request.

    Attributes:
        config: the limits of the memory tier, or of the host.
        lm: whether a language model is loaded beside the checkpoint.
        on_host: whether songs are computed in the host's own memory, or in memory that it shares.
        free: of that, GiB.
        width: of the transformer, channels.
        on_mlx: whether MLX computes them.
    """

    config: GPUConfig
    lm: bool
    on_host: bool
    free: float
    width: int
    on_mlx: bool = False

    @property
    def spare(self) -> float:
        """GiB of the host's memory that may be asked for."""
        return self.free * _SHARE

    def longest(self) -> float:
        """The longest song, in whole seconds where the host's memory decides; 0 for none."""
        most = self.config.max_duration(self.lm)
        if not self.on_host or self.need(most) <= self.spare:
            return most
        fits = (second for second in range(int(most), 0, -1) if self.need(second) <= self.spare)
        return float(next(fits, 0))

    def at_once(self, seconds: float) -> int:
        """How many songs of a length can be made together; at least one."""
        most = self.config.max_batch_size(self.lm)
        if self.on_host:
            while most > 1 and self.need(seconds, most) > self.spare:
                most -= 1
        return most

    def need(self, seconds: float, songs: int = 1) -> float:
        """GiB of the host's memory that songs take while they are made."""
        if self.on_mlx:
            return budget.song_gib(
                seconds, songs, self.width, self.config.gpu_memory_gb or self.free
            )
        return host_need_gb(seconds, songs, self.width)


def within(request: Request, room: Room, fit: bool) -> tuple[Request, list[str]]:
    """The request as it can be made here, and a notice of what was changed for that.

    Args:
        request: checked, with its audio.
        room: of this machine.
        fit: shorten songs that are too long.

    Raises:
        RequestError: the songs are too long, and not to be shortened, or too many.
    """
    seconds, notices = request.seconds, []
    longest = room.longest()
    if seconds > longest:
        line = _too_long(seconds, longest, room)
        if longest < MIN_DURATION:
            raise RequestError(f"{line}; close other programs")
        if request.task in SOURCE_TASKS and not request.has_codes:
            raise RequestError(f"{line}; give shorter audio")
        if not fit:
            raise RequestError(
                f"{line}; ask for {longest:g} s, or have songs shortened to that with --fit"
            )
        request, seconds = dataclasses.replace(request, duration=float(longest)), longest
        notices.append(f"{line}; making {longest:g} s")
    audio = host_audio_gb(seconds, request.batch_size)
    if audio > room.spare:
        raise RequestError(
            f"{request.batch_size} songs of {seconds:g} s are {audio:.1f} GiB of audio, and "
            f"{room.free:.1f} GiB of memory are free; ask for fewer, or make them one after the "
            "other: acestep batch"
        )
    return request, notices


def turns(request: Request, room: Room) -> list[Request]:
    """The request as one or more that are made one after the other."""
    step = room.at_once(request.seconds)
    return [
        dataclasses.replace(
            request,
            seeds=request.seeds[start : start + step],
            song_codes=request.song_codes[start : start + step],
        )
        for start in range(0, request.batch_size, step)
    ]


def together(request: Request, parts: Sequence[Generation]) -> Generation:
    """What was made in turns as the one generation that was asked for."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    stages = {stage: sum(part.times.get(stage, 0.0) for part in parts) for stage in first.times}
    return dataclasses.replace(
        first,
        songs=[song for part in parts for song in part.songs],
        request=dataclasses.replace(
            first.request, seeds=request.seeds, song_codes=request.song_codes
        ),
        warnings=list(dict.fromkeys(line for part in parts for line in part.warnings)),
        tensors={name: _stacked([part.tensors[name] for part in parts]) for name in first.tensors},
        latent_seconds=max(part.latent_seconds for part in parts),
        times=stages,
        peak_memory=max(part.peak_memory for part in parts),
    )


def _too_long(seconds: float, longest: float, room: Room) -> str:
    if longest >= room.config.max_duration(room.lm):
        return check_duration_limit(seconds, room.config, room.lm)[1]
    return (
        f"a song of {seconds:g} s needs {room.need(seconds):.1f} GiB of memory here, and "
        f"{room.free:.1f} GiB are free"
    )


def _stacked(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Batches as one; songs of unequal codes differ in length, and silence fills them up."""
    longest = max(tensor.shape[1] for tensor in tensors)
    padded = [
        torch.nn.functional.pad(tensor, (0, 0, 0, longest - tensor.shape[1])) for tensor in tensors
    ]
    return torch.cat(padded)
