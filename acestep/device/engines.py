"""Which library computes on a device, torch or MLX: chosen, or refused in one line."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from typing import TYPE_CHECKING, Any

from acestep.errors import RequestError, first_line

if TYPE_CHECKING:
    import torch

ENGINE_CHOICES = ("auto", "torch", "mlx")
"""What may be asked for; `auto` is MLX on Apple silicon where it is installed, else torch."""

MLX_BITS = ("int8", "int4")
"""What MLX holds weights as, in groups of its own."""

_INSTALL = "pip install 'acestep[mlx]'"
_PARTS = {"cpu": "mlx-cpu", "mps": "mlx-metal", "cuda": "mlx-cuda"}


def choose(asked: str | None, device: torch.device) -> tuple[str, str]:
    """The engine for a device, `torch` or `mlx`, and why.

    Args:
        asked: one of `ENGINE_CHOICES`; None and empty are `auto`, for which the environment
            variable `ACESTEP_ENGINE` decides when it is set.
        device: where it is to compute.

    Raises:
        RequestError: the name is unknown, or the engine cannot be had on this device.
    """
    wanted, origin = named(asked)
    if wanted == "torch":
        return "torch", origin
    if wanted == "mlx":
        if found := problem(device):
            raise RequestError(f"the engine '{wanted}' cannot be used on {device}: {found}")
        return "mlx", origin
    return _by_itself(device)


def named(asked: str | None = None) -> tuple[str, str]:
    """Which of `ENGINE_CHOICES` is asked for, and where: by the caller, or by `ACESTEP_ENGINE`.

    Raises:
        RequestError: it is none of them.
    """
    wanted, origin = str(asked or "auto").strip().lower() or "auto", "asked for"
    if wanted == "auto":
        wanted = os.environ.get("ACESTEP_ENGINE", "").strip().lower() or "auto"
        origin = "ACESTEP_ENGINE"
    if wanted not in ENGINE_CHOICES:
        where = "" if origin == "asked for" else f" in {origin}"
        raise RequestError(
            f"unknown engine '{wanted}'{where}; choose from {', '.join(ENGINE_CHOICES)}"
        )
    return wanted, origin


def problem(device: torch.device, package: str = "mlx") -> str | None:
    """Why MLX cannot compute on a device, and what to do; None where it can.

    Args:
        device: the device.
        package: that is needed beside it, `mlx_lm` for the language model.
    """
    if not (installed() and installed(package)):
        return f"it is not installed; install it with: {_INSTALL}"
    try:
        import mlx.core as mx
    except ImportError as error:
        return f"it cannot be loaded ({first_line(error)}); install it anew: {_INSTALL}"
    if device.type == "cpu":
        return None
    if device.type == "mps" and not mx.metal.is_available():
        return "this MLX has no Metal; install it on the Mac itself, or use --engine torch"
    if device.type == "cuda":
        if not mx.cuda.is_available():
            return "this MLX has no CUDA; pip install 'mlx[cuda13]', or use --engine torch"
        if (device.index or 0) >= mx.device_count(mx.DeviceType.gpu):
            return "MLX does not see that one; name another, or use --engine torch"
    return None


def installed(package: str = "mlx") -> bool:
    """Whether a package is there; nothing of it is imported."""
    return importlib.util.find_spec(package) is not None


def part(device: torch.device) -> str:
    """Which part of MLX computes on a device: `mlx-cpu`, `mlx-metal` or `mlx-cuda`."""
    return _PARTS[device.type]


def mlx_device(device: torch.device) -> Any:
    """A device as MLX calls it, `mlx.core.Device`; it is the CPU or a GPU there."""
    import mlx.core as mx

    return mx.Device(mx.cpu if device.type == "cpu" else mx.gpu, device.index or 0)


def _by_itself(device: torch.device) -> tuple[str, str]:
    if device.type != "mps":
        return "torch", "auto: MLX is for Apple silicon, unless it is asked for"
    if (sys.platform, platform.machine()) != ("darwin", "arm64"):
        return "torch", "auto: this is no Apple silicon"
    if not installed():
        return "torch", f"auto: MLX, which is quicker here, is not installed; {_INSTALL}"
    if found := problem(device):
        return "torch", f"auto: {found}"
    return "mlx", "auto: Apple silicon with MLX installed"
