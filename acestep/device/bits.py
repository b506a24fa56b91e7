"""In how few bits weights can be held on a device, and what callers call it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from acestep.device.engines import MLX_BITS
from acestep.errors import RequestError

if TYPE_CHECKING:
    import torch

QUANTIZATIONS = ("int8", "int4", "fp8", "w8a8")
"""What weights can be held as; see `engines.torch.quantised`."""

WEIGHT_BYTES = {"int8": 1.0, "w8a8": 1.0, "fp8": 1.0, "int4": 0.53}
"""Of a weight that is held so, its share of the scales counted."""

_ALSO = {
    "8": "int8",
    "4": "int4",
    "int8_weight_only": "int8",
    "int4_weight_only": "int4",
    "fp8_weight_only": "fp8",
    "float8_weight_only": "fp8",
    "w8a8_dynamic": "w8a8",
}
_NOTHING = ("", "none", "off", "false", "no")

# Compute capability from which whole numbers are multiplied by the GPU's matrix units here.
_AMPERE = 8
# Rows up to which PyTorch's product with packed weights was quicker on the host.
_PACKED_ROWS = 8


def quantization_of(asked: str | bool | None) -> str | None:
    """One of `QUANTIZATIONS`, or None, from what people write: also `8` and `4`,
    `int8_weight_only`, `fp8_weight_only`, `w8a8_dynamic`.

    Raises:
        RequestError: it is none of them.
    """
    name = str(asked or "").strip().lower().replace("-", "_")
    if name in _NOTHING:
        return None
    name = _ALSO.get(name, name)
    if name not in QUANTIZATIONS:
        raise RequestError(
            f"unknown quantization '{asked}'; choose from {', '.join(QUANTIZATIONS)} "
            f"(or {', '.join(_ALSO)})"
        )
    return name


def problem(device: torch.device, kind: str) -> str | None:
    """Why weights cannot be held so on a device, or None."""
    import torch

    if device.type == "mps" and kind == "fp8":
        return "Metal has no floats of 8 bits"
    if device.type == "mps" and kind == "w8a8":
        return "Metal has no product of whole numbers"
    if device.type == "cuda" and kind == "w8a8" and torch.version.hip is None:
        major, _ = torch.get_device_module(device).get_device_capability(device)
        if major < _AMPERE:
            return "its products of whole numbers need compute capability 8.0"
    return None


def mlx_problem(kind: str) -> str | None:
    """Why MLX cannot hold weights so, or None."""
    return None if kind in MLX_BITS else f"MLX holds weights as {' or '.join(MLX_BITS)}"


def packed_rows(device: torch.device) -> int:
    """Up to how many rows PyTorch's product with packed weights is the quicker one."""
    return _PACKED_ROWS if device.type == "cpu" else 0
