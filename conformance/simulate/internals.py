"""The parts of torch without public names or types that the simulation stands on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import overrides

_C: Any = torch._C

storage_id: Callable[[torch.Tensor], int] = _C._storage_id
"""The address of a tensor's storage; raises for layouts without one."""

use_count: Callable[[int], int] = _C._storage_Use_Count
"""How many tensors, and Python itself where it knows it, hold the storage at this address."""

storage_device: Callable[[torch.UntypedStorage], torch.device] = _C.StorageBase.device.__get__
"""The device C++ sees, whatever a simulation reports."""

is_alias: Callable[[torch.Tensor, torch.Tensor], bool] = _C._is_alias_of

dispatch_modes: Callable[[], int] = _C._len_torch_dispatch_stack
other_function_modes: Callable[[], int] = _C._len_torch_function_stack
"""How many function modes are active; in one's own code, how many besides it."""

_KEYS: Any = _C.DispatchKeySet(_C.DispatchKey.Python)
_MODES = _KEYS.add(_C.DispatchKey.PythonTLSSnapshot)


def no_dispatch_modes() -> AbstractContextManager[object]:
    """A block, usable again and again, whose operators reach no dispatch mode."""
    guard: AbstractContextManager[object] = _C._ExcludeDispatchKeyGuard(_MODES)
    return guard


bare: Callable[[Any, tuple[()], tuple[Any, ...], dict[str, Any]], Any] = (
    _C._disabled_torch_dispatch_impl
)
"""Calls a function below every dispatch mode, and so below autograd; the second is not read."""

functorch: Callable[[], bool] = _C._are_functorch_transforms_active

NAMES = hasattr(_C.TensorBase, "has_names")
"""Whether dimensions may have names, which are seen to above autograd; up to torch 2.12."""

records_gradients: Callable[[], bool] = _C.is_grad_enabled

saving_hooks: Callable[[bool], object] = _C._autograd._top_saved_tensors_default_hooks
"""What a program has asked to be called with each tensor that autograd keeps, or None."""

pop_function_mode: Callable[[], object] = _C._pop_torch_function_stack
push_function_mode: Callable[[object], None] = _C._push_on_torch_function_stack

no_function_modes: Callable[[], AbstractContextManager[object]] = _C.DisableTorchFunction
"""A block whose calls reach no function mode, nor any class of tensors with answers of its own."""

traced: Callable[[], object] = _C._get_tracing_state
"""What torch.jit.trace writes down on this thread, or None."""

function_modes: Callable[[], list[Any]] = vars(overrides)["_get_current_function_mode_stack"]


def generator_id(generator: torch._C.Generator) -> int:
    """The address of the generator behind a Python wrapper, of which there may be several."""
    wrapper: Any = generator
    address: int = wrapper._cdata
    return address
