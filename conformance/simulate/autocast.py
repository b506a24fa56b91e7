"""Autocast for the simulated device, as the AutocastMPS kernels of the installed torch decide it."""

from __future__ import annotations

import contextlib
import enum
import functools
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from conformance.simulate.core import Core
from conformance.simulate.device import BACKEND, HOST
from conformance.simulate.patching import Patches

_C: Any = torch._C
_KEY: Any = _C.DispatchKey.AutocastMPS
_LOW = (torch.float16, torch.bfloat16)


class Policy(enum.Enum):
    """What a kernel of autocast does to the floating point tensors of the device it is given."""

    LOWER = "to autocast's element type"
    FLOAT32 = "half precision to float32"
    WIDEST = "to float32 where one of them is, else to autocast's element type"
    NONE = "nothing"


class _Asked(torch.Tensor):
    """A tensor without memory that says it is on MPS, and notes what it is converted to."""

    asked: list[torch.dtype]

    @staticmethod
    def __new__(cls, dtype: torch.dtype, asked: list[torch.dtype]) -> _Asked:
        device = torch.device(BACKEND)
        # The base's own: a simulation replaces what programs call.
        make = torch._C.TensorBase._make_wrapper_subclass
        made: Any = make(cls, (2, 2), dtype=dtype, device=device)
        made.asked = asked
        return made  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten._to_copy.default:
            args[0].asked.append(kwargs["dtype"])
        # The first conversion tells the policy; the operator itself is not wanted.
        raise NotImplementedError(str(func))


def operators() -> Iterator[Any]:
    """The overloads that have a kernel of their own for autocast on MPS in the installed torch."""
    for name in sorted(_C._dispatch_get_all_op_names()):
        if name.startswith("aten::") and _C._dispatch_has_kernel_for_dispatch_key(name, _KEY.name):
            plain, _, overload = name.removeprefix("aten::").partition(".")
            yield getattr(getattr(torch.ops.aten, plain), overload or "default")


def conversion(op: Any, dtypes: tuple[torch.dtype, torch.dtype]) -> torch.dtype | None:
    """What torch's own kernel first converts to, given a first tensor and others of these types.

    The autocast in force is of float16. Must be asked before a simulation replaces the kernels.
    """
    asked: list[torch.dtype] = []
    kinds = iter((dtypes[0],))
    args = [
        _sample(str(argument.type), lambda: _Asked(next(kinds, dtypes[1]), asked))
        for argument in op._schema.arguments
        if not argument.kwarg_only
    ]
    before = torch.is_autocast_enabled(BACKEND), torch.get_autocast_dtype(BACKEND)
    plain_enable = getattr(torch.set_autocast_enabled, "plain", torch.set_autocast_enabled)
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        plain_enable(BACKEND, True)
        torch.set_autocast_dtype(BACKEND, torch.float16)
        try:
            # Without memory no operator can go on to run; only what came before is of interest.
            with contextlib.suppress(Exception):
                op(*args)
        finally:
            plain_enable(BACKEND, before[0])
            torch.set_autocast_dtype(BACKEND, before[1])
    return asked[0] if asked else None


def _sample(kind: str, tensor: Callable[[], _Asked]) -> Any:
    """An argument of a schema's type."""
    if "Tensor" in kind:
        return [tensor(), tensor()] if kind.startswith("List[") else tensor()
    if kind.startswith("Optional["):
        return 1 if kind == "Optional[int]" else None
    plain = {"int": 1, "float": 1.0, "number": 1.0, "bool": False, "str": "fro", "Scalar": 1.0}
    if kind.startswith("List["):
        return [plain.get(kind.removeprefix("List[").removesuffix("]"), 1)]
    return plain.get(kind, 1)


@functools.cache
def policies() -> dict[Any, Policy]:
    """What each kernel does, found by giving it tensors that say they are on MPS."""
    half, single = torch.float16, torch.float32
    found = {}
    for op in operators():
        if conversion(op, (single, single)) is half:
            found[op] = Policy.LOWER
        elif conversion(op, (half, half)) is single:
            found[op] = Policy.FLOAT32
        elif conversion(op, (single, half)) is single:
            found[op] = Policy.WIDEST
        else:
            found[op] = Policy.NONE
    return found


