"""Moves tensors between host and device, with gradients that go back where they came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from conformance.simulate import checks, operands
from conformance.simulate.device import DEVICE, HOST

if TYPE_CHECKING:
    from conformance.simulate.core import Core


def _copied(
    core: Core,
    tensor: torch.Tensor,
    device: torch.device,
    dtype: torch.dtype | None,
    memory_format: torch.memory_format | None,
) -> torch.Tensor:
    thread = core.thread
    before, thread.target = thread.target, device
    try:
        options: dict[str, Any] = {"dtype": dtype, "memory_format": memory_format}
        if operands.answer(type(tensor)):
            # Its own code is told where to, as it moves what it is made of.
            options["device"] = device
        # The function mode would take this for a call of the user's and forget the target.
        with torch._C.DisableTorchFunction():
            made: torch.Tensor = torch.ops.aten._to_copy(tensor, **options)
    finally:
        thread.target = before
    return made


class ToCopy(torch.autograd.Function):
    """A copy to the other device; its gradient is copied back."""

    @staticmethod
    def forward(
        ctx: Any,
        tensor: torch.Tensor,
        core: Core,
        device: torch.device,
        dtype: torch.dtype | None,
        memory_format: torch.memory_format | None,
    ) -> torch.Tensor:
        """Copies `tensor` to `device`, in `dtype` if given."""
        ctx.core, ctx.dtype, ctx.device, ctx.made = core, tensor.dtype, device, dtype
        return _copied(core, tensor, device, dtype, memory_format)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """The gradient in the dtype and on the device of the input."""
        (grad,) = grads
        back = HOST if ctx.device == DEVICE else DEVICE
        return move(ctx.core, grad, back, ctx.dtype), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """The tangent moves as the value does."""
        return move(ctx.core, tangents[0], ctx.device, ctx.made)


def move(
    core: Core,
    tensor: torch.Tensor,
    device: torch.device,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format | None = None,
) -> torch.Tensor:
    """`tensor` on `device` (HOST or DEVICE); itself where it is there already in that dtype.

    Raises TypeError for a dtype that the device lacks.
    """
    here = DEVICE if core.ledger.holds(tensor) else HOST
    if here == device:
        return tensor if dtype in (None, tensor.dtype) else tensor.to(dtype)
    if device == DEVICE:
        # Parameters of lazy modules answer no questions yet, and are moved all the same.
        with torch._C.DisableTorchFunctionSubclass():
            checks.check_dtype(dtype or tensor.dtype, core.machine)
            checks.check_layout(tensor, core.machine)
    if torch.is_grad_enabled() and tensor.requires_grad:
        moved: torch.Tensor = ToCopy.apply(  # type: ignore[no-untyped-call]
            tensor, core, device, dtype, memory_format
        )
        return moved
    return _copied(core, tensor, device, dtype, memory_format)
