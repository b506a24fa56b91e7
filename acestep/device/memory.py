"""How much memory a device has, and how much of it is in use."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GIB = 2**30


def free_and_total(device: torch.device) -> tuple[float, float]:
    """(free, total) memory of a device in GiB; on MPS its recommended share of the host's."""
    import torch

    if device.type == "cuda":
        free, total = torch.accelerator.get_memory_info(device)
    elif device.type == "mps":
        module = torch.get_device_module(device)
        total = module.recommended_max_memory()
        free = max(total - module.driver_allocated_memory(), 0)
    else:
        import psutil

        host = psutil.virtual_memory()
        free, total = host.available, host.total
    return free / GIB, total / GIB


def mlx_free_and_total(device: torch.device) -> tuple[float, float]:
    """What `free_and_total` says, by MLX's own figures where the device is not the host.

    On a Mac the total is what Metal recommends as a working set: beyond it macOS swaps, and
    then ends the process. What other programs hold of the shared memory is not free either.
    """
    if device.type == "cpu":
        return free_and_total(device)
    import mlx.core as mx

    info = mx.device_info(mx.gpu)
    total = info.get("max_recommended_working_set_size") or info.get("total_memory")
    if total is None:
        return free_and_total(device)
    free = max(int(total) - mx.get_active_memory() - mx.get_cache_memory(), 0)
    if device.type == "mps":
        import psutil

        free = min(free, psutil.virtual_memory().available)
    return free / GIB, int(total) / GIB


def reset_peak(device: torch.device) -> None:
    """Start a new measurement for `peak` where the device can."""
    if device.type == "cuda":
        import torch

        torch.accelerator.reset_peak_memory_stats(device)


def peak(device: torch.device) -> float:
    """Highest memory use in GiB: of tensors since the last reset on CUDA, of the
    driver now on MPS (it keeps no maximum), of the whole process on the CPU."""
    import torch

    if device.type == "cuda":
        return torch.accelerator.max_memory_allocated(device) / GIB
    if device.type == "mps":
        return float(torch.get_device_module(device).driver_allocated_memory()) / GIB
    return _peak_of_process() / GIB


def held_unused(device: torch.device) -> int:
    """Bytes that the MPS driver holds for this process and no tensor uses; 0 elsewhere."""
    if device.type != "mps":
        return 0
    import torch

    module = torch.get_device_module(device)
    return int(module.driver_allocated_memory() - module.current_allocated_memory())


def _peak_of_process() -> int:
    """Peak resident memory of this process in bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux reports KiB
