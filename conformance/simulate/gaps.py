"""Element types that MPS kernels lack, read from the lists PyTorch tests its own kernels by."""

from __future__ import annotations

import ast
import functools
import threading
from pathlib import Path

import torch

from conformance.simulate import limits

_LIST = "UNIMPLEMENTED_XFAILLIST"
"""The first of that name: the forward tests'."""

OPERATORS: dict[str, tuple[str, ...]] = {
    "median": ("aten::median",),
    "nanmedian": ("aten::nanmedian",),
    "native_batch_norm": ("aten::native_batch_norm", "aten::_native_batch_norm_legit"),
    "nn.functional.avg_pool2d": ("aten::avg_pool2d",),
    "nn.functional.avg_pool3d": ("aten::avg_pool3d",),
    "nn.functional.glu": ("aten::glu",),
    "nn.functional.huber_loss": ("aten::huber_loss",),
    "nn.functional.adaptive_max_pool2d": ("aten::adaptive_max_pool2d",),
    "nn.functional.interpolatebicubic": ("aten::upsample_bicubic2d",),
    "_upsample_bilinear2d_aa": ("aten::_upsample_bilinear2d_aa",),
    "_upsample_bicubic2d_aa": ("aten::_upsample_bicubic2d_aa",),
    "nn.functional.logsigmoid": ("aten::log_sigmoid_forward",),
    "max_pool2d_with_indices_backward": ("aten::max_pool2d_with_indices_backward",),
    "nn.functional.max_pool1d": ("aten::max_pool1d_with_indices",),
    "nn.functional.max_pool2d": ("aten::max_pool2d_with_indices",),
    "nn.functional.max_pool3d": ("aten::max_pool3d_with_indices",),
    "nn.functional.max_unpool2d": ("aten::max_unpool2d",),
    "nn.functional.max_unpool3d": ("aten::max_unpool3d",),
    "nn.functional.mish": ("aten::mish",),
    "nn.functional.nll_loss": ("aten::nll_loss_forward",),
    "nn.functional.padreplicate_negative": (
        "aten::replication_pad1d",
        "aten::replication_pad2d",
        "aten::replication_pad3d",
    ),
    "nn.functional.relu": ("aten::relu",),
    "nn.functional.silu": ("aten::silu",),
    "nn.functional.softplus": ("aten::softplus",),
    "bincount": (),
    # Of lists before 2.13's.
    "ceil": ("aten::ceil",),
    "dot": ("aten::dot",),
    "floor": ("aten::floor",),
    "floor_divide": ("aten::floor_divide",),
    "fmod": ("aten::fmod",),
    "histc": ("aten::histc",),
    "nn.functional.padreflect": (
        "aten::reflection_pad1d",
        "aten::reflection_pad2d",
        "aten::reflection_pad3d",
    ),
    "nn.functional.threshold": ("aten::threshold",),
    "pow": ("aten::pow",),
    "remainder": ("aten::remainder",),
    "trunc": ("aten::trunc",),
    "vdot": ("aten::vdot",),
}
"""Names in PyTorch's list to the aten operators whose kernels they speak of.

Only operators that MPS serves with a kernel of its own; the others are refused as missing.
"""


COMPLEX_OPERATORS = {
    "aten::linalg_cholesky_ex": "linalg.cholesky_ex",
    "aten::cholesky": "cholesky",
    "aten::linalg_lu": "linalg.lu",
    "aten::linalg_lu_factor_ex": "linalg.lu_factor_ex",
    "aten::lu_unpack": "lu_unpack",
    "aten::_linalg_det": "linalg.det",
    "aten::_linalg_slogdet": "linalg.slogdet",
    "aten::_linalg_solve_ex": "linalg.solve_ex",
    "aten::linalg_solve_triangular": "linalg.solve_triangular",
    "aten::triangular_solve": "triangular_solve",
    "aten::cumsum": "cumsum",
    "aten::cumprod": "cumprod",
    "aten::logcumsumexp": "logcumsumexp",
    "aten::gather": "gather",
    "aten::scatter": "scatter",
    "aten::scatter_add": "scatter_add",
    "aten::trace": "trace",
    "aten::prod": "prod",
    "aten::linalg_vector_norm": "linalg.vector_norm",
    "aten::linalg_cross": "linalg.cross",
    "aten::std": "std",
    "aten::var": "var",
    "aten::std_mean": "std_mean",
    "aten::var_mean": "var_mean",
    "aten::renorm": "renorm",
    "aten::addr": "addr",
    "aten::silu": "nn.functional.silucomplex",
}
"""Operators to the names under which PyTorch's list of complex operators would have them."""


