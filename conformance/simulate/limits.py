"""The table of what MPS refuses: exception, words, source and the versions each limit holds for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from conformance.simulate.device import DEVICE, REPORTED_NAME, Machine

_SOURCES = "pytorch/pytorch aten/src/ATen/"
CONVOLUTION_EDGE = 1 << 16
INT_MAX = 2**31 - 1
NDARRAY_BYTES = 2**32
MOST_DIMENSIONS = 16
_GRAPH_FREE = ("aten::_local_scalar_dense", "aten::copy_", "aten::_to_copy")


@dataclass(frozen=True)
class Limit:
    """One kind of refusal.

    `message` is MPS's own wording, a format string where it names operators or numbers; `source`
    says where wording and condition were read; `macos` and `torch` the versions that refuse, in
    words; `holds` decides for one machine.
    """

    code: str
    exception: type[Exception]
    message: str
    source: str
    macos: str = "every version"
    torch: str = "every version"
    holds: Callable[[Machine], bool] = lambda _: True

    def error(self, **fields: object) -> Exception:
        """The exception to raise: MPS's words, then one line that says it is simulated."""
        text = self.message.format(**fields)
        return self.exception(
            f"{text}\n[{REPORTED_NAME}] simulated failure '{self.code}', raised without a Mac; "
            f"the limit comes from {self.source} (macOS: {self.macos}; torch: {self.torch})."
        )


LIMITS: dict[str, Limit] = {}


def _limit(
    code: str,
    exception: type[Exception],
    message: str,
    source: str,
    macos: str = "every version",
    torch_versions: str = "every version",
    holds: Callable[[Machine], bool] = lambda _: True,
) -> Limit:
    entry = Limit(code, exception, message, source, macos, torch_versions, holds)
    LIMITS[code] = entry
    return entry


