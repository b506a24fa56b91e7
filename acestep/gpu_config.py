"""Memory tiers: what a request may ask for, given the memory of the device it runs on."""

from __future__ import annotations

import os
from dataclasses import dataclass

from acestep.device import DevicePolicy, budget, resolve
from acestep.errors import RequestError

MIN_DURATION = 0.5
MAX_DURATION = 600.0
"""Seconds of audio: the longest that ACE-Step 1.5 is trained for."""

HOST = "host"
"""What stands for a tier where there is no accelerator."""

LM_MEMORY_GB = {
    "acestep-5Hz-lm-0.6B": 3.0,
    "acestep-5Hz-lm-1.7B": 8.0,
    "acestep-5Hz-lm-4B": 12.0,
}
"""Memory that each 5 Hz language model needs, GB (ACE-Step 1.5's own figures)."""


# GiB: whatever is made; a second of music; a second and a channel of the transformer's width.
# Measured as growth of the process in float32 on the CPU (Linux, torch 2.13): the built-in
# checkpoint takes 0.31 for 10 s, 0.53 for 4 songs of 60 s, 0.94 for 600 s. The width's part is
# from turbo's growth on an H100, 6.4 at 240 s and 7.0 at 600 s in bfloat16, doubled.
_NEED_FIXED, _NEED_SECOND, _NEED_SECOND_CHANNEL = 0.35, 0.0008, 1.2e-6


@dataclass(frozen=True)
class GPUConfig:
    """The limits of one memory tier.

    Attributes:
        tier: `tier1` … `tier6`, `unlimited`, or `host`.
        gpu_memory_gb: accelerator memory that led to it, GB; 0 without an accelerator.
        max_duration_with_lm: longest song when the language model is loaded, seconds.
        max_duration_without_lm: longest song otherwise, seconds.
        max_batch_size_with_lm: songs at once when the language model is loaded.
        max_batch_size_without_lm: songs at once otherwise.
        init_lm_default: whether the language model is loaded unless told otherwise.
        available_lm_models: names of the language models that fit.
        offload_to_cpu_default: whether idle modules move to the host by default.
    """

    tier: str
    gpu_memory_gb: float
    max_duration_with_lm: float
    max_duration_without_lm: float
    max_batch_size_with_lm: int
    max_batch_size_without_lm: int
    init_lm_default: bool
    available_lm_models: tuple[str, ...]
    offload_to_cpu_default: bool

    def max_duration(self, lm_initialized: bool = False) -> float:
        """Longest song in seconds."""
        return self.max_duration_with_lm if lm_initialized else self.max_duration_without_lm

    def max_batch_size(self, lm_initialized: bool = False) -> int:
        """Most songs at once."""
        return self.max_batch_size_with_lm if lm_initialized else self.max_batch_size_without_lm


_LMS = tuple(LM_MEMORY_GB)
_SMALL_LM_GB = dict(zip(_LMS, (6.0, 6.0, 12.0), strict=True))
"""The same beside turbo where all weights are held in eight bits, below `_SMALL_GB` with offloading:
see `acestep/engines/torch/QUANTISED.md`."""
_SMALL_GB = 8.0
"""Memory from which such weights need not wait on the host."""
# (memory up to GB, tier, seconds with LM, without, batch with LM, without, LM on, LMs)
_TIERS: tuple[tuple[float, str, float, float, int, int, bool, tuple[str, ...]], ...] = (
    (4, "tier1", 180, 180, 1, 1, False, ()),
    (6, "tier2", 360, 360, 1, 1, False, ()),
    (8, "tier3", 240, 360, 1, 2, False, _LMS[:1]),
    (12, "tier4", 240, 360, 2, 4, False, _LMS[:1]),
    (16, "tier5", 240, 360, 2, 4, True, _LMS[:2]),
    (24, "tier6", 480, 480, 4, 8, True, _LMS),
    (float("inf"), "unlimited", 600, 600, 8, 8, True, _LMS),
)


def get_gpu_memory_gb(policy: DevicePolicy | None = None) -> float:
    """Memory of the accelerator in GB; 0 when the device is the CPU.

    On MPS it is the share of unified memory that Metal recommends. The environment
    variables `ACESTEP_DEVICE_MEMORY_GB` and `MAX_CUDA_VRAM` (in this order) simulate
    another size on any machine.

    Args:
        policy: the device to ask about; by default the one `auto` picks.

    Raises:
        RequestError: one of the variables is not a number of at least 0.
    """
    for variable in ("ACESTEP_DEVICE_MEMORY_GB", "MAX_CUDA_VRAM"):
        text = os.environ.get(variable, "").strip()
        if text:
            return _gigabytes(variable, text)
    policy = policy or resolve("auto")
    return policy.total_memory if policy.is_accelerator else 0.0


def is_short(policy: DevicePolicy) -> bool:
    """Whether memory counts for more than the time it takes to make buffers anew for each song:
    on a card with less than 8 GB of its own."""
    if policy.unified_memory or not policy.is_accelerator:
        return False
    return get_gpu_memory_gb(policy) < _SMALL_GB


