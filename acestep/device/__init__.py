"""Device policy: which device to use, at what precision and within which limits.

This is the only module that names a backend. Everything else receives the
`DevicePolicy` that `resolve` returns and asks it, so no other file branches on the
device. PyTorch is imported when a device is resolved, not before: the command line can
print its help without it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from acestep.errors import DeviceError, RequestError

if TYPE_CHECKING:
    import torch

DEVICE_CHOICES = ("auto", "cuda", "mps", "cpu")
DTYPE_CHOICES = ("auto", "float32", "bfloat16", "float16")
BACKEND_CHOICES = ("pt", "vllm")
COMPONENTS = ("dit", "text_encoder", "vae", "lm")

GIB = 2**30

# A convolution output with a dimension above this is refused inside the MPS kernels
# ("Output channels > 65536 not supported at the MPS device"), on macOS before 15.1 and
# with several PyTorch releases later too; splitting is exact, so it is always applied.
MPS_MAX_CONV_OUTPUT = 65536

# The MPS allocator keeps freed blocks of varying sizes, and over a song they add up until
# the machine has no memory left. Flushing costs about 0.3 s, so it is done between steps
# only once this much is held but unused.
MPS_CACHE_SLACK = GIB

# Libraries pick their kernels and workspaces in the first runs, which a graph must not record.
_WARM_UP_STEPS = 3
# Major compute capability of GPUs that copy tiles by themselves, and products of 64 rows.
_HOPPER = 9


@dataclass(frozen=True)
class DtypeChoice:
    """The dtype of one component, why it was chosen, and where that reason comes from."""

    dtype: torch.dtype
    reason: str
    source: str

    @property
    def name(self) -> str:
        """The dtype without its module, for example `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class DevicePolicy:
    """Everything the rest of the package may want to know about the device in use.

    Attributes:
        device: where tensors and modules go.
        requested: what the caller asked for, as text.
        reason: why this device, in one phrase.
        dtypes: component name (`COMPONENTS`) to `DtypeChoice`.
        lm_backend: default engine of the 5 Hz language model, `vllm` or `pt`.
        lm_backend_reason: why that engine.
        unified_memory: the device shares the host's memory, so offloading gains nothing.
        max_conv_output: longest allowed dimension of a convolution's output, or None.
        channels_last: layout of the VAE's signals, side by side or one channel after another;
            the environment variable `ACESTEP_CHANNELS_LAST` (0 or 1) decides when it is set.
        total_memory: memory that the device can use, GiB.
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
        return self.device.type == "cuda"

    @property
    def prefers_vllm(self) -> bool:
        """Whether vLLM is the language model's usual engine here, installed or not."""
        return self.device.type == "cuda"

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
        import torch

        if self.device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
            return False
        return bool(_module(self.device).get_device_capability(self.device) >= (8, 0))

    def has_tile_kernels(self, dtype: torch.dtype) -> bool:
        """Whether the decoder's own kernels run here: Triton's, with a Hopper GPU's copies of
        tiles. On other GPUs nobody has run them."""
        import torch

        if self.device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
            return False
        if importlib.util.find_spec("triton") is None:
            return False
        return bool(_module(self.device).get_device_capability(self.device)[0] == _HOPPER)

    def recording_pool(self) -> Any:
        """Memory for several recordings of which no two run at the same time; see `captured`."""
        return _module(self.device).graph_pool_handle() if self.device.type == "cuda" else None

    def captured(self, step: Callable[[], None], pool: Any = None) -> Callable[[], None]:
        """A step in the form that costs the host least: on CUDA a graph to replay.

        Args:
            step: works in place on tensors that stay where they are, and never waits for
                the device. On CUDA it is run a few times here, before it is recorded.
            pool: what `recording_pool` gave; by default a recording has its own memory.
        """
        if self.device.type != "cuda":
            return step
        module = _module(self.device)
        with module.device(self.device):
            stream = module.Stream()
            stream.wait_stream(module.current_stream())
            with module.stream(stream):
                for _ in range(_WARM_UP_STEPS):
                    step()
            module.current_stream().wait_stream(stream)
            graph = module.CUDAGraph()
            with module.graph(graph, pool=pool):
                step()
        replay: Callable[[], None] = graph.replay
        return replay

    def dtype_of(self, component: str) -> torch.dtype:
        """The dtype of one of `COMPONENTS`."""
        return self.dtypes[component].dtype

    @property
    def free_memory(self) -> float:
        """Memory that can still be allocated on the device now, GiB."""
        return _memory(self.device)[0]

    def synchronize(self) -> None:
        """Wait until the device has finished all work submitted so far."""
        if self.is_accelerator:
            import torch

            torch.accelerator.synchronize(self.device)

    def flush(self) -> None:
        """Give memory that the allocator holds but does not use back to the system."""
        if self.is_accelerator:
            import torch

            torch.accelerator.empty_cache()

    def host_buffer(self, *shape: int) -> torch.Tensor:
        """A float32 tensor on the host that the device can write to while it computes."""
        import torch

        return torch.empty(shape, dtype=torch.float32, pin_memory=self.device.type == "cuda")

    def after_request(self) -> None:
        """Give memory back where the allocator would pile it up. CUDA's keeps its blocks in
        order, and taking them anew would cost the next song more than its launch."""
        if self.device.type == "mps":
            self.flush()

    def between_steps(self) -> None:
        """Housekeeping after a diffusion step: keep the MPS allocator from ratcheting up."""
        if self.device.type == "mps":
            module = _module(self.device)
            held = module.driver_allocated_memory() - module.current_allocated_memory()
            if held > MPS_CACHE_SLACK:
                self.flush()

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
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield

    @contextmanager
    def fixed_shapes(self) -> Iterator[None]:
        """Convolutions of few shapes, met often: CUDA times its kernels for each and keeps the
        fastest."""
        import torch

        if not self.tunes:
            yield
            return
        with torch.backends.cudnn.flags(enabled=True, benchmark=True):
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
        if self.device.type == "cuda":
            import torch

            torch.accelerator.reset_peak_memory_stats(self.device)

    def peak_memory(self) -> float:
        """Highest memory use in GiB: of tensors since the last reset on CUDA, of the
        driver now on MPS (it keeps no maximum), of the whole process on the CPU."""
        if self.device.type == "cuda":
            import torch

            return torch.accelerator.max_memory_allocated(self.device) / GIB
        if self.device.type == "mps":
            return float(_module(self.device).driver_allocated_memory()) / GIB
        return _peak_process_memory() / GIB

    def with_dtype(self, dtype: str) -> DevicePolicy:
        """This policy with every component at one dtype (one of `DTYPE_CHOICES`).

        Raises:
            RequestError: the name is unknown, or the device lacks the dtype.
        """
        import dataclasses

        import torch

        if dtype == "auto":
            return self
        if dtype not in DTYPE_CHOICES:
            raise RequestError(f"unknown dtype '{dtype}'; choose from {', '.join(DTYPE_CHOICES)}")
        wanted: torch.dtype = getattr(torch, dtype)
        if wanted == torch.bfloat16 and not _has_bfloat16(self.device):
            raise RequestError(f"{self.name} has no bfloat16 here; use --dtype float32")
        choice = DtypeChoice(wanted, "asked for", "--dtype")
        dtypes = MappingProxyType(dict.fromkeys(COMPONENTS, choice))
        return dataclasses.replace(self, dtypes=dtypes)


@dataclass(frozen=True)
class DeviceInfo:
    """One of `DEVICE_CHOICES` on this machine: present or not, and why."""

    name: str
    available: bool
    detail: str


def resolve(
    choice: str | torch.device | None = "auto", *, dtype: str | None = None
) -> DevicePolicy:
    """Decide on a device and everything that follows from it.

    Args:
        choice: one of `DEVICE_CHOICES`, an indexed name such as `cuda:1`, or a
            `torch.device`; case and surrounding space do not matter. For `auto` (or
            None) the environment variable `ACESTEP_DEVICE` decides when it is set, else
            the order is CUDA, MPS, CPU.
        dtype: one of `DTYPE_CHOICES` for every component, or None for the policy's own.

    Raises:
        DeviceError: the device is unknown or absent; the message says what is available.
        RequestError: the dtype is unknown or the device lacks it.
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
        device, reason = _explicit(requested), origin
    policy = _build(device, requested, reason)
    return policy if dtype is None else policy.with_dtype(dtype)


def describe_devices() -> list[DeviceInfo]:
    """Say of CUDA, MPS and CPU whether this machine has them."""
    return [DeviceInfo(name, *_probe(name)) for name in DEVICE_CHOICES if name != "auto"]


def every_device() -> list[str]:
    """All devices of the kind that `auto` picks, for one worker on each."""
    import torch

    policy = resolve("auto")
    named: int | None = policy.device.index
    if policy.device.type != "cuda" or named is not None:
        return [policy.name]
    return [f"cuda:{index}" for index in range(torch.accelerator.device_count())]


def canonical(device: str | torch.device) -> tuple[str, int]:
    """A device as (type, index), with a missing index read as the current or first one.

    Raises:
        DeviceError: the text is not a device PyTorch knows.
    """
    import torch

    if not isinstance(device, torch.device):
        try:
            device = torch.device(str(device).strip().lower())
        except RuntimeError:
            raise DeviceError(_unknown(str(device))) from None
    index: int | None = device.index
    if index is not None:
        return device.type, index
    accelerator = torch.accelerator.current_accelerator() if device.type == "cuda" else None
    if accelerator is None or accelerator.type != device.type:
        return device.type, 0
    # Asking for the current device would start a device that nobody uses yet.
    started = _module(device).is_initialized()
    return device.type, torch.accelerator.current_device_index() if started else 0


def supports_float64(device: str | torch.device) -> bool:
    """Whether float64 tensors exist on the device; MPS has none."""
    return canonical(device)[0] != "mps"


def default_lm_backend(device: str | torch.device) -> tuple[str, str]:
    """The language model's default engine on a device, and why: (`vllm` or `pt`, reason)."""
    if canonical(device)[0] != "cuda":
        return "pt", "vLLM runs on CUDA only"
    if importlib.util.find_spec("vllm") is None:
        return "pt", "vLLM is not installed"
    return "vllm", "CUDA with vLLM installed"


def _best() -> tuple[str, str]:
    for name in ("cuda", "mps"):
        available, detail = _probe(name)
        if available:
            return name, f"auto: {detail}"
    return "cpu", "auto: no CUDA or MPS device here"


def _explicit(requested: str) -> torch.device:
    import torch

    kind, colon, index = requested.partition(":")
    if kind not in DEVICE_CHOICES[1:] or (colon and not (index.isascii() and index.isdecimal())):
        raise DeviceError(_unknown(requested))
    available, detail = _probe(kind)
    if not available:
        raise DeviceError(
            f"device '{requested}' is not available here: {detail}; available: {_available()}"
        )
    count = torch.accelerator.device_count() if kind == "cuda" else 1
    if index and int(index) >= count:
        raise DeviceError(
            f"device '{requested}' is not available here: the last one is "
            f"'{kind}:{count - 1}'; available: {_available()}"
        )
    return torch.device(kind, int(index)) if kind == "cuda" and index else torch.device(kind)


def _unknown(requested: str) -> str:
    return (
        f"unknown device '{requested}'; choose from {', '.join(DEVICE_CHOICES)} "
        f"(available here: {_available()})"
    )


def _available() -> str:
    return ", ".join(info.name for info in describe_devices() if info.available)


def _probe(name: str) -> tuple[bool, str]:
    """Whether a device type is present, and a phrase that says so."""
    import torch

    if name == "cpu":
        return True, "always present"
    if name == "mps":
        if torch.backends.mps.is_available():
            return True, "Apple GPU through Metal"
        if not torch.backends.mps.is_built():
            return False, "this PyTorch is built without MPS (it needs macOS on Apple silicon)"
        return False, "MPS needs macOS 12.3 or later and an Apple GPU"
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None and accelerator.type == name:
        count = torch.accelerator.device_count()
        return True, f"{count} CUDA device{'s' if count > 1 else ''}"
    if torch.version.cuda is None and torch.version.hip is None:
        return False, "this PyTorch is built without CUDA"
    return False, "no CUDA device or driver found"


def _build(device: torch.device, requested: str, reason: str) -> DevicePolicy:
    backend, backend_reason = default_lm_backend(device)
    return DevicePolicy(
        device=device,
        requested=requested,
        reason=reason,
        dtypes=MappingProxyType(_dtypes(device)),
        lm_backend=backend,
        lm_backend_reason=backend_reason,
        unified_memory=device.type != "cuda",
        max_conv_output=MPS_MAX_CONV_OUTPUT if device.type == "mps" else None,
        channels_last=_channels_last(device),
        total_memory=_memory(device)[1],
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


def _dtypes(device: torch.device) -> dict[str, DtypeChoice]:
    import torch

    if device.type == "cpu":
        single = DtypeChoice(
            torch.float32,
            "the reference precision; on CPUs without bfloat16 instructions it is emulated",
            "torch.backends.cpu; ask for --dtype bfloat16 where the CPU has it",
        )
        return dict.fromkeys(COMPONENTS, single)
    if not _has_bfloat16(device):
        single = DtypeChoice(
            torch.float32,
            "no native bfloat16, and float16 overflows to NaN latents in this DiT",
            "CUDA: compute capability below 8.0; MPS: bfloat16 needs macOS 14",
        )
        return dict.fromkeys(COMPONENTS, single)
    half = DtypeChoice(
        torch.bfloat16,
        "native bfloat16: half the memory, and float32's range (float16 overflows here)",
        "CUDA: compute capability 8.0 and above; MPS: macOS 14 and above",
    )
    choices = dict.fromkeys(COMPONENTS, half)
    if device.type == "mps":
        choices["vae"] = DtypeChoice(
            torch.float32,
            "small beside the DiT, and its rounding is audible",
            "bfloat16 keeps 8 bits, about 48 dB",
        )
    return choices


def _has_bfloat16(device: torch.device) -> bool:
    import torch

    if device.type == "mps":
        return bool(torch.backends.mps.is_macos_or_newer(14, 0))
    if device.type == "cuda":
        return bool(_module(device).is_bf16_supported(including_emulation=False))
    return True


def _module(device: torch.device) -> Any:
    """The PyTorch namespace of a device, for what `torch.accelerator` does not offer."""
    import torch

    return torch.get_device_module(device)


def _memory(device: torch.device) -> tuple[float, float]:
    """(free, total) memory of a device in GiB; on MPS its recommended share of the host's."""
    import torch

    if device.type == "cuda":
        free, total = torch.accelerator.get_memory_info(device)
    elif device.type == "mps":
        module = _module(device)
        total = module.recommended_max_memory()
        free = max(total - module.driver_allocated_memory(), 0)
    else:
        import psutil

        host = psutil.virtual_memory()
        free, total = host.available, host.total
    return free / GIB, total / GIB


def _peak_process_memory() -> int:
    """Peak resident memory of this process in bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux reports KiB
