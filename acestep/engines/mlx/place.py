"""Where MLX works for a device policy, and how that device is best given the work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

from acestep.device import GIB, DevicePolicy
from acestep.device.budget import SAFE
from acestep.engines.mlx.wave import Ways, snaked
from acestep.errors import GenerationError, RequestError, first_line

_SHARE_KEPT, _MOST_KEPT = 1 / 16, 2.0
"""Of the device's memory and in GiB, what MLX keeps of what was freed. Without a bound it keeps all,
and a song's decoding would hold every size of buffer that it ever had."""

_REFUSED_BY = ("alloc", "out of memory", "maximum allowed buffer size")


class Place:
    """MLX's device for a policy, with a stream that serves whichever thread asks.

    Args:
        policy: an accelerator's means MLX's own GPU, any other the host.

    Raises:
        RequestError: this installation of MLX has no GPU.
    """

    def __init__(self, policy: DevicePolicy) -> None:
        device = policy.mlx_device
        if not mx.is_available(device):
            raise RequestError(
                f"the installed MLX cannot use {policy.name}; install its build for this machine, "
                "or ask for another device or engine"
            )
        # MLX rounds float32 to TF32 on GPUs that have it, unless this is said before it starts.
        os.environ.setdefault("MLX_ENABLE_TF32", "0")
        mx.set_cache_limit(int(min(policy.total_memory * _SHARE_KEPT, _MOST_KEPT) * GIB))
        # A GPU is given up to ten buffers of commands ahead of time, the arrays of all of which are
        # there at once. Beyond this MLX waits for what it has begun before it begins more.
        mx.set_memory_limit(int(policy.total_memory * SAFE * GIB))
        self.policy, self.on_host = policy, not policy.is_accelerator
        # A thread's own streams are closed to others, and a handler serves many, one at a time.
        self.stream = mx.new_thread_unsafe_stream(device)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Within the block MLX works here; running out of memory becomes a `GenerationError`."""
        try:
            with mx.stream(self.stream):
                yield
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, MemoryError) or _is_refusal(error):
                raise GenerationError(
                    f"MLX ran out of memory on {self.policy.name} ({first_line(error)}); make a "
                    "shorter song, a smaller batch, or quantize the weights"
                ) from None
            raise

    def ways(self, compiles: bool) -> Ways:
        """How a VAE's work is given.

        Args:
            compiles: fuse what can be fused; on the host that takes a C++ compiler.
        """
        fuses = compiles or not self.on_host
        return Ways(self.on_host, mx.compile(snaked, shapeless=True) if fuses else snaked)


def _is_refusal(error: BaseException) -> bool:
    return any(sign in str(error).lower() for sign in _REFUSED_BY)
