"""The table of what MPS refuses: exception, words, source and the versions each limit holds for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from conformance.simulate.machine import REPORTED_NAME, Machine

_SOURCES = "pytorch/pytorch aten/src/ATen/"


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

    @property
    def mistake(self) -> bool:
        """Whether a program meets it by leaving a tensor where it does not belong.

        The others are what MPS itself cannot do.
        """
        return self.code in MISTAKES

    def error(self, **fields: object) -> Exception:
        """The exception to raise: MPS's words, then one line that says it is simulated."""
        text = self.message.format(**fields)
        for listener in LISTENERS:
            listener(self.code, str(fields.get("operator", "")))
        return self.exception(
            f"{text}\n[{REPORTED_NAME}] simulated failure '{self.code}', raised without a Mac; "
            f"the limit comes from {self.source} (macOS: {self.macos}; torch: {self.torch})."
        )


LIMITS: dict[str, Limit] = {}

LISTENERS: list[Callable[[str, str], None]] = []
"""Called with the code of each limit that a program meets, and the operator, if that names it."""

MISTAKES = frozenset(
    {"mixed-devices", "mixed-devices-linear", "mixed-devices-placeholder", "convolution-types"}
    | {"convolution-signal"}
    | {"indices", "numpy", "lengths", "split-indices", "type-name"}
    | {"generator", "generator-permutation", "shared-memory", "pin-memory"}
)
"""Limits that every accelerator has, which a program meets by its own oversight."""


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
    torch_versions="as installed, or the older one that is stood for",
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
CONVOLUTION_TYPES = _limit(
    "convolution-types",
    RuntimeError,
    "Input type ({signal}) and {role} type ({found}) should be the same",
    _SOURCES + "native/Convolution.cpp; seen in https://github.com/pytorch/pytorch/issues/88978, "
    "https://github.com/pytorch/ignite/issues/2977 and "
    "https://github.com/Mikubill/sd-webui-controlnet/issues/1267",
)
CONVOLUTION_SIGNAL = _limit(
    "convolution-signal",
    RuntimeError,
    "slow_conv2d_forward_mps: input(device='cpu') and weight(device={device}')  must be on the "
    "same device",
    "https://github.com/pytorch/pytorch/pull/86303; seen in "
    "https://github.com/pkuliyi2015/sd-webui-stablesr/issues/55 and, on macOS 15.3, in "
    "https://github.com/blessedcoolant/invoke_bria_rmbg/issues/4",
)
LINEAR_DTYPE = _limit(
    "linear-dtype",
    RuntimeError,
    "MPS device does not support linear for non-float inputs",
    _SOURCES + "native/mps/operations/Linear.mm",
)
ADAPTIVE_POOL = _limit(
    "adaptive-pool-size",
    NotImplementedError,
    "Adaptive pool MPS: {larger} sizes must be divisible by {smaller} sizes. Non-divisible input "
    "sizes are not implemented on MPS device yet. For now, you can manually transfer tensor to cpu "
    "in this case. Please refer to [this issue]"
    "(https://github.com/pytorch/pytorch/issues/96056)",
    "https://github.com/pytorch/pytorch/issues/96056 and, with the output larger, issues/143864; "
    "native/mps/operations/AdaptivePooling.mm",
    torch_versions="every version; older ones raise it as a RuntimeError",
)
ADAPTIVE_POOL_MIXED = _limit(
    "adaptive-pool-mixed",
    NotImplementedError,
    "Adaptive pool MPS: Input height and width must both be greater than, or equal to, or lesser "
    "than output height and width",
    _SOURCES + "native/mps/operations/AdaptivePooling.mm",
)
INVERSE_COMPLEX = _limit(
    "inverse-complex",
    RuntimeError,
    "linalg_inv: not supported for complex types yet!",
    _SOURCES + "native/mps/operations/LinearAlgebra.mm",
)
CHOLESKY_INVERSE_DTYPE = _limit(
    "cholesky-inverse-dtype",
    RuntimeError,
    "cholesky_inverse: MPS only supports float type!",
    _SOURCES + "native/mps/operations/LinearAlgebra.mm",
)
INDEX_REDUCE_DTYPE = _limit(
    "index-reduce-dtype",
    RuntimeError,
    "index_reduce for MPS does not support {name} dtype",
    "https://github.com/pytorch/pytorch/pull/174936: its atomics are of 32 bits",
    torch_versions="2.12 and newer; before, there was no kernel",
)
GRID_BORDER = _limit(
    "grid-border",
    RuntimeError,
    "MPS: Unsupported Border padding mode",
    "native/mps/operations/GridSampler.mm; the installed torch/testing/_internal/common_mps.py "
    "lists nn.functional.grid_sample for it",
    torch_versions="2.11 and older",
)
LSTM_PROJECTIONS = _limit(
    "lstm-projections",
    RuntimeError,
    "LSTM with projections is not currently supported with MPS.",
    "native/mps/operations/RnnOps.mm; the installed torch/testing/_internal/common_modules.py "
    "leaves LSTM out on MPS for it",
    torch_versions="2.0 up to the installed one",
)
NESTED = _limit(
    "nested-storage",
    RuntimeError,
    "NestedTensorImpl storage must be either CUDA, CPU, XPU or privateuseone but got {device}",
    _SOURCES + "NestedTensorImpl.cpp; https://github.com/pytorch/pytorch/issues/127743",
)
INDICES = _limit(
    "indices",
    RuntimeError,
    "indices should be either on cpu or on the same device as the indexed tensor (cpu)",
    _SOURCES + "native/TensorAdvancedIndexing.cpp; "
    "https://discuss.pytorch.org/t/indices-should-be-either-on-cpu-or-on-the-same-device-as-the-"
    "indexed-tensor/154141",
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
RESIZING = _limit(
    "storage-resize",
    RuntimeError,
    "UntypedStorage.resize_: got unexpected device type mps",
    "pytorch/pytorch torch/csrc/StorageMethods.cpp",
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
TYPE_NAME = _limit(
    "type-name",
    ValueError,
    "invalid type: '{name}'",
    "pytorch/pytorch torch/csrc/utils/tensor_types.cpp, which lists no MPS types",
)
SPLIT_INDICES = _limit(
    "split-indices",
    RuntimeError,
    "tensor_split expected tensor_indices_or_sections to be on cpu, but it's on {device}",
    _SOURCES + "native/TensorShape.cpp",
)
LENGTHS = _limit(
    "lengths",
    RuntimeError,
    "'lengths' argument should be a 1D CPU int64 tensor, but got {count}D {device} {name} tensor",
    _SOURCES + "native/PackedSequence.cpp",
)
TRANSPOSED_HALF = _limit(
    "transposed-3d-half",
    RuntimeError,
    "ConvTranspose 3D with BF16 or FP16 types is not supported on MPS",
    _SOURCES + "native/mps/operations/Convolution.mm",
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
