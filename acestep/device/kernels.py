"""What a GPU's kernels can do, and recording what they are told to do."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Libraries pick their kernels and workspaces in the first runs, which a graph must not record.
_WARM_UP_STEPS = 3
# Compute capability from which PyTorch's flash kernels run, and the major one of GPUs that
# copy tiles by themselves, and products of 64 rows.
_AMPERE, _HOPPER = (8, 0), 9
RECORDING = threading.RLock()
"""Held while a step is recorded, and by those that wait for all of the device."""
# One a device: the language model's, of which one generation runs at a time.
_STREAMS: dict[Any, Any] = {}


def has_packed_attention(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether PyTorch's flash kernel for packed sequences runs here in this dtype."""
    return _is_half(dtype) and _capability(device) >= _AMPERE


def has_tile_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the decoder's own kernels run here: Triton's, with a Hopper GPU's copies of
    tiles. On other GPUs nobody has run them."""
    if not _is_half(dtype) or _capability(device)[0] != _HOPPER:
        return False
    return importlib.util.find_spec("triton") is not None


def has_language_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the language model's own kernels run here: Triton's, whose launches overlap as a
    Hopper's do, and whose tiles take its shared memory. On other GPUs nobody has run them.

    ACESTEP_LANGUAGE_KERNELS=0 leaves its step to transformers' modules.
    """
    return os.environ.get("ACESTEP_LANGUAGE_KERNELS") != "0" and has_tile_kernels(device, dtype)


def overlaps(device: torch.device) -> bool:
    """Whether two threads' work runs on the device at the same time, each in its own stream."""
    return device.type == "cuda"


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Work of this thread in a stream of its own, after what was submitted before; see `overlaps`.

    What it leaves must be waited for before another stream reads it.
    """
    import torch

    if not overlaps(device):
        yield
        return
    module = torch.get_device_module(device)
    if device not in _STREAMS:
        _STREAMS[device] = module.Stream(device)
    stream = _STREAMS[device]
    stream.wait_stream(module.current_stream(device))
    with module.stream(stream):
        yield


def launches_ahead(device: torch.device) -> bool:
    """Whether a kernel may begin before the one in front of it has ended, and wait for it."""
    return _capability(device)[0] == _HOPPER


def recording_pool(device: torch.device) -> Any:
    """Memory for several recordings of which no two run at the same time; see `captured`."""
    import torch

    return torch.get_device_module(device).graph_pool_handle() if device.type == "cuda" else None


def captured(
    device: torch.device, step: Callable[[], None], pool: Any = None, warm_up: int = _WARM_UP_STEPS
) -> Callable[[], None]:
    """A step in the form that costs the host least: on CUDA a graph to replay.

    Args:
        device: where the step computes.
        step: works in place on tensors that stay where they are, and never waits for
            the device. On CUDA it is run a few times here, before it is recorded.
        pool: what `recording_pool` gave; by default a recording has its own memory.
        warm_up: how often it is run first; kernels of our own that have run have nothing to pick.
    """
    import torch

    if device.type != "cuda":
        return step
    module = torch.get_device_module(device)
    with module.device(device):
        stream = module.Stream()
        stream.wait_stream(module.current_stream())
        with module.stream(stream):
            for _ in range(warm_up):
                step()
        module.current_stream().wait_stream(stream)
        graph = module.CUDAGraph()
        # What other threads do meanwhile, for another song, is none of the recording's business;
        # but to wait for the device would break it. PyTorch's own stream for recordings is one
        # for all devices: that of the first.
        mode = "thread_local"
        with RECORDING, module.graph(graph, pool=pool, stream=stream, capture_error_mode=mode):
            step()
    replay: Callable[[], None] = graph.replay
    return replay


def _is_half(dtype: torch.dtype) -> bool:
    import torch

    return dtype in (torch.bfloat16, torch.float16)


def _capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of an NVIDIA GPU; (0, 0) of anything else.

    PyTorch built for ROCm calls AMD's GPUs `cuda` too and gives them numbers of their own
    architecture: a Radeon Instinct MI300 says 9.4 and would pass for a Hopper.
    """
    import torch

    if device.type != "cuda" or torch.version.hip is not None:
        return 0, 0
    major, minor = torch.get_device_module(device).get_device_capability(device)
    return int(major), int(minor)
