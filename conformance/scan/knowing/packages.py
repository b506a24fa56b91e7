"""Python packages that need CUDA, and imports of them."""

from __future__ import annotations

import ast

#: Packages that cannot be installed or imported where there is no CUDA (or ROCm).
MISSING = frozenset(
    {
        "flash_attn",
        "flash_attn_interface",
        "flashinfer",
        "vllm",
        "triton",
        "apex",
        "cupy",
        "pycuda",
        "tensorrt",
        "tensorrt_llm",
        "torch_tensorrt",
        "transformer_engine",
        "deep_gemm",
        "deep_ep",
        "cudf",
        "cuml",
        "cugraph",
        "rmm",
        "nvidia_dali",
        "mamba_ssm",
        "causal_conv1d",
        "sageattention",
        "amp_C",
        "fused_layer_norm_cuda",
        "xentropy_cuda_lib",
        "dropout_layer_norm",
        "fused_dense_lib",
        "selective_scan_cuda",
        "causal_conv1d_cuda",
        "exllama_kernels",
        "pyNVML",
        "tinycudann",
        "nvdiffrast",
        "spconv",
        "torchsparse",
        "torch2trt",
        "torch_int",
        "pynvrtc",
        "pointnet2_ops",
        "MultiScaleDeformableAttention",
        "diff_gaussian_rasterization",
        "simple_knn",
        "fused_ssim",
    }
)
#: Languages in which kernels are written: a file that imports one is CUDA code through and
#: through, and what matters is who imports that file.
KERNELS = frozenset({"cutlass", "cuda", "nvmath", "nvshmem", "tilelang"})
#: Packages that bring a backend along: a file that imports one is written for that backend.
PROVIDERS = {
    "torch_npu": "npu",
    "torch_xla": "xla",
    "torch_mlu": "mlu",
    "torch_musa": "musa",
    "habana_frameworks": "hpu",
    "intel_extension_for_pytorch": "xpu",
    "conformance.simulate": "mps",
}
#: Packages that import everywhere and then have little to do without CUDA.
POORER = frozenset({"bitsandbytes", "xformers", "pynvml"})
#: Engines that run on CUDA and on the CPU, and nowhere else: no third choice is left out.
TWO_DEVICES = frozenset({"ctranslate2", "faster_whisper"})
#: Without these, nothing that follows the import can be reached.
_NEEDED = MISSING | KERNELS
_PROVIDING = frozenset(package.partition(".")[0] for package in PROVIDERS)


def imported_packages(node: ast.Import | ast.ImportFrom) -> list[str]:
    """Top-level packages that a statement imports; none for a relative import."""
    if isinstance(node, ast.ImportFrom):
        names = [node.module or ""] if not node.level else []
        if names == ["numba"]:  # its kernels are a part of it
            names += [alias.name for alias in node.names if alias.name == "cuda"]
    else:
        names = [alias.name for alias in node.names]
    return [name.partition(".")[0] for name in names]


def imported_modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    """Modules inside of packages that a statement may import; none for a relative import."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if "." in alias.name]
    if node.level or not node.module:
        return []
    inner = [f"{node.module}.{alias.name}" for alias in node.names]
    return [*([node.module] if "." in node.module else []), *inner]


def needed_package(node: ast.Import | ast.ImportFrom) -> str | None:
    """The package that a statement imports and that cannot be had without CUDA, if any."""
    return next((name for name in imported_packages(node) if name in _NEEDED), None)


def wraps_engine(base: str) -> bool:
    """Whether a class, by the dotted name of its base, is part of a package that needs CUDA."""
    package, dot, _ = base.partition(".")
    return bool(dot) and (package in MISSING or package == "bitsandbytes")


def provided_backend(node: ast.Import | ast.ImportFrom) -> str | None:
    """The backend that an imported package brings along, if any."""
    if _PROVIDING.isdisjoint(imported_packages(node)):
        return None
    if isinstance(node, ast.ImportFrom):
        names = [f"{node.module}.{alias.name}" for alias in node.names] if not node.level else []
    else:
        names = [alias.name for alias in node.names]
    for name in names:
        for package, backend in PROVIDERS.items():
            if f"{name}.".startswith(f"{package}."):
                return backend
    return None
