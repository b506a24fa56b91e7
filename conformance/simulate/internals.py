"""The parts of torch without public names or types that the simulation stands on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import overrides

_C: Any = torch._C

storage_id: Callable[[torch.Tensor], int] = _C._storage_id
"""The address of a tensor's storage; raises for layouts without one."""

storage_device: Callable[[torch.UntypedStorage], torch.device] = _C.StorageBase.device.__get__
"""The device C++ sees, whatever a simulation reports."""

is_alias: Callable[[torch.Tensor, torch.Tensor], bool] = _C._is_alias_of

function_modes: Callable[[], list[Any]] = vars(overrides)["_get_current_function_mode_stack"]


def generator_id(generator: torch._C.Generator) -> int:
    """The address of the generator behind a Python wrapper, of which there may be several."""
    wrapper: Any = generator
    address: int = wrapper._cdata
    return address