class _Cache:
    """Parameters converted once while an autocast region lasts, as torch's own kernels do."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, bool], tuple[weakref.ref[torch.Tensor], torch.Tensor]] = {}

    def converted(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        keeps = (
            dtype is torch.get_autocast_dtype(BACKEND)
            and tensor.dtype is torch.float32
            and tensor.requires_grad
            and tensor.is_leaf
            and not tensor._is_view()
            and torch.is_autocast_cache_enabled()
        )
        if not keeps:
            return tensor.to(dtype)
        key = id(tensor), torch.is_grad_enabled()
        entry = self._kept.get(key)
        if entry is None or entry[0]() is not tensor:
            entry = self._kept[key] = weakref.ref(tensor), tensor.to(dtype)
        return entry[1]

    def clear(self) -> None:
        self._kept.clear()


def wanted(policy: Policy, dtypes: set[torch.dtype]) -> torch.dtype | None:
    """What tensors of these floating point types become; None where they stay as they are.

    Raises RuntimeError, in torch's words, for half precision of the other kind where the widest is
    looked for.
    """
    low = torch.get_autocast_dtype(BACKEND)
    if policy is Policy.LOWER:
        return low
    if policy is Policy.NONE or not dtypes & {torch.float32, *_LOW}:
        return None
    if policy is Policy.FLOAT32 or torch.float32 in dtypes:
        return torch.float32
    if dtypes - {low}:
        raise RuntimeError("Unexpected floating ScalarType in at::autocast::prioritize")
    return low


class Autocast:
    """Torch's autocast kernels for MPS, replaced by ones that know a simulated tensor."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._holds = core.ledger.holds
        self._cache = _Cache()
        self._library: Any = None
        self._guards = threading.local()

    def install(self, patches: Patches) -> None:
        """Follows `torch.autocast` from here on; `patches.undo` ends it."""

        def enable(*args: Any) -> None:
            if args[0] in (BACKEND, HOST.type):
                self._note(args[0], bool(args[1]))
            if args[0] == BACKEND:
                self._present(bool(args[1]))
            plain_enable(*args)

        def clear() -> None:
            self._cache.clear()
            plain_clear()

        plain_enable = patches.set(torch, "set_autocast_enabled", enable)
        enable.plain = plain_enable  # type: ignore[attr-defined]
        plain_clear = patches.set(torch, "clear_autocast_cache", clear)
        patches.later(self._leave)
        self._note(HOST.type, torch.is_autocast_enabled(HOST.type))

    def _note(self, kind: str, enabled: bool) -> None:
        """Keeps for this thread whether autocast is on for this type of device."""
        kinds = self._core.thread.autocast
        (kinds.add if enabled else kinds.discard)(kind)
        self._core.autocasts = self._core.autocasts or enabled

    def _present(self, enabled: bool) -> None:
        """Puts the kernels in the way of this thread's operators, whose tensors are the host's."""
        guard = getattr(self._guards, "guard", None)
        if enabled and guard is None:
            if self._library is None:
                self._library = self._replaced()
            self._guards.guard = _C._IncludeDispatchKeyGuard(_KEY)
            self._guards.guard.__enter__()
        elif not enabled and guard is not None:
            self._guards.guard = None
            guard.__exit__(None, None, None)

    def _leave(self) -> None:
        self._cache.clear()
        self._present(False)
        if self._library is not None:
            self._library._destroy()
            self._library = None

    def _replaced(self) -> Any:
        known = policies()
        make: Any = torch.library.Library
        library = make("aten", "IMPL", _KEY.name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for op, policy in known.items():
                library.impl(
                    op, functools.partial(self._run, op, policy), _KEY.name, allow_override=True
                )
        return library

    def _run(self, op: Any, policy: Policy, *args: Any, **kwargs: Any) -> Any:
        with _C._ExcludeDispatchKeyGuard(_KEYS):
            found = self._eligible([args, list(kwargs.values())])
            dtype = wanted(policy, {tensor.dtype for tensor in found}) if found else None
            if dtype is None:
                return op(*args, **kwargs)
            change = functools.partial(self._changed, dtype)
            return op(*map(change, args), **{name: change(kwargs[name]) for name in kwargs})

    def _eligible(self, values: Any) -> list[torch.Tensor]:
        found = []
        for value in values:
            if isinstance(value, (list, tuple)):
                found += self._eligible(value)
            elif isinstance(value, torch.Tensor) and self._converts(value):
                found.append(value)
        return found

    def _converts(self, tensor: torch.Tensor) -> bool:
        return tensor.dtype in (torch.float32, *_LOW) and self._holds(tensor)

    def _changed(self, dtype: torch.dtype, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self._changed(dtype, item) for item in value)
        if not isinstance(value, torch.Tensor) or not self._converts(value):
            return value
        return value if value.dtype is dtype else self._cache.converted(value, dtype)


_KEYS: Any = _C.DispatchKeySet(_KEY)
_HOST_KEYS: Any = _C.DispatchKeySet(_C.DispatchKey.AutocastCPU)


def without() -> Any:
    """A block whose operators run as parts of a kernel of MPS's own: autocast leaves them alone."""
    return _C._ExcludeDispatchKeyGuard(_KEYS)


def without_hosts() -> Any:
    """A block in which the host's autocast leaves tensors alone, as it does the device's."""
    return _C._ExcludeDispatchKeyGuard(_HOST_KEYS)
