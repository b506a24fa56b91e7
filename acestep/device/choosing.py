"""Choosing a device: from what the caller asked for to the policy of one device, or a refusal."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from acestep.device import engines, memory
from acestep.device.dtypes import dtypes_of
from acestep.device.policy import DevicePolicy
from acestep.device.presence import DEVICE_CHOICES, canonical, names_here, probe, unknown_device
from acestep.errors import DeviceError, RequestError

if TYPE_CHECKING:
    import torch

BACKEND_CHOICES = ("pt", "vllm", "mlx")

# A convolution output with a dimension above this is refused inside the MPS kernels
# ("Output channels > 65536 not supported at the MPS device"), on macOS before 15.1 and
# with several PyTorch releases later too; splitting is exact, so it is always applied.
MPS_MAX_CONV_OUTPUT = 65536


def resolve(
    choice: str | torch.device | None = "auto",
    *,
    dtype: str | None = None,
    quantization: str | None = None,
    engine: str | None = "torch",
) -> DevicePolicy:
    """Decide on a device and everything that follows from it.

    Args:
        choice: one of `DEVICE_CHOICES`, an indexed name such as `cuda:1`, or a
            `torch.device`; case and surrounding space do not matter. For `auto` (or
            None) the environment variable `ACESTEP_DEVICE` decides when it is set, else
            the order is CUDA, MPS, CPU.
        dtype: one of `DTYPE_CHOICES` for every component, or None for the policy's own.
        quantization: in how few bits weights are held, see `DevicePolicy.with_quantization`.
        engine: one of `ENGINE_CHOICES`, see `engines.choose`. What can use either asks for
            `auto`; the default is for what is written for torch.

    Raises:
        DeviceError: the device is unknown or absent; the message says what is available.
        RequestError: the dtype, quantization or engine is unknown or the device lacks it.
    """
    import torch

    requested = str(choice if choice is not None else "auto").strip().lower()
    origin = "asked for"
    if requested in ("auto", ""):
        requested = os.environ.get("ACESTEP_DEVICE", "").strip().lower() or "auto"
        origin = "ACESTEP_DEVICE"
    if requested == "auto":
        name, reason = _best()
        device = torch.device(name)
    else:
        device, reason = _explicit(requested, engine), origin
    policy = _build(device, requested, reason, *engines.choose(engine, device))
    if dtype is not None:
        policy = policy.with_dtype(dtype)
    return policy.with_quantization(quantization)


def with_engine(policy: DevicePolicy, engine: str) -> DevicePolicy:
    """A policy with another engine on the same device, at the same precision.

    Raises:
        RequestError: the engine cannot be had there, or not with such weights.
    """
    if engine == policy.engine:
        return policy
    other = resolve(policy.device, engine=engine)
    other = replace(other, requested=policy.requested, reason=policy.reason, dtypes=policy.dtypes)
    return other.with_quantization(policy.quantization)


def every_device() -> list[str]:
    """All devices of the kind that `auto` picks, for one worker on each."""
    import torch

    policy = resolve("auto")
    named: int | None = policy.device.index
    if policy.device.type != "cuda" or named is not None:
        return [policy.name]
    return [f"cuda:{index}" for index in range(torch.accelerator.device_count())]


def default_lm_backend(device: str | torch.device, engine: str = "torch") -> tuple[str, str]:
    """The language model's default engine on a device, and why: (`vllm`, `mlx` or `pt`, reason).

    Args:
        device: where it is to compute.
        engine: what computes the rest, `torch` or `mlx`.
    """
    if engine == "mlx":
        if not engines.installed("mlx_lm"):
            return "pt", "mlx-lm is not installed"
        return "mlx", "the engine is MLX"
    if canonical(device)[0] != "cuda":
        return "pt", "vLLM runs on CUDA only"
    if importlib.util.find_spec("vllm") is None:
        return "pt", "vLLM is not installed"
    return "vllm", "CUDA with vLLM installed"


def _best() -> tuple[str, str]:
    for name in ("cuda", "mps"):
        available, detail = probe(name)
        if available:
            return name, f"auto: {detail}"
    return "cpu", "auto: no CUDA or MPS device here"


def _explicit(requested: str, engine: str | None) -> torch.device:
    import torch

    kind, colon, index = requested.partition(":")
    if kind not in DEVICE_CHOICES[1:] or (colon and not (index.isascii() and index.isdecimal())):
        raise DeviceError(unknown_device(requested))
    available, detail = probe(kind)
    if not available and engines.named(engine)[0] == "mlx":
        # PyTorch reads the checkpoints, whatever computes.
        also = engines.problem(torch.device(kind)) or "it sees it"
        detail = f"{detail}, which the engine 'mlx' needs too; of MLX: {also}"
    if not available:
        raise DeviceError(
            f"device '{requested}' is not available here: {detail}; available: {names_here()}"
        )
    count = torch.accelerator.device_count() if kind == "cuda" else 1
    if index and int(index) >= count:
        raise DeviceError(
            f"device '{requested}' is not available here: the last one is "
            f"'{kind}:{count - 1}'; available: {names_here()}"
        )
    return torch.device(kind, int(index)) if kind == "cuda" and index else torch.device(kind)


def _build(
    device: torch.device, requested: str, reason: str, engine: str, engine_reason: str
) -> DevicePolicy:
    backend, backend_reason = default_lm_backend(device, engine)
    on_mlx = engine == "mlx"
    measured = memory.mlx_free_and_total if on_mlx else memory.free_and_total
    return DevicePolicy(
        device=device,
        requested=requested,
        reason=reason,
        dtypes=MappingProxyType(dtypes_of(device)),
        lm_backend=backend,
        lm_backend_reason=backend_reason,
        # MLX's arrays lie in memory that host and device share, on CUDA too.
        unified_memory=on_mlx or device.type != "cuda",
        max_conv_output=MPS_MAX_CONV_OUTPUT if device.type == "mps" and not on_mlx else None,
        channels_last=_channels_last(device),
        total_memory=measured(device)[1],
        engine=engine,
        engine_reason=engine_reason,
    )


def _channels_last(device: torch.device) -> bool:
    """Side by side on the CPU, where it is quicker by measurement. On MPS it was never measured,
    and wrong results of such convolutions were reported there (pytorch/pytorch issue 180984).
    On CUDA it is quickest where kernels are tried (`fixed_shapes`), but what cuDNN takes without
    trying was up to twenty times as slow."""
    text = os.environ.get("ACESTEP_CHANNELS_LAST", "").strip()
    if text not in ("", "0", "1"):
        raise RequestError(f"ACESTEP_CHANNELS_LAST is '{text}'; expected 0 or 1")
    return text == "1" if text else device.type == "cpu"
