"""What MPS implements, read from the installed PyTorch's own dispatch tables."""

from __future__ import annotations

import enum
import functools
import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch._library import custom_ops

ALWAYS_ON_HOST = frozenset({"embedding_renorm_", "_linalg_svd", "col2im", "upsample_nearest3d"})
"""Registered to fall back even without PYTORCH_ENABLE_MPS_FALLBACK.

From pytorch/pytorch aten/src/ATen/mps/MPSFallback.mm; a kernel of the installed torch wins. There
it is linalg_svd, of which _linalg_svd with vectors is the part that dispatch sees.
"""

_WITHOUT_VECTORS = frozenset(
    {"linalg_svdvals", "linalg_matrix_rank", "linalg_cond", "linalg_norm", "linalg_matrix_norm"}
    | {"norm", "nuclear_norm"}
)
"""Functions that want singular values alone: they reach _linalg_svd past linalg_svd's fallback."""

STAND_INS = {
    "_scaled_dot_product_flash_attention_for_cpu": "_scaled_dot_product_attention_math_for_mps",
    "_scaled_dot_product_flash_attention_for_cpu_backward": "_scaled_dot_product_attention_math",
    "mkldnn_rnn_layer": "_lstm_mps",
    "mkldnn_rnn_layer_backward": "lstm_mps_backward",
    "_weight_int4pack_mm_for_cpu": "_weight_int4pack_mm",
    "_convert_weight_to_int4pack_for_cpu": "_convert_weight_to_int4pack",
}
"""Kernels a composite picks on the CPU, each with what the same composite picks on MPS."""

_CHOOSES_A_BACKEND = frozenset({"convolution", "convolution_backward", "_convolution"})
"""Composites whose parts differ by backend: run whole, for MPS has its own parts."""


_Key = torch._C.DispatchKey
_has: Any = torch._C._dispatch_has_kernel_for_dispatch_key
"""Asked with a key, not with its name: of that C++ makes a key by an import, too late as Python ends."""
_COMPOSITE_KEYS = (_Key.CompositeExplicitAutograd, _Key.CompositeExplicitAutogradNonFunctional)


class Support(enum.Enum):
    """How MPS runs an operator."""

    KERNEL = "kernel"
    COMPOSITE = "composite"
    HOST = "falls back always"
    MISSING = "missing"


@dataclass
class Operator:
    """What is known about one overload; `base` is its name without the overload."""

    name: str
    support: Support
    sparse: Support
    sparse_csr: Support
    random: bool
    takes_device: bool
    arguments: tuple[str, ...]
    written: frozenset[int]
    base: str
    results: int = 1
    aliases: bool = False
    implicit: bool = False
    """Whether its derivative is that of its parts."""
    refused_as: str = ""
    reenter: Any = None
    sparse_apart: bool = False
    python: Any = None
    seen: set[object] = field(default_factory=set)

    @property
    def whole(self) -> bool:
        """Whether the CPU's kernel runs all of it, whatever its operands."""
        return self.reenter is None and self.python is None

    def on(self, layout: torch.layout, caller: str) -> Support:
        """How MPS runs it on operands of this layout, when torch's function `caller` is called."""
        if layout is torch.sparse_coo:
            return self.sparse
        if layout is not torch.strided:
            return self.sparse_csr
        if self.base == "aten::_linalg_svd" and caller in _WITHOUT_VECTORS:
            return Support.MISSING
        return self.support


@functools.cache
def _text() -> str:
    """The installed torch's native_functions.yaml."""
    found = importlib.util.find_spec("torchgen")
    if found is None or found.origin is None:
        raise RuntimeError(
            "this torch has no torchgen beside it, whose native_functions.yaml says what MPS "
            "implements; install torch from its wheel"
        )
    path = Path(found.origin).parent / "packaged/ATen/native/native_functions.yaml"
    return path.read_text(encoding="utf-8")


@functools.cache
def _tables() -> dict[str, dict[str, bool]]:
    """Operator name (with overload) to the dispatch keys that serve it."""
    return read_tables(_text())


@functools.cache
def _delegates() -> dict[str, str]:
    """Functional operators to the overload that computes for them."""
    return {name: entry.delegate for name, entry in _entries(_text()).items() if entry.delegate}


@dataclass
class _Entry:
    """One function of `native_functions.yaml`, as far as dispatch is concerned."""

    keys: frozenset[str] | None
    delegate: str | None
    generated: list[str]
    core: bool = False

    @property
    def implicit(self) -> bool:
        """Whether it is a composite that autograd takes apart."""
        if self.keys is None:
            return self.delegate is None
        return "CompositeImplicitAutograd" in self.keys

    @property
    def composite(self) -> bool:
        """Whether any kernel serves every backend."""
        return self.implicit or any(key.name in (self.keys or ()) for key in _COMPOSITE_KEYS)


def read_tables(text: str) -> dict[str, dict[str, bool]]:
    """The tables in the text of a `native_functions.yaml`.

    torchgen's own parser gives the same and takes three seconds, most of a short program's run.
    Raises ValueError where no MPS kernel is found, as in a file of another form.
    """
    entries = _entries(text)
    tables = {}
    for name, entry in entries.items():
        served = entry if entry.delegate is None else entries[entry.delegate]
        keys = served.keys or frozenset()
        tables[name] = {
            "dense": "MPS" in keys,
            "coo": "SparseMPS" in keys,
            "csr": "SparseCsrMPS" in keys,
            "composite": entry.composite,
        }
        for variant in entry.generated if entry.core or not entry.implicit else ():
            # Variants that torchgen writes are composites over the function they came from.
            tables[variant] = {"dense": False, "coo": False, "csr": False, "composite": True}
    if not any(row["dense"] for row in tables.values()):
        raise ValueError("no MPS kernel in this text; expected torch's native_functions.yaml")
    return tables