FLOAT64 = _limit(
    "float64",
    TypeError,
    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. "
    "Please use float32 instead.",
    _SOURCES + "mps/EmptyTensor.cpp",
)
COMPLEX128 = _limit(
    "complex128",
    TypeError,
    "Trying to convert ComplexDouble to the MPS backend but it does not have support for that "
    "dtype.",
    _SOURCES + "native/mps/OperationUtils.mm, getMPSScalarType",
)
FLOAT8 = _limit(
    "float8",
    TypeError,
    "Trying to convert {name} to the MPS backend but it does not have support for that dtype.",
    "https://github.com/pytorch/pytorch/issues/132624",
)
BFLOAT16 = _limit(
    "bfloat16",
    TypeError,
    "MPS BFloat16 is only supported on MacOS 14 or newer",
    _SOURCES + "mps/EmptyTensor.cpp",
    "before 14.0",
    holds=lambda machine: not machine.at_least(14),
)
LAYOUT = _limit(
    "layout",
    NotImplementedError,
    "only strided tensors are supported on MPS",
    _SOURCES + "mps/EmptyTensor.cpp",
)
DIMENSIONS = _limit(
    "dimensions",
    RuntimeError,
    "MPS supports tensors with dimensions <= 16, but got {count}.",
    _SOURCES + "mps/EmptyTensor.cpp",
)
MISSING = _limit(
    "missing-operator",
    NotImplementedError,
    "The operator '{operator}' is not currently implemented for the MPS device. If you want this "
    "op to be considered for addition please comment on "
    "https://github.com/pytorch/pytorch/issues/141287 and mention use-case, that resulted in "
    "missing op as well as commit hash {commit}. As a temporary fix, you can set the environment "
    "variable `PYTORCH_ENABLE_MPS_FALLBACK=1` to use the CPU as a fallback for this op. WARNING: "
    "this will be slower than running natively on MPS.",
    "the installed torch's native_functions.yaml; wording from " + _SOURCES + "mps/MPSFallback.mm",
    torch_versions="as installed",
)
MISSING_SPARSE = _limit(
    "missing-sparse-operator",
    NotImplementedError,
    "Could not run '{operator}' with arguments from the '{key}' backend. This could be because "
    "the operator doesn't exist for this backend, or was omitted during the selective/custom "
    "build process (if using custom build).",
    "the installed torch's native_functions.yaml",
    torch_versions="as installed",
)
DTYPE_GAP = _limit(
    "dtype-gap",
    RuntimeError,
    "Failed to create function state object for: {operator}_{dtype}",
    "the installed torch/testing/_internal/common_mps.py, UNIMPLEMENTED_XFAILLIST",
    torch_versions="as installed",
)
CONVOLUTION_SIZE = _limit(
    "convolution-size",
    NotImplementedError,
    "Output channels > 65536 not supported at the MPS device. ",
    _SOURCES + "native/mps/operations/Convolution.mm; measured: conv1d output length 65537 fails",
    "before 15.1; later ones with several torch releases",
    "seen up to 2.10 on macOS 15, so assumed for newer ones",
)
CONVOLUTION_DTYPE = _limit(
    "convolution-dtype",
    RuntimeError,
    "Convolution is supported only for Floating types",
    _SOURCES + "native/mps/operations/Convolution.mm",
)
LINEAR_DTYPE = _limit(
    "linear-dtype",
    RuntimeError,
    "MPS device does not support linear for non-float inputs",
    _SOURCES + "native/mps/operations/Linear.mm",
)
ADAPTIVE_POOL = _limit(
    "adaptive-pool-size",
    RuntimeError,
    "Adaptive pool MPS: input sizes must be divisible by output sizes. Non-divisible input sizes "
    "are not implemented on MPS device yet. For now, you can manually transfer tensor to cpu in "
    "this case. Please refer to [this issue](https://github.com/pytorch/pytorch/issues/96056)",
    "https://github.com/pytorch/pytorch/issues/96056",
)
NDARRAY_SIZE = _limit(
    "ndarray-size",
    RuntimeError,
    "[MPSNDArray initWithDevice:descriptor:] Error: total bytes of NDArray > 2**32",
    "https://github.com/pytorch/pytorch/issues/84039 (a real Mac aborts the process here)",
)
DIMENSION_SIZE = _limit(
    "dimension-size",
    RuntimeError,
    "MPSGraph does not support tensor dims larger than INT_MAX",
    _SOURCES + "native/mps/OperationUtils.mm",
)
MIXED = _limit(
    "mixed-devices",
    RuntimeError,
    "Expected all tensors to be on the same device, but found at least two devices, {first} and "
    "{second}!",
    _SOURCES + "TensorIterator.cpp",
)
MIXED_LINEAR = _limit(
    "mixed-devices-linear",
    RuntimeError,
    "Tensor for argument {argument} is on cpu but expected on mps",
    _SOURCES + "native/mps/operations/Linear.mm",
    torch_versions="2.6 and newer; before: 'Placeholder storage has not been allocated on MPS "
    "device!'",
)
PLACEHOLDER = _limit(
    "mixed-devices-placeholder",
    RuntimeError,
    "Placeholder storage has not been allocated on MPS device!",
    _SOURCES + "native/mps/OperationUtils.mm",
)
NUMPY = _limit(
    "numpy",
    TypeError,
    "can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
    "memory first.",
    "pytorch/pytorch torch/csrc/utils/tensor_numpy.cpp",
)
SHARING = _limit(
    "shared-memory",
    RuntimeError,
    "_share_filename_: only available on CPU",
    "pytorch/pytorch torch/csrc/StorageSharing.cpp",
)
PINNING = _limit(
    "pin-memory",
    RuntimeError,
    "Cannot pin 'torch.mps.FloatTensor' only dense CPU tensors can be pinned",
    _SOURCES + "native/Memory.cpp",
)
PINNING_HOST = _limit(
    "pin-memory-host",
    RuntimeError,
    'Attempted to set the storage of a tensor on device "cpu" to a storage on different device '
    '"mps:0".  This is no longer allowed; the devices must match.',
    "https://github.com/pytorch/pytorch/issues/86060",
)
DLPACK = _limit(
    "dlpack",
    BufferError,
    "Unsupported device in DLTensor.",
    "the DLPack protocol: memory of a Metal device (kDLMetal) is no host memory",
)
GENERATOR = _limit(
    "generator",
    RuntimeError,
    "Expected a '{expected}' device type for generator but found '{found}'",
    _SOURCES + "core/Generator.h, check_generator",
)
GENERATOR_PERMUTATION = _limit(
    "generator-permutation",
    RuntimeError,
    "Expected a '{expected}' generator device but found '{found}'",
    "https://github.com/pytorch/pytorch/issues/110820, randperm's own check",
)
MEMORY = _limit(
    "out-of-memory",
    RuntimeError,
    "MPS backend out of memory (MPS allocated: {allocated}, other allocations: {other}, max "
    "allowed: {allowed}). Tried to allocate {wanted} on private pool. Use "
    "PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit for memory allocations (may "
    "cause system failure).",
    _SOURCES + "mps/MPSAllocator.mm; allowed is 1.7 times the recommended working set",
)
BUFFER = _limit(
    "buffer-size",
    RuntimeError,
    "Invalid buffer size: {size}",
    "https://github.com/huggingface/diffusers/issues/5894; the longest buffer is half the memory",
)
QR_WORKSPACE = _limit(
    "qr-workspace",
    RuntimeError,
    "Invalid buffer size: {size}",
    "https://github.com/pytorch/pytorch/issues/187567: the kernel holds rows times rows numbers",
    torch_versions="2.13 and newer, as reported up to 2.15; before, there was no kernel",
)