_parsing = threading.Lock()


def _parsed(source: str) -> ast.Module:
    # Of two threads that parse at once, as where tensors are read, CPython 3.11 fails one.
    with _parsing:
        return ast.parse(source)


def lists_from(source: str, name: str = _LIST) -> dict[str, frozenset[torch.dtype] | None]:
    """The list in the text of a `common_mps.py`: name to element types, None for all of them.

    Raises ValueError where the text holds no such list, as a future torch might.
    """
    for node in ast.walk(_parsed(source)):
        if isinstance(node, ast.AnnAssign):
            target: ast.expr = node.target
        elif isinstance(node, ast.Assign):
            target = node.targets[0]
        else:
            continue
        if isinstance(target, ast.Name) and target.id == name and isinstance(node.value, ast.Dict):
            return {
                key.value: _dtypes(value)
                for key, value in zip(node.value.keys, node.value.values, strict=True)
                if isinstance(key, ast.Constant) and isinstance(key.value, str)
            }
    raise ValueError(f"no {name} in this text; expected torch/testing/_internal/common_mps.py")


def complex_from(source: str) -> frozenset[str]:
    """The names in `SUPPORTED_COMPLEX_OPS` of a `common_mps.py`; empty where it has none."""
    for node in ast.walk(_parsed(source)):
        if not isinstance(node, ast.Assign):
            continue
        target = node.targets[0]
        if isinstance(target, ast.Name) and target.id == "SUPPORTED_COMPLEX_OPS":
            names = node.value.elts if isinstance(node.value, ast.Set) else []
            return frozenset(str(name.value) for name in names if isinstance(name, ast.Constant))
    return frozenset()


def _dtypes(node: ast.expr) -> frozenset[torch.dtype] | None:
    if isinstance(node, ast.IfExp):
        # All such conditions are of a macOS below 14 or 15.
        node = node.orelse
    if not isinstance(node, ast.List):
        return None
    names = (entry.attr for entry in node.elts if isinstance(entry, ast.Attribute))
    return frozenset(getattr(torch, name) for name in names)


def installed_source() -> str:
    """The text of the installed torch's `common_mps.py`."""
    path = Path(torch.__file__).parent / "testing" / "_internal" / "common_mps.py"
    return path.read_text(encoding="utf-8")


@functools.cache
def listed(name: str) -> frozenset[torch.dtype] | None:
    """The element types that the installed list names for an entry; None for all of them."""
    return lists_from(installed_source()).get(name, frozenset())


@functools.cache
def installed() -> dict[str, frozenset[torch.dtype]]:
    """Operator to the element types its MPS kernel lacks, for the installed torch."""
    table = lists_from(installed_source())
    gaps: dict[str, frozenset[torch.dtype]] = {}
    for name, operators in OPERATORS.items():
        dtypes = table.get(name)
        for operator in operators if dtypes else ():
            assert dtypes is not None
            gaps[operator] = gaps.get(operator, frozenset()) | dtypes
    supported = complex_from(installed_source())
    for operator, name in COMPLEX_OPERATORS.items():
        if supported and name not in supported:
            gaps[operator] = gaps.get(operator, frozenset()) | {torch.complex64, torch.complex32}
    return gaps


def check(operator: str, tensors: list[torch.Tensor]) -> None:
    """Raises RuntimeError where `operator` has no MPS kernel for its first operand's dtype."""
    missing = installed().get(operator)
    if missing is not None and tensors[0].dtype in missing:
        dtype = str(tensors[0].dtype).removeprefix("torch.")
        raise limits.DTYPE_GAP.error(operator=operator.removeprefix("aten::"), dtype=dtype)
