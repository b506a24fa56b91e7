"""Device policy: which device to use, at what precision and within which limits.

Only this folder names a backend. Everything else receives the `DevicePolicy` that `resolve`
returns and asks it, so no other file branches on the device. PyTorch is imported when a
device is resolved, not before: the command line can print its help without it.

`presence` knows which devices the machine has, `choosing` picks one, `policy` serves it at
run time with what `memory`, `kernels` and `dtypes` know of each kind; `engines` says whether
torch or MLX computes.
"""

from __future__ import annotations

from acestep.device.bits import QUANTIZATIONS, WEIGHT_BYTES, quantization_of
from acestep.device.choosing import (
    BACKEND_CHOICES,
    MPS_MAX_CONV_OUTPUT,
    default_lm_backend,
    every_device,
    resolve,
    with_engine,
)
from acestep.device.dtypes import COMPONENTS, DTYPE_CHOICES, DtypeChoice, supports_float64
from acestep.device.engines import ENGINE_CHOICES
from acestep.device.memory import GIB
from acestep.device.policy import DevicePolicy
from acestep.device.presence import DEVICE_CHOICES, DeviceInfo, canonical, describe_devices

__all__ = [
    "BACKEND_CHOICES",
    "COMPONENTS",
    "DEVICE_CHOICES",
    "DTYPE_CHOICES",
    "ENGINE_CHOICES",
    "GIB",
    "MPS_MAX_CONV_OUTPUT",
    "QUANTIZATIONS",
    "WEIGHT_BYTES",
    "DeviceInfo",
    "DevicePolicy",
    "DtypeChoice",
    "canonical",
    "default_lm_backend",
    "describe_devices",
    "every_device",
    "quantization_of",
    "resolve",
    "supports_float64",
    "with_engine",
]
