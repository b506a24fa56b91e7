"""Serving a device at run time: `DevicePolicy`, the one object that all else asks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from acestep.device import bits, engines, kernels, memory
from acestep.device.dtypes import (
    ASKED,
    COMPONENTS,
    DTYPE_CHOICES,
    DtypeChoice,
    has_bfloat16,
    quick_dtype,
)
from acestep.device.switches import Switch
from acestep.errors import RequestError

if TYPE_CHECKING:
    import torch

# The MPS allocator keeps freed blocks of varying sizes, and over a song they add up until
# the machine has no memory left. Flushing costs about 0.3 s, so it is done between steps
# only once this much is held but unused.
MPS_CACHE_SLACK = memory.GIB
# Of `torch.backends.cudnn`.
_WITHOUT_TF32, _TRYING = Switch("allow_tf32", False), Switch("benchmark", True)


@dataclass(frozen=True)
class DevicePolicy:
    """Everything the rest of the package may want to know about the device in use.

    Attributes:
        device: where tensors and modules go.
        requested: what the caller asked for, as text.
        reason: why this device, in one phrase.
        dtypes: component name (`COMPONENTS`) to `DtypeChoice`.
        lm_backend: default engine of the 5 Hz language model, `vllm`, `mlx` or `pt`.
        lm_backend_reason: why that engine.
        unified_memory: the device shares the host's memory, so offloading gains nothing.
        max_conv_output: longest allowed dimension of a convolution's output, or None.
        channels_last: layout of the VAE's signals, side by side or one channel after another;
            the environment variable `ACESTEP_CHANNELS_LAST` (0 or 1) decides when it is set.
        total_memory: memory that the device can use, GiB.
        quantization: in how few bits the transformers' weights are held, one of
            `QUANTIZATIONS`, or None for the dtype itself.
        engine: which library computes, `torch` or `mlx`.
        engine_reason: why that one.
    """

    device: torch.device
    requested: str
    reason: str
    dtypes: Mapping[str, DtypeChoice]
    lm_backend: str
    lm_backend_reason: str
    unified_memory: bool
    max_conv_output: int | None
    channels_last: bool
    total_memory: float
    quantization: str | None = None
    engine: str = "torch"
    engine_reason: str = "the default"

    @property
    def on_mlx(self) -> bool:
        """Whether MLX computes, not torch."""
        return self.engine == "mlx"

    @property
    def engine_name(self) -> str:
        """What really computes: `torch`, `mlx-cpu`, `mlx-metal` or `mlx-cuda`."""
        return engines.part(self.device) if self.on_mlx else "torch"

    @property
    def mlx_detail(self) -> str:
        """What MLX would compute with on this device, or why it cannot."""
        return engines.problem(self.device) or engines.part(self.device)

    @property
    def mlx_device(self) -> Any:
        """The device as MLX calls it, for `mlx.core.stream`."""
        return engines.mlx_device(self.device)

    @property
    def name(self) -> str:
        """The device as text, for example `cuda:1`."""
        return str(self.device)

    @property
    def is_accelerator(self) -> bool:
        """True unless the device is the host itself."""
        return self.device.type != "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the diffusion transformer."""
        return self.dtypes["dit"].dtype

    @property
    def has_flash_attention(self) -> bool:
        """Whether the flash-attn package has kernels for this device."""
        return self.device.type == "cuda" and not self.on_mlx

    @property
    def prefers_vllm(self) -> bool:
        """Whether vLLM is the language model's usual engine here, installed or not."""
        return self.device.type == "cuda"

    def lm_backend_problem(self, backend: str) -> str | None:
        """Why one of `BACKEND_CHOICES` cannot run the language model here, or None."""
        if backend in ("pt", self.lm_backend):
            return None
        if backend == "mlx":
            return engines.problem(self.device, "mlx_lm")
        return self.lm_backend_reason

    @property
    def records(self) -> bool:
        """Whether `captured` makes a recording that outlives its tensors' contents."""
        return self.device.type == "cuda"

    @property
    def tunes(self) -> bool:
        """Whether `fixed_shapes` makes a difference."""
        return self.device.type == "cuda"

    def has_packed_attention(self, dtype: torch.dtype) -> bool:
        """Whether PyTorch's flash kernel for packed sequences runs here in this dtype."""
        return kernels.has_packed_attention(self.device, dtype)

    def has_tile_kernels(self, dtype: torch.dtype) -> bool:
        """Whether the decoder's own kernels run here, see `kernels.has_tile_kernels`."""
        return kernels.has_tile_kernels(self.device, dtype)

    def has_language_kernels(self, dtype: torch.dtype) -> bool:
        """Whether the language model's own kernels run here in this dtype."""
        return kernels.has_language_kernels(self.device, dtype)

    @property
    def launches_ahead(self) -> bool:
        """Whether a kernel may begin before the one in front of it has ended."""
        return kernels.launches_ahead(self.device)

    @property
    def packed_rows(self) -> int:
        """Up to how many rows PyTorch's product with packed weights is the quicker one."""
        return bits.packed_rows(self.device)

    def with_quantization(self, asked: str | None) -> DevicePolicy:
        """This policy with weights held in few bits.

        Args:
            asked: one of `QUANTIZATIONS` or what else `quantization_of` reads; None for none.

        Raises:
            RequestError: the name is unknown, or this device cannot compute with such weights.
        """
        kind = bits.quantization_of(asked)
        problem = None
        if kind is not None:
            problem = bits.mlx_problem(kind) if self.on_mlx else bits.problem(self.device, kind)
        if problem:
            raise RequestError(
                f"quantization '{kind}' is not available on {self.name}: {problem}; use int8"
            )
        return dataclasses.replace(self, quantization=kind)

    def recording_pool(self) -> Any:
        """Memory for several recordings of which no two run at the same time; see `captured`."""
        return kernels.recording_pool(self.device)

    @property
    def overlaps(self) -> bool:
        """Whether one song can be planned on the device while another is made there."""
        return kernels.overlaps(self.device) and not self.on_mlx

    def own_stream(self) -> AbstractContextManager[None]:
        """Work of this thread beside that of others, where `overlaps`; see `kernels.own_stream`."""
        return kernels.own_stream(self.device)

    def captured(
        self, step: Callable[[], None], pool: Any = None, *, ours: bool = False
    ) -> Callable[[], None]:
        """A step in the form that costs the host least: on CUDA a graph to replay.

        Args:
            step: works in place on tensors that stay where they are, and never waits for
                the device. On CUDA it is run a few times here, before it is recorded.
            pool: what `recording_pool` gave; by default a recording has its own memory.
            ours: only kernels of our own, which have run before: it is not run here.
        """
        return kernels.captured(self.device, step, pool, *([0] if ours else []))

    def dtype_of(self, component: str) -> torch.dtype:
        """The dtype of one of `COMPONENTS`."""
        return self.dtypes[component].dtype

    @property
    def free_memory(self) -> float:
        """Memory that can still be allocated on the device now, GiB."""
        if self.on_mlx:
            return memory.mlx_free_and_total(self.device)[0]
        return memory.free_and_total(self.device)[0]

    def synchronize(self) -> None:
        """Wait until the device has finished all work submitted so far."""
        if self.on_mlx:
            import mlx.core as mx

            mx.synchronize()
        elif self.is_accelerator:
            import torch

            with kernels.RECORDING:
                torch.accelerator.synchronize(self.device)

    def flush(self) -> None:
        """Give memory that the allocator holds but does not use back to the system."""
        if self.on_mlx:
            import mlx.core as mx

            mx.clear_cache()
        elif self.is_accelerator:
            import torch

            with kernels.RECORDING:
                torch.accelerator.empty_cache()

    @contextmanager
    def current(self) -> Iterator[None]:
        """This device is the one that is meant meanwhile where this thread names none: kernels of
        our own are launched there, libraries start there, and no other GPU is touched."""
        import torch

        if self.device.type != "cuda" or self.device.index is None or self.on_mlx:
            yield
            return
        with torch.accelerator.device_index(self.device.index):
            yield

    def host_buffer(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A tensor on the host, float32 by default, that the device can write to and read
        while it computes."""
        import torch

        dtype = dtype or torch.float32
        return torch.empty(shape, dtype=dtype, pin_memory=self.device.type == "cuda")

    def after_request(self) -> None:
        """Give memory back where the allocator would pile it up. CUDA's keeps its blocks in
        order, and taking them anew would cost the next song more than its launch."""
        if self.device.type == "mps":
            self.flush()

    def between_steps(self) -> None:
        """Housekeeping after a diffusion step: keep the MPS allocator from ratcheting up."""
        if not self.on_mlx and memory.held_unused(self.device) > MPS_CACHE_SLACK:
            self.flush()

    def for_weights(self, stored: str) -> DevicePolicy:
        """This policy for a checkpoint, as its weights are stored.

        On a CPU that computes in bfloat16 by itself, weights stored in it run in it, unless
        another precision was asked for, or MLX computes, whose CPU kernels convert every number.
        Elsewhere nothing changes.

        Args:
            stored: the dtype of most of its weights, by safetensors' name, such as `BF16`.
        """
        asked = any(choice.source == ASKED for choice in self.dtypes.values())
        choice = None
        if not (asked or stored != "BF16" or self.on_mlx):
            choice = quick_dtype(self.device)
        if choice is None:
            return self
        return dataclasses.replace(self, dtypes=MappingProxyType(dict.fromkeys(COMPONENTS, choice)))

    def autocast(self, component: str = "dit") -> AbstractContextManager[Any]:
        """Autocast to the component's dtype on this device; does nothing in float32."""
        import torch

        dtype = self.dtype_of(component)
        if dtype == torch.float32:
            return nullcontext()
        return torch.autocast(device_type=self.device.type, dtype=dtype)

    @contextmanager
    def full_precision(self) -> Iterator[None]:
        """Compute float32 as float32: CUDA's convolutions round it to TF32 by default."""
        import torch

        if self.device.type != "cuda" or self.dtype != torch.float32:
            yield
            return
        with _WITHOUT_TF32.held(torch.backends.cudnn):
            yield

    @contextmanager
    def fixed_shapes(self) -> Iterator[None]:
        """Convolutions of few shapes, met often: CUDA times its kernels for each and keeps the
        fastest."""
        import torch

        if not self.tunes:
            yield
            return
        with _TRYING.held(torch.backends.cudnn):
            yield

    def for_training(self, dtype: str | None = None) -> DevicePolicy:
        """This policy for training: float32 on MPS unless a dtype is asked for.

        Args:
            dtype: one of `DTYPE_CHOICES`; None leaves the choice to the device.

        Raises:
            RequestError: the device lacks the dtype, or it is float16, whose gradients
                underflow without the loss scaling that only float32 weights allow.
        """
        if dtype == "float16":
            raise RequestError(
                "float16 overflows in this model, the more so in training; use bfloat16 or float32"
            )
        if dtype is None and self.device.type == "mps":
            dtype = "float32"
        return self if dtype is None else self.with_dtype(dtype)

    def generator(self, seed: int) -> torch.Generator:
        """A generator on the host: its stream is the same whatever the device."""
        import torch

        return torch.Generator("cpu").manual_seed(seed)

    def reset_peak_memory(self) -> None:
        """Start a new measurement for `peak_memory` where the device can."""
        if self.on_mlx:
            import mlx.core as mx

            mx.reset_peak_memory()
        else:
            memory.reset_peak(self.device)

    def peak_memory(self) -> float:
        """Highest memory use in GiB: of tensors since the last reset on CUDA and under MLX, of
        the driver now on MPS (it keeps no maximum), of the whole process on the CPU."""
        if self.on_mlx:
            import mlx.core as mx

            return float(mx.get_peak_memory()) / memory.GIB
        return memory.peak(self.device)

    def with_dtype(self, dtype: str) -> DevicePolicy:
        """This policy with every component at one dtype (one of `DTYPE_CHOICES`).

        Raises:
            RequestError: the name is unknown, or the device lacks the dtype.
        """
        import torch

        if dtype == "auto":
            return self
        if dtype not in DTYPE_CHOICES:
            raise RequestError(f"unknown dtype '{dtype}'; choose from {', '.join(DTYPE_CHOICES)}")
        wanted: torch.dtype = getattr(torch, dtype)
        if wanted == torch.bfloat16 and not has_bfloat16(self.device):
            raise RequestError(f"{self.name} has no bfloat16 here; use --dtype float32")
        choice = DtypeChoice(wanted, "asked for", ASKED)
        dtypes = MappingProxyType(dict.fromkeys(COMPONENTS, choice))
        return dataclasses.replace(self, dtypes=dtypes)