_FLOAT8 = {
    getattr(torch, name): cxx
    for name, cxx in {
        "float8_e4m3fn": "Float8_e4m3fn",
        "float8_e4m3fnuz": "Float8_e4m3fnuz",
        "float8_e5m2": "Float8_e5m2",
        "float8_e5m2fnuz": "Float8_e5m2fnuz",
    }.items()
    if hasattr(torch, name)
}


def check_dtype(dtype: torch.dtype, machine: Machine) -> None:
    """Raises TypeError for an element type that tensors on this machine cannot have."""
    if dtype is torch.float32:
        return
    if dtype is torch.float64:
        raise FLOAT64.error()
    if dtype is torch.complex128:
        raise COMPLEX128.error()
    if dtype is torch.bfloat16 and BFLOAT16.holds(machine):
        raise BFLOAT16.error()
    if dtype in _FLOAT8:
        raise FLOAT8.error(name=_FLOAT8[dtype])


def check_layout(tensor: torch.Tensor, machine: Machine) -> None:
    """Raises NotImplementedError for layouts no MPS tensor has, RuntimeError above 16 dimensions."""
    if tensor.layout not in (torch.strided, torch.sparse_coo, torch.sparse_csr):
        raise LAYOUT.error()
    if tensor.dim() > MOST_DIMENSIONS:
        raise DIMENSIONS.error(count=tensor.dim())


def check_sizes(operator: str, tensors: list[torch.Tensor]) -> None:
    """Raises RuntimeError for operands larger than an MPSGraph array can be."""
    if operator in _GRAPH_FREE:
        return
    for tensor in tensors:
        elements = tensor.numel()
        if elements <= NDARRAY_BYTES // 16:
            continue
        if any(size > INT_MAX for size in tensor.shape):
            raise DIMENSION_SIZE.error()
        if elements * tensor.element_size() > NDARRAY_BYTES:
            raise NDARRAY_SIZE.error()


def check_buffer(nbytes: int, machine: Machine) -> None:
    """Raises RuntimeError for a buffer as long as Metal makes none."""
    if nbytes >= machine.buffer_bytes:
        raise BUFFER.error(size=_size(nbytes))


def out_of_memory(allocated: int, driver: int, allowed: int, wanted: int) -> Exception:
    """The allocator's error; all sizes in bytes."""
    return MEMORY.error(
        allocated=_size(allocated),
        other=_size(max(driver - allocated, 0)),
        allowed=_size(allowed),
        wanted=_size(wanted),
    )


def _size(nbytes: int) -> str:
    for unit, name in ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.2f} {name}"
    return f"{nbytes} bytes"


