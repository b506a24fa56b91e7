"""Attention masks of diffusers' transformer, where training needs others than it makes."""

from __future__ import annotations

from typing import Any

import torch


def lean_masks(transformer: Any) -> None:
    """Give diffusers' ACE-Step transformer masks where they are needed, and only there.

    It then takes `encoder_attention_mask` `[batch, tokens]`, true where the condition says
    something, so that conditions of different lengths fit in one batch: what is masked counts
    for nothing, and the velocities are those of each item alone up to rounding. A sliding
    window that holds the whole song goes without its mask, which lets everything pass.

    Args:
        transformer: a `diffusers.AceStepTransformer1DModel`; changed for good.
    """
    told: list[torch.Tensor | None] = [None]

    def keep(module: Any, arguments: Any, keywords: dict[str, Any]) -> Any:
        mask = keywords.pop("encoder_attention_mask", None)
        told[0] = None if mask is None else mask[:, None, None, :]
        return arguments, keywords

    def across(module: Any, arguments: Any, keywords: dict[str, Any]) -> Any:
        keywords["attention_mask"] = told[0]
        return arguments, keywords

    def along(module: Any, arguments: Any, keywords: dict[str, Any]) -> Any:
        window = module.sliding_window
        if window is not None and keywords["hidden_states"].shape[1] <= window + 1:
            keywords["attention_mask"] = None
        return arguments, keywords

    transformer.register_forward_pre_hook(keep, with_kwargs=True)
    for layer in transformer.layers:
        layer.cross_attn.register_forward_pre_hook(across, with_kwargs=True)
        layer.self_attn.register_forward_pre_hook(along, with_kwargs=True)
