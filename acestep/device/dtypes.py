"""At what precision each component computes on a device, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from acestep.device.presence import canonical

if TYPE_CHECKING:
    import torch

DTYPE_CHOICES = ("auto", "float32", "bfloat16", "float16")
ASKED = "--dtype"
"""The source of a dtype that somebody asked for."""
COMPONENTS = ("dit", "text_encoder", "vae", "lm")


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


def dtypes_of(device: torch.device) -> dict[str, DtypeChoice]:
    """The policy's own choice for each of `COMPONENTS`."""
    import torch

    if device.type == "cpu":
        single = DtypeChoice(
            torch.float32,
            "the reference precision; on CPUs without bfloat16 instructions it is emulated",
            "torch.backends.cpu; ask for --dtype bfloat16 where the CPU has it",
        )
        return dict.fromkeys(COMPONENTS, single)
    if not has_bfloat16(device):
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


def quick_dtype(device: torch.device) -> DtypeChoice | None:
    """What the host computes faster in than in float32, for weights that lose nothing by it.

    Measured on two cores with AMX at turbo size, a song of 30 s: float32 76 s and 13.7 GiB,
    bfloat16 39 s and 7.7 GiB.
    """
    import torch

    if device.type != "cpu" or not (found := _bfloat16_units()):
        return None
    return DtypeChoice(
        torch.bfloat16,
        f"this CPU computes in it ({found}), and weights stored in it lose nothing: half the memory "
        "and half the time; --dtype float32 for the reference",
        "torch.cpu.get_capabilities",
    )


def _bfloat16_units() -> str:
    """The CPU's instructions for products in bfloat16, or nothing."""
    import torch

    # A PyTorch that does not tell leaves the reference.
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    names = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "Arm BF16"}
    return ", ".join(text for name, text in names.items() if known.get(name))


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 by itself."""
    import torch

    if device.type == "mps":
        return bool(torch.backends.mps.is_macos_or_newer(14, 0))
    if device.type == "cuda":
        return bool(torch.get_device_module(device).is_bf16_supported(including_emulation=False))
    return True


def supports_float64(device: str | torch.device) -> bool:
    """Whether float64 tensors exist on the device; MPS has none."""
    return canonical(device)[0] != "mps"