def mixed(operator: str, arguments: list[tuple[str, bool]], host_first: bool) -> Exception:
    """The error for operands on two devices.

    `arguments` are the operator's tensor arguments in order, each with whether it is on the
    device; `host_first` says that the first of them lies on the host.
    """
    name = operator.removeprefix("aten::").split(".")[0]
    if name in ("linear", "addmm", "mm", "bmm", "baddbmm"):
        names = {"self": "input", "mat1": "input", "mat2": "weight", "batch1": "input"}
        stray = next(argument for argument, on_device in arguments if not on_device)
        return MIXED_LINEAR.error(argument=names.get(stray, stray))
    if name in ("embedding", "native_layer_norm", "native_batch_norm"):
        return PLACEHOLDER.error()
    first, second = ("cpu", str(DEVICE)) if host_first and name == "cat" else (str(DEVICE), "cpu")
    return MIXED.error(first=first, second=second)


def convolution_output(
    input_shape: torch.Size,
    weight_shape: torch.Size,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> list[int]:
    """Shape `[batch, channels, *spatial]` of a forward convolution's output."""
    spatial = [
        (size + 2 * pad - step * (kernel - 1) - 1) // jump + 1
        for size, kernel, jump, pad, step in zip(
            input_shape[2:], weight_shape[2:], stride, padding, dilation, strict=False
        )
    ]
    return [input_shape[0], weight_shape[0], *spatial]


def check_convolution(arguments: tuple[object, ...], machine: Machine) -> None:
    """Refuses integer convolutions and outputs with a dimension above 65536.

    `arguments` are those of aten::convolution. Transposed convolutions are exempt from the size
    limit, as they are on MPS. Raises RuntimeError or NotImplementedError.
    """
    signal, weight, _, stride, padding, dilation, transposed = arguments[:7]
    assert isinstance(signal, torch.Tensor)
    assert isinstance(weight, torch.Tensor)
    if not (signal.is_floating_point() or signal.is_complex()):
        raise CONVOLUTION_DTYPE.error()
    if transposed or not CONVOLUTION_SIZE.holds(machine) or signal.dim() != weight.dim():
        return
    shape = convolution_output(
        signal.shape, weight.shape, _ints(stride), _ints(padding), _ints(dilation)
    )
    if max(shape) > CONVOLUTION_EDGE:
        raise CONVOLUTION_SIZE.error()


def _ints(value: object) -> list[int]:
    assert isinstance(value, (list, tuple))
    return list(value) * 3 if len(value) == 1 else list(value)


def check_linear(signal: torch.Tensor) -> None:
    """Refuses torch.nn.functional.linear on integers. Raises RuntimeError."""
    if not (signal.is_floating_point() or signal.is_complex()):
        raise LINEAR_DTYPE.error()


def check_adaptive_pool(arguments: tuple[object, ...], machine: Machine) -> None:
    """Refuses adaptive average pooling whose output sizes do not divide the input's."""
    signal, wanted = arguments[:2]
    assert isinstance(signal, torch.Tensor)
    assert isinstance(wanted, (list, tuple))
    for size, target in zip(signal.shape[-len(wanted) :], wanted, strict=True):
        if not target or math.gcd(size, target) in (target, size):
            continue
        raise ADAPTIVE_POOL.error()


def check_qr(arguments: tuple[object, ...], machine: Machine) -> None:
    """Refuses QR of matrices so tall that the kernel's square workspace is no buffer."""
    matrix = arguments[0]
    assert isinstance(matrix, torch.Tensor)
    if matrix.dim() < 2:
        return
    nbytes = math.prod(matrix.shape[:-1]) * matrix.shape[-2] * matrix.element_size()
    if nbytes >= machine.buffer_bytes:
        raise QR_WORKSPACE.error(size=_size(nbytes))


CHECKS: dict[str, Callable[[tuple[object, ...], Machine], None]] = {
    "aten::convolution": check_convolution,
    "aten::_adaptive_avg_pool2d": check_adaptive_pool,
    "aten::linalg_qr": check_qr,
}
"""Operator (without overload) to the check that its MPS kernel makes on its arguments."""
