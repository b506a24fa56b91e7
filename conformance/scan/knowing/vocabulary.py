"""The words of the trade: backend names, device strings and how identifiers speak of them."""

from __future__ import annotations

import re
from functools import lru_cache

#: Device types other than the CPU that PyTorch or its out-of-tree backends know.
ACCELERATORS = frozenset(
    {"cuda", "mps", "xpu", "npu", "hpu", "mlu", "musa", "sdaa", "xla", "tpu", "mtia", "hip"}
)
#: Every word that a list of devices may hold, with the choosers that people add to it.
DEVICE_WORDS = ACCELERATORS.union(
    ("cpu", "auto"), ("gpu", "meta", "rocm", "vulkan", "directml", "dml")
)
#: What converts automatically for a device that it is given by name.
AUTOCASTS = frozenset(
    {
        "torch.autocast",
        "torch.amp.autocast",
        "torch.amp.autocast_mode.autocast",
        "torch.amp.GradScaler",
        "torch.amp.grad_scaler.GradScaler",
        "torch.amp.custom_fwd",
        "torch.amp.custom_bwd",
    }
)
#: Namespaces ``torch.<name>`` that belong to one backend.
NAMESPACES = frozenset({"cuda", "mps", "xpu", "npu", "hpu", "mlu", "musa", "mtia"})
#: Answers to "is it there?", which every build of PyTorch gives without raising.
PROBES = frozenset(
    {
        "is_available",
        "is_built",
        "is_initialized",
        "device_count",
        "is_bf16_supported",
        "is_tf32_supported",
        "_is_compiled",
        "_is_in_bad_fork",
        "is_macos_or_newer",
        "is_macos13_or_newer",
        "get_arch_list",
    }
)

_DEVICE_TEXT = re.compile(r"([a-z]+)(?::(?:\d+|$))?\Z")
_NEGATED = re.compile(
    r"(?:^|_)(?:no|not|non|disabled?|skip|without|lacks?|avoid)_(?:\w{1,12}_)?"
    r"(?:cuda|gpu|mps|xpu|npu|hpu|nvidia|rocm|triton|flash|nccl)"
    r"|_(?:not|un)_?(?:available|supported|found|built)|missing"
)
_CPU_FLAG = re.compile(r"(?:(?:use|force|is|on|only|run_on)_?)?cpu(?:_only)?\Z")
_WORDS: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "cuda",
        re.compile(
            r"cuda|gpu|cudnn|nccl|cublas|nvidia|nvml|nvtx|rocm|triton|cutlass|(?:^|_)hip(?:_|$)|(?:^|_)sm_?(?:\d\d|\dx|count)|flash_att|(?:^|_)nv_|(?:^|_)fa\d|(?:^|_)tma(?:_|$)|sagemaker|graph_capture|capture_graph|deep_?gemm|cute_?dsl|tensorrt|(?:^|_|2)trt(?:_|llm|$)|nvshmem|vllm|sglang|megatron|transformer_engine"
        ),
    ),
    ("mps", re.compile(r"(?:^|_)mps(?:_|$)|metal|macos|apple|darwin")),
    ("xpu", re.compile(r"xpu")),
    ("npu", re.compile(r"npu(?!t)|ascend")),
    ("hpu", re.compile(r"hpu|gaudi|habana")),
    ("mlu", re.compile(r"(?:^|_)mlu")),
    ("musa", re.compile(r"musa")),
    ("mtia", re.compile(r"mtia")),
    ("sdaa", re.compile(r"sdaa")),
    # Not `output`, and not `maxlag`.
    ("xla", re.compile(r"(?<!ma)xla|(?<!ou)tpu")),
)
_OTHER = re.compile(
    r"(?:^|_|\b)mps(?:_|:|\b)|xpu|npu(?!t)|hpu|(?:^|_)mlu|musa|sdaa|(?<!ma)xla|(?<!ou)tpu|mtia|vulkan|privateuse"
    r"|accelerator(?!s?_config)|directml|metal|get_device_module|current_platform|device_handle"
)
_MAC = re.compile(
    r"(?:^|_|\b)mps(?:_|:|\b)|metal|macos|darwin|apple_silicon|privateuse"
    r"|accelerator(?!s?_config)|get_device_module|current_platform|device_handle"
)
_GPU = re.compile(r"[gG][pP][uU]")
_NEWER = re.compile(r"(?:^|_)torch(?:_version)?_(?:\w*(?:greater|at_least|gte?_)|v?\d)")
_OLDER = re.compile(r"(?:^|_)torch(?:_version)?_\w*(?:less|lower|older|before|below|lte?_)")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@lru_cache(maxsize=4096)
def device_type(text: str) -> str | None:
    """Device type that a device string names (``cuda:1`` gives ``cuda``), or None."""
    match = _DEVICE_TEXT.match(text)
    if match is None:
        return None
    word = match[1]
    return word if word in ACCELERATORS or word in ("cpu", "meta") else None


@lru_cache(maxsize=8192)
def named_backends(identifier: str) -> tuple[str, ...]:
    """Backends that an identifier, file name or flag speaks of (``has_cuda`` gives cuda)."""
    snake = _CAMEL.sub("_", identifier).lower()
    return tuple(backend for backend, pattern in _WORDS if pattern.search(snake))


@lru_cache(maxsize=8192)
def declared_backends(name: str) -> tuple[str, ...]:
    """Backends that the name of a function, class or file declares its code to be for.

    ``gpu`` declares nothing: code for "the GPU" is just what has to work on every one.
    """
    return named_backends(_GPU.sub("", name))


@lru_cache(maxsize=4096)
def only_gpu(name: str) -> bool:
    """Whether a name speaks of "the GPU" and of no backend: ``use_gpu``, which a Mac has too."""
    return bool(named_backends(name)) and not declared_backends(name)


@lru_cache(maxsize=4096)
def is_negated(identifier: str) -> bool:
    """Whether a flag says that the backend is absent (``no_cuda``, ``cuda_unavailable``)."""
    return _NEGATED.search(_CAMEL.sub("_", identifier).lower()) is not None


@lru_cache(maxsize=4096)
def is_cpu_flag(identifier: str) -> bool:
    """Whether a flag asks for the CPU as the device (not ``cpu_offload`` and its like)."""
    return _CPU_FLAG.match(identifier.lower()) is not None


@lru_cache(maxsize=8192)
def torch_is_newer(identifier: str) -> bool | None:
    """Whether a flag says that PyTorch is a newer (or, False, an older) one; None if neither."""
    snake = _CAMEL.sub("_", identifier).lower()
    if "torch" not in snake:
        return None
    if _OLDER.search(snake):
        return False
    return True if _NEWER.search(snake) else None


@lru_cache(maxsize=8192)
def asks_other(identifier: str) -> bool:
    """Whether a word shows that accelerators besides CUDA were thought of."""
    return _OTHER.search(_CAMEL.sub("_", identifier).lower()) is not None


@lru_cache(maxsize=8192)
def asks_mac(identifier: str) -> bool:
    """Whether a word shows that a Mac's GPU was thought of, by name or with all accelerators."""
    return _MAC.search(_CAMEL.sub("_", identifier).lower()) is not None


@lru_cache(maxsize=4096)
def is_device_name(identifier: str) -> bool:
    """Whether a variable's name says that it holds a device."""
    low = identifier.lower().strip("_")
    if low.endswith("name"):
        return False  # a name is for showing
    return low in {"dev", "map_location", "device_map"} or (
        "device" in low and not low.startswith(("n_", "num_")) and not low.endswith("s")
    )
