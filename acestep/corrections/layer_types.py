"""Which layers of diffusers' ACE-Step modules attend through a window.

diffusers hands `layer_types` to the transformer and to the lyric encoder; the timbre encoder
alternates whatever is asked. In the original one list serves every stack of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn


def stacks(module: nn.Module) -> list[nn.Module]:
    """The parts of a module that hold numbered layers of attention."""
    return [
        part
        for part in module.modules()
        if isinstance(layers := getattr(part, "layers", None), nn.ModuleList)
        and all(hasattr(layer, "self_attn") for layer in layers)
    ]


def set_layer_types(
    module: nn.Module, kinds: Callable[[int], Sequence[str]], window: int | None
) -> None:
    """Make every stack of a module attend as its layers' kinds say.

    Args:
        module: a transformer, condition encoder, audio tokenizer or its inverse of diffusers.
        kinds: from a number of layers to their kinds, `sliding_attention` or `full_attention`.
        window: greatest distance at which tokens of a sliding layer see each other.
    """
    for stack in stacks(module):
        layers = stack.layers
        assert isinstance(layers, nn.ModuleList)
        chosen = list(kinds(len(layers)))
        # The one's list is public, the others' is not.
        for name in ("layer_types", "_layer_types"):
            if name in vars(stack):
                setattr(stack, name, chosen)
        for layer, kind in zip(layers, chosen, strict=True):
            attention = layer.self_attn
            # Typed as a tensor or a module by torch, and a number here.
            vars(attention)["sliding_window"] = window if kind == "sliding_attention" else None