@functools.lru_cache(1)
def _entries(text: str) -> dict[str, _Entry]:
    entries = {}
    for block in re.split(r"^- func: ", text, flags=re.MULTILINE)[1:]:
        name, _, rest = block.partition("(")
        entries[name] = _entry(rest.splitlines()[1:])
    return entries


def _entry(lines: list[str]) -> _Entry:
    entry = _Entry(None, None, [])
    in_dispatch = False
    for line in lines:
        words = line.split("#")[0].rstrip()
        key, _, value = words.strip().partition(":")
        if in_dispatch and words.startswith("    "):
            entry.keys = (entry.keys or frozenset()) | {name.strip() for name in key.split(",")}
        elif words:
            in_dispatch = key == "dispatch"
            if in_dispatch:
                entry.keys = frozenset()
            elif key == "structured_delegate":
                entry.delegate = value.strip()
            elif key == "autogen":
                entry.generated = [name.strip() for name in value.split(",")]
            elif key == "tags":
                entry.core = "core" in value
    return entry


def _support(name: str, key: str) -> Support:
    plain = name.removeprefix("aten::").removesuffix(".default")
    base = plain.split(".")[0]
    tables = _tables()
    entry = tables.get(plain)
    stand_in = STAND_INS.get(base)
    if stand_in is not None and stand_in in tables:
        entry = tables[stand_in]
    if entry is None:
        # Variants generated from another overload; out= ones are composites over it.
        family = [row for other, row in tables.items() if other.split(".")[0] == base]
        entry = {k: any(row[k] for row in family) for k in ("dense", "coo", "csr", "composite")}
    if entry[key] or (key == "dense" and _registered_in_python(plain)):
        return Support.KERNEL
    if base in ALWAYS_ON_HOST:
        return Support.HOST
    return Support.COMPOSITE if entry["composite"] else Support.MISSING


def _registered_in_python(plain: str) -> bool:
    """Whether this process has an MPS kernel that the table does not know, as Linux has too."""
    computing = (plain, _delegates().get(plain, plain))
    return any(_has(f"aten::{name}", _Key.MPS) for name in computing)


def _refused_as(name: str) -> str:
    """The name that a Mac misses: a functional operator's own overload that computes for it."""
    plain = name.removeprefix("aten::")
    return f"aten::{_delegates()[plain]}" if plain in _delegates() else name


def _live_support(name: str) -> Support:
    """For operators outside aten: what is registered in this process.

    Operators with only CPU or CUDA kernels are missing on MPS, as they would be on a Mac.
    """
    bare = name.removesuffix(".default")
    keys = (_Key.CompositeExplicitAutograd, _Key.CompositeImplicitAutograd)
    if _has(bare, _Key.MPS):
        return Support.KERNEL
    if any(_has(bare, key) for key in keys):
        return Support.COMPOSITE
    return Support.MISSING


def _reentry(func: Any, name: str) -> Any:
    """The composite kernel both backends share, to be run part by part; None if there is none."""
    bare = name.removesuffix(".default")
    if name.split(".")[-1].startswith("Scalar"):
        # It only wraps the number, as a tensor that dispatch hands to Python as a number again.
        return None
    if _has(bare, _Key.CPU) or name.split(".")[0].removeprefix("aten::") in _CHOOSES_A_BACKEND:
        return None
    if _has(bare, _Key.CompositeImplicitAutograd):
        return _Key.CompositeImplicitAutograd
    return next((key for key in _COMPOSITE_KEYS if _has(bare, key)), None)


def _written_in_python(name: str) -> Any:
    """The function behind an operator made by torch.library.custom_op; None for all others."""
    definition = custom_ops.OPDEFS.get(name)
    return None if definition is None else definition._init_fn


@functools.cache
def describe(func: Any) -> Operator:
    """What is known about `func`, an OpOverload."""
    schema = func._schema
    name = schema.name + (f".{schema.overload_name}" if schema.overload_name else "")
    in_aten = name.startswith("aten::")
    support = _support(name, "dense") if in_aten else _live_support(name)
    arguments = schema.arguments
    return Operator(
        name=name,
        base=schema.name,
        results=len(schema.returns),
        aliases=any(made.alias_info is not None for made in schema.returns),
        refused_as=_refused_as(name),
        support=support,
        sparse=_support(name, "coo") if in_aten else support,
        sparse_csr=_support(name, "csr") if in_aten else support,
        random=torch.Tag.nondeterministic_seeded in func.tags,
        takes_device=any(argument.name == "device" for argument in arguments),
        arguments=tuple(argument.name for argument in arguments),
        written=frozenset(
            index
            for index, argument in enumerate(arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ),
        implicit=_has(name.removesuffix(".default"), _Key.CompositeImplicitAutograd),
        python=_written_in_python(schema.name),
        sparse_apart=_has(name.removesuffix(".default"), _Key.SparseCPU),
        reenter=_reentry(func, name) if support is not Support.MISSING else None,
    )
