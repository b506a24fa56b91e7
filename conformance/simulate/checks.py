"""Checks before an operator runs: what of `limits` its operands would meet on MPS."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from conformance.simulate import gaps, limits
from conformance.simulate.device import DEVICE, Machine

CONVOLUTION_EDGE = 1 << 16
INT_MAX = 2**31 - 1
NDARRAY_BYTES = 2**32
MOST_DIMENSIONS = 16
_BORDER = 1
"""The padding mode of grid samplers that goes on with the border's values."""
_LAYOUTS = (torch.strided, torch.sparse_coo, torch.sparse_csr, torch.jagged)
_GRAPH_FREE = ("aten::_local_scalar_dense", "aten::copy_", "aten::_to_copy")

_FLOAT8 = {
    getattr(torch, name): cxx
    for name, cxx in {
        "float8_e4m3fn": "Float8_e4m3fn",
        "float8_e4m3fnuz": "Float8_e4m3fnuz",
        "float8_e5m2": "Float8_e5m2",
        "float8_e5m2fnuz": "Float8_e5m2fnuz",
        "float8_e8m0fnu": "Float8_e8m0fnu",
        "float4_e2m1fn_x2": "Float4_e2m1fn_x2",
    }.items()
    if hasattr(torch, name)
}


def check_dtype(dtype: torch.dtype, machine: Machine) -> None:
    """Raises TypeError for an element type that tensors on this machine cannot have."""
    if dtype is torch.float32:
        return
    if dtype is torch.float64:
        raise limits.FLOAT64.error()
    if dtype is torch.complex128:
        raise limits.COMPLEX128.error()
    if dtype is torch.bfloat16 and limits.BFLOAT16.holds(machine):
        raise limits.BFLOAT16.error()
    if dtype in _FLOAT8:
        raise limits.FLOAT8.error(name=_FLOAT8[dtype])


def check_layout(tensor: torch.Tensor, machine: Machine) -> None:
    """Raises NotImplementedError for layouts no MPS tensor has, RuntimeError above 16 dimensions."""
    if tensor.layout not in _LAYOUTS:
        raise limits.LAYOUT.error()
    if tensor.dim() > MOST_DIMENSIONS:
        raise limits.DIMENSIONS.error(count=tensor.dim())


def check_sizes(operator: str, tensors: list[torch.Tensor]) -> None:
    """Raises RuntimeError for operands larger than an MPSGraph array can be."""
    if operator in _GRAPH_FREE:
        return
    for tensor in tensors:
        elements = tensor.numel()
        if elements <= NDARRAY_BYTES // 16:
            continue
        if any(size > INT_MAX for size in tensor.shape):
            raise limits.DIMENSION_SIZE.error()
        if elements * tensor.element_size() > NDARRAY_BYTES:
            raise limits.NDARRAY_SIZE.error()


def check_buffer(nbytes: int, machine: Machine) -> None:
    """Raises RuntimeError for a buffer as long as Metal makes none."""
    if nbytes >= machine.buffer_bytes:
        raise limits.BUFFER.error(size=_size(nbytes))


