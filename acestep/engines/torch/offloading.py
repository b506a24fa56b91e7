"""Modules that wait on the host until they are called."""

from __future__ import annotations

from torch import nn


def bring(module: nn.Module) -> None:
    """Move an offloaded module to its device before a part of it is called directly."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(module)