def check_ahead(policy: DevicePolicy) -> None:
    """Refuse to plan a song while another is made where it gains nothing, or there is no room.

    Raises:
        RequestError: says why.
    """
    reason = None
    if not policy.overlaps:
        reason = f"{policy.name} does not do both at a time"
    elif is_short(policy):
        reason = f"{policy.name} has no memory for both at a time"
    if reason:
        raise RequestError(f"songs cannot be planned ahead: {reason}; leave --ahead out")


def get_gpu_tier(gpu_memory_gb: float) -> str:
    """The name of the tier for so much accelerator memory, GB."""
    return next(row[1] for row in _TIERS if gpu_memory_gb <= row[0])


def get_gpu_config(
    gpu_memory_gb: float | None = None, *, policy: DevicePolicy | None = None
) -> GPUConfig:
    """The limits for so much accelerator memory, by default for this machine's device.

    Tiers are an accelerator's. A policy without one has the limits of the model alone, unless
    memory is simulated: what the host can hold is a matter of its own memory.
    """
    gb = get_gpu_memory_gb(policy) if gpu_memory_gb is None else float(gpu_memory_gb)
    if policy is not None and policy.on_mlx and gb:
        return _mlx(gb, policy)
    if policy is not None and not policy.is_accelerator and not gb:
        return _host(policy.total_memory)
    _, tier, long_lm, long, batch_lm, batch, lm_on, lms = next(r for r in _TIERS if gb <= r[0])
    unified = policy.unified_memory if policy else False
    offload = 0 < gb < 16 and not unified
    if policy is not None and policy.quantization and gb:
        offload = offload and gb < _SMALL_GB
        lms = tuple(name for name in _LMS if name in lms or _SMALL_LM_GB[name] <= gb)
    return GPUConfig(tier, gb, long_lm, long, batch_lm, batch, lm_on, lms, offload)


def _mlx(memory_gb: float, policy: DevicePolicy) -> GPUConfig:
    """The limits under MLX, whose memory for a song is known from its shapes: what turbo leaves of
    a working set, beside the smallest language model or none."""
    bits = {"int8": 8, "int4": 4}.get(policy.quantization or "")
    room = memory_gb * budget.SAFE
    lms = [
        name for name in _LMS if budget.fit("turbo", name, bits, memory_gb).longest >= MIN_DURATION
    ]
    beside = budget.music_gib("turbo", bits)

    def longest(songs: int, language: str | None) -> float:
        held = beside + (budget.language_gib(language, bits) if language else 0.0)
        lengths = range(int(MAX_DURATION), 0, -10)
        return next(
            (
                float(seconds)
                for seconds in lengths
                if held + budget.need_gib(seconds, songs, "turbo", language, memory_gb) <= room
            ),
            0.0,
        )

    def most(language: str | None) -> int:
        """Songs at once of two minutes: more of them come one after the other."""
        return next((songs for songs in (8, 4, 2) if longest(songs, language) >= 120), 1)

    small = lms[0] if lms else None
    return GPUConfig(
        get_gpu_tier(memory_gb), memory_gb, longest(1, small), longest(1, None), most(small),
        most(None), bool(lms), tuple(lms), False,
    )  # fmt: skip


def _host(memory_gb: float) -> GPUConfig:
    """The limits of the host: those of the largest tier, and what language models fit."""
    _, _, long_lm, long, batch_lm, batch, _, _ = _TIERS[-1]
    lms = tuple(name for name, need in LM_MEMORY_GB.items() if need <= memory_gb)
    return GPUConfig(HOST, 0.0, long_lm, long, batch_lm, batch, False, lms, False)


def host_need_gb(seconds: float, songs: int, width: int) -> float:
    """Host memory that making songs takes beside the loaded checkpoint, GiB.

    Args:
        seconds: of each song.
        songs: made together.
        width: of the transformer, channels.
    """
    music = seconds * songs
    return _NEED_FIXED + music * (_NEED_SECOND + _NEED_SECOND_CHANNEL * width)


def host_audio_gb(seconds: float, songs: int) -> float:
    """Host memory that finished songs take, GiB: 48,000 stereo samples a second, four bytes each,
    twice while they are on their way to a file."""
    return seconds * songs * 48000 * 2 * 4 * 2 / 2**30


def check_duration_limit(
    duration: float, gpu_config: GPUConfig, lm_initialized: bool = False
) -> tuple[bool, str]:
    """Whether a song of so many seconds is within the tier, and a line that says so."""
    limit = gpu_config.max_duration(lm_initialized)
    if duration <= limit:
        return True, f"{duration:g} s is within the limit of {limit:g} s"
    return False, (
        f"{duration:g} s is above the limit of {limit:g} s for {gpu_config.tier} "
        f"({gpu_config.gpu_memory_gb:.1f} GB of accelerator memory)"
    )


def check_batch_size_limit(
    batch_size: int, gpu_config: GPUConfig, lm_initialized: bool = False
) -> tuple[bool, str]:
    """Whether so many songs at once are within the tier, and a line that says so."""
    limit = gpu_config.max_batch_size(lm_initialized)
    if batch_size <= limit:
        return True, f"a batch of {batch_size} is within the limit of {limit}"
    return False, (
        f"a batch of {batch_size} is above the limit of {limit} for {gpu_config.tier} "
        f"({gpu_config.gpu_memory_gb:.1f} GB of accelerator memory)"
    )


def _gigabytes(variable: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise RequestError(f"{variable}={text!r} is not a number of gigabytes, for example 8")
    return value