def out_of_memory(allocated: int, driver: int, allowed: int, wanted: int) -> Exception:
    """The allocator's error; all sizes in bytes."""
    return limits.MEMORY.error(
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
        return limits.MIXED_LINEAR.error(argument=names.get(stray, stray))
    if name in ("embedding", "native_layer_norm", "native_batch_norm"):
        return limits.PLACEHOLDER.error()
    first, second = ("cpu", str(DEVICE)) if host_first and name == "cat" else (str(DEVICE), "cpu")
    return limits.MIXED.error(first=first, second=second)


_PYTHON_NAMES = ("Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")


def type_name(tensor: torch.Tensor, on_device: bool) -> str:
    """What C++ calls a tensor's type, with the host's names turned into Python's where it does."""
    name = str(tensor.dtype).removeprefix("torch.")
    scalar = _SCALARS.get(name, name.capitalize())
    if on_device:
        return f"MPS{scalar}Type"
    return f"torch.{scalar}Tensor" if scalar in _PYTHON_NAMES else f"CPU{scalar}Type"


_SCALARS = {
    "float32": "Float",
    "float16": "Half",
    "bfloat16": "BFloat16",
    "float64": "Double",
    "int64": "Long",
    "int32": "Int",
    "int16": "Short",
    "int8": "Char",
    "uint8": "Byte",
    "complex64": "ComplexFloat",
}


def check_convolution_types(
    arguments: tuple[object, ...], holds: Callable[[torch.Tensor], bool]
) -> None:
    """Refuses weights or a bias of another element type or device than the signal's.

    `arguments` are those of aten::convolution. Raises RuntimeError.
    """
    signal, *others = arguments[:3]
    assert isinstance(signal, torch.Tensor)
    wanted = signal.dtype, holds(signal)
    weight = others[0]
    if not wanted[1] and signal.dim() <= 4 and isinstance(weight, torch.Tensor) and holds(weight):
        # The host's own kernel is chosen by the signal, and dispatched by the weights.
        raise limits.CONVOLUTION_SIGNAL.error(device=DEVICE)
    for role, other in zip(("weight", "bias"), others, strict=False):
        if isinstance(other, torch.Tensor) and (other.dtype, holds(other)) != wanted:
            raise limits.CONVOLUTION_TYPES.error(
                signal=type_name(signal, wanted[1]),
                role=role,
                found=type_name(other, holds(other)),
            )


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
    """Refuses integers, transposed volumes in half precision and outputs longer than 65536.

    `arguments` are those of aten::convolution. Transposed convolutions are exempt from the size
    limit, as they are on MPS. Raises RuntimeError or NotImplementedError.
    """
    signal, weight, _, stride, padding, dilation, transposed = arguments[:7]
    assert isinstance(signal, torch.Tensor)
    assert isinstance(weight, torch.Tensor)
    check_convolution_types(arguments, lambda _: True)
    if not (signal.is_floating_point() or signal.is_complex()):
        raise limits.CONVOLUTION_DTYPE.error()
    if transposed and weight.dim() == 5 and signal.dtype in (torch.float16, torch.bfloat16):
        raise limits.TRANSPOSED_HALF.error()
    if transposed or not limits.CONVOLUTION_SIZE.holds(machine) or signal.dim() != weight.dim():
        return
    shape = convolution_output(
        signal.shape, weight.shape, _ints(stride), _ints(padding), _ints(dilation)
    )
    if max(shape) > CONVOLUTION_EDGE:
        raise limits.CONVOLUTION_SIZE.error()


def _ints(value: object) -> list[int]:
    assert isinstance(value, (list, tuple))
    return list(value) * 3 if len(value) == 1 else list(value)


def check_linear(signal: torch.Tensor) -> None:
    """Refuses torch.nn.functional.linear on integers. Raises RuntimeError."""
    if not (signal.is_floating_point() or signal.is_complex()):
        raise limits.LINEAR_DTYPE.error()


def check_adaptive_pool(arguments: tuple[object, ...], machine: Machine) -> None:
    """Refuses adaptive average pooling whose sizes do not divide one another the same way."""
    signal, wanted = arguments[:2]
    assert isinstance(signal, torch.Tensor)
    assert isinstance(wanted, (list, tuple))
    pairs = list(zip(signal.shape[-len(wanted) :], wanted, strict=True))
    if all(size >= target for size, target in pairs) or all(
        size <= target for size, target in pairs
    ):
        down = pairs[0][0] >= pairs[0][1]
    else:
        raise limits.ADAPTIVE_POOL_MIXED.error()
    for size, target in pairs:
        large, small = (size, target) if down else (target, size)
        if small and large % small:
            larger, smaller = ("input", "output") if down else ("output", "input")
            raise limits.ADAPTIVE_POOL.error(larger=larger, smaller=smaller)


def check_inverse(arguments: tuple[object, ...], machine: Machine) -> None:
    """Refuses inverses of complex matrices."""
    if _tensor(arguments[0]).is_complex():
        raise limits.INVERSE_COMPLEX.error()


def check_cholesky_inverse(arguments: tuple[object, ...], machine: Machine) -> None:
    """Refuses inverses from factors of anything but float32."""
    if _tensor(arguments[0]).dtype is not torch.float32:
        raise limits.CHOLESKY_INVERSE_DTYPE.error()


def check_index_reduce(arguments: tuple[object, ...], machine: Machine) -> None:
    """Refuses reductions at indices of 64-bit integers and complex numbers."""
    names = {torch.int64: "torch.long", torch.complex64: "torch.cfloat"}
    dtype = _tensor(arguments[0]).dtype
    if dtype in names:
        raise limits.INDEX_REDUCE_DTYPE.error(name=names[dtype])


def check_grid(arguments: tuple[object, ...], machine: Machine) -> None:
    """Refuses to continue an image's border, where the installed torch's kernel cannot."""
    if arguments[3] == _BORDER and gaps.listed("nn.functional.grid_sample") is None:
        raise limits.GRID_BORDER.error()


def check_scatter_reduce(arguments: tuple[object, ...], machine: Machine) -> None:
    """Refuses reductions in an element type that the installed list names for that reduction."""
    dtype, how = _tensor(arguments[0]).dtype, arguments[4]
    if dtype in (gaps.listed(f"scatter_reduce{how}") or ()):
        name = str(dtype).removeprefix("torch.")
        raise limits.DTYPE_GAP.error(operator="scatter_reduce", dtype=name)


def check_nested(arguments: tuple[object, ...], machine: Machine) -> None:
    """Refuses nested tensors of strided layout, which no Mac has."""
    raise limits.NESTED.error(device=DEVICE)


def _tensor(value: object) -> torch.Tensor:
    assert isinstance(value, torch.Tensor)
    return value


def check_qr(arguments: tuple[object, ...], machine: Machine) -> None:
    """Refuses QR of matrices so tall that the kernel's square workspace is no buffer."""
    matrix = arguments[0]
    assert isinstance(matrix, torch.Tensor)
    if matrix.dim() < 2:
        return
    nbytes = math.prod(matrix.shape[:-1]) * matrix.shape[-2] * matrix.element_size()
    if nbytes >= machine.buffer_bytes:
        raise limits.QR_WORKSPACE.error(size=_size(nbytes))


CHECKS: dict[str, Callable[[tuple[object, ...], Machine], None]] = {
    "aten::convolution": check_convolution,
    "aten::_adaptive_avg_pool2d": check_adaptive_pool,
    "aten::linalg_qr": check_qr,
    "aten::linalg_inv_ex": check_inverse,
    "aten::cholesky_inverse": check_cholesky_inverse,
    "aten::grid_sampler_2d": check_grid,
    "aten::scatter_reduce": check_scatter_reduce,
    "aten::scatter_reduce_": check_scatter_reduce,
    "aten::index_reduce": check_index_reduce,
    "aten::index_reduce_": check_index_reduce,
    "aten::_nested_tensor_from_tensor_list": check_nested,
    "aten::_nested_view_from_buffer": check_nested,
    "aten::_nested_from_padded": check_nested,
}
"""Operator (without overload) to the check that its MPS kernel makes on its arguments."""
