"""Words of configuration files: which keys hold a device, and what only CUDA can give."""

from __future__ import annotations

import re

_DEVICE = re.compile(
    r"(?:.*[_.-])?(?:device|devices|device_?type|device_?map|map_location|accelerator)\Z", re.I
)
_NOT_DEVICE = re.compile(
    r"(?:num|n|visible|block|iot|storage|user|audio|input|output|usb)_?devices?\Z", re.I
)
_CUDA = re.compile(r"cuda(?::\d+)?\Z")
#: A default inside an interpolation: `${oc.env:DEVICE,cuda}`, `${DEVICE:-cuda}`.
_DEFAULTED = re.compile(r"\$\{[^}]*(?:,\s*|:-)cuda(?::\d+)?\s*\}")
_MAC = re.compile(r"mps(?::\d+)?\Z")
_EIGHT_BIT = re.compile(
    r"(?:paged_)?(?:adamw?|lion|ademamix|sgd|lamb|adagrad|rmsprop)_?(?:8_?bit|bnb_8bit|32bit)"
    r"|(?:bitsandbytes|bnb)(?:\.optim)?\.\w+",
    re.I,
)
_OPTIMIZER = re.compile(
    r"(?:.*[_.-])?(?:optimi[sz]er|optim)(?:_?(?:type|name|class))?\Z|_target_\Z|name\Z|type\Z", re.I
)
_ATTENTION = re.compile(
    r"(?:.*[_.-])?(?:attn|attention)(?:_?(?:implementation|impl|backend|mode|type|processor))?\Z|_attn_implementation\Z",
    re.I,
)
_FLASH = re.compile(r"flash_?(?:attn|attention)(?:_?[23])?\Z|xformers\Z|sage_?attn\w*\Z", re.I)
_HALF = re.compile(r"(?:torch\.)?(?:fp16|float16|half)\Z", re.I)
_TYPE = re.compile(r"(?:.*[_.-])?(?:dtype|precision|torch_dtype|compute_type)\Z", re.I)
_TRUE = ("true", "yes", "on", "1")
_SWITCH = re.compile(
    r"(?:use_|enable_)?(?:flash_?attn|flash_?attention(?:_?2)?|xformers(?:_memory_efficient_attention)?)\Z"
    r"|load_in_[48]bit\Z|use_8bit_adam(?:w)?\Z",
    re.I,
)


def is_device_key(key: str) -> bool:
    """Whether a key holds a device (``device``, ``model.device``, ``map_location``)."""
    return _DEVICE.match(key) is not None and _NOT_DEVICE.search(key) is None


def names_cuda(value: str) -> bool:
    """Whether a value is a CUDA device and nothing else."""
    return _CUDA.match(value) is not None


def falls_to_cuda(value: str) -> bool:
    """Whether a value is a variable that is CUDA where nobody sets it."""
    return _DEFAULTED.search(value) is not None


def names_mac(value: str) -> bool:
    """Whether a value is a Mac's GPU."""
    return _MAC.match(value) is not None


def is_half(key: str, value: str) -> bool:
    """Whether a setting asks for half precision."""
    return _TYPE.match(key) is not None and _HALF.match(value) is not None


def only_cuda_has(key: str, value: str) -> str | None:
    """What a setting asks for that CUDA alone gives, in words; None if it asks for no such thing."""
    if _OPTIMIZER.match(key) and _EIGHT_BIT.fullmatch(value):
        return f"the optimizer {value} is bitsandbytes', which runs on CUDA"
    if _ATTENTION.match(key) and _FLASH.match(value):
        return f"{value} needs CUDA"
    if (
        key.lower() in ("backend", "dist_backend", "distributed_backend", "ddp_backend")
        and value == "nccl"
    ):
        return "NCCL needs CUDA; gloo runs everywhere"
    if _SWITCH.match(key) and value.lower() in _TRUE:
        return f"{key} needs CUDA"
    return None
