"""Which devices this machine has, and how a device is named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from acestep.errors import DeviceError

if TYPE_CHECKING:
    import torch

DEVICE_CHOICES = ("auto", "cuda", "mps", "cpu")


@dataclass(frozen=True)
class DeviceInfo:
    """One of `DEVICE_CHOICES` on this machine: present or not, and why."""

    name: str
    available: bool
    detail: str


def describe_devices() -> list[DeviceInfo]:
    """Say of CUDA, MPS and CPU whether this machine has them."""
    return [DeviceInfo(name, *probe(name)) for name in DEVICE_CHOICES if name != "auto"]


def probe(name: str) -> tuple[bool, str]:
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
            raise DeviceError(unknown_device(str(device))) from None
    index: int | None = device.index
    if index is not None:
        return device.type, index
    accelerator = torch.accelerator.current_accelerator() if device.type == "cuda" else None
    if accelerator is None or accelerator.type != device.type:
        return device.type, 0
    # Asking for the current device would start a device that nobody uses yet.
    started = torch.get_device_module(device).is_initialized()
    return device.type, torch.accelerator.current_device_index() if started else 0


def unknown_device(requested: str) -> str:
    """The line that refuses a name that is no device's."""
    return (
        f"unknown device '{requested}'; choose from {', '.join(DEVICE_CHOICES)} "
        f"(available here: {names_here()})"
    )


def names_here() -> str:
    """The names of the devices that are here, as text."""
    return ", ".join(info.name for info in describe_devices() if info.available)
