"""Numbers between PyTorch on the host and MLX, and MLX's names for PyTorch's dtypes."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import torch

_VIEWS = {torch.bfloat16: (torch.int16, mx.bfloat16), torch.bool: (torch.uint8, mx.bool_)}
"""Dtypes that NumPy lacks or MLX's views want whole: what to pass them as, and what they are."""


def dtype_of(dtype: torch.dtype) -> mx.Dtype:
    """MLX's dtype of the same name."""
    made: mx.Dtype = getattr(mx, str(dtype).removeprefix("torch."))
    return made


def from_torch(tensor: torch.Tensor) -> mx.array:
    """A tensor of the host as an array of the same dtype, copied once."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype in _VIEWS:
        passed, dtype = _VIEWS[tensor.dtype]
        return mx.array(tensor.view(passed).numpy()).view(dtype)
    return mx.array(tensor.numpy())


def as_stored(array: mx.array) -> torch.Tensor:
    """An array as a tensor of the same dtype on the host, a copy: floats or whole numbers."""
    if array.dtype == mx.bfloat16:
        return torch.from_numpy(np.array(array.view(mx.int16))).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def to_torch(array: mx.array) -> torch.Tensor:
    """An array as a float32 tensor on the host, a copy; computed now if it has not been."""
    values: Any = array.astype(mx.float32)
    mx.eval(values)
    return torch.from_numpy(np.array(values))
