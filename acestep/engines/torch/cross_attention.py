"""Reads cross-attention weights of chosen layers and heads out of diffusers' transformer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.nn import ModuleList

from acestep.engines.heads import HeadTable, checked_table


def capture_cross_attention(
    transformer: Any,
    inputs: Mapping[str, Any],
    heads: HeadTable,
    tokens: slice = slice(None),
) -> torch.Tensor:
    """Run the transformer up to the last chosen layer and keep the chosen heads' weights.

    Weights are computed beside the model's own attention, whose kernel (flash, sliding
    window, ...) therefore does not matter; layers after the last one needed do not run.
    Compiled models run eagerly meanwhile. The model is left as it was found, whatever
    happens; it must not be in use by another thread.

    Args:
        transformer: a `diffusers.AceStepTransformer1DModel`, compiled or not.
        inputs: the keyword arguments of its forward.
        heads: layer to heads, all of which must exist.
        tokens: which positions of `encoder_hidden_states` to keep; weights are normalised
            over all of them, as the model does.

    Returns:
        `[batch, heads, tokens, frames]`, float32, on the model's device; heads in the order
        of the table, frames of `patch_size` latent frames. Along tokens they add up to 1
        (to less if `tokens` leaves some out).

    Raises:
        RequestError: a layer or head does not exist; the message says how many there are.
    """
    model = getattr(transformer, "_orig_mod", transformer)
    table = checked_table(heads, (len(model.layers), model.layers[0].cross_attn.heads))
    with torch.no_grad(), _eager(model, transformer), _reading(model, table, tokens) as kept:
        model(**inputs, return_dict=False)
    return torch.cat([kept[layer] for layer in table], dim=1)


class _HeadReader:
    """An attention processor that notes the weights of some heads and then does as before."""

    def __init__(
        self,
        inner: Any,
        heads: Sequence[int],
        tokens: slice,
        kept: dict[int, torch.Tensor],
        layer: int,
    ) -> None:
        self.inner = inner
        self.heads = list(heads)
        self.tokens = tokens
        self.kept = kept
        self.layer = layer

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        self.kept[self.layer] = self._weights(
            attn, hidden_states, encoder_hidden_states, attention_mask
        )
        return self.inner(
            attn,
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            image_rotary_emb=image_rotary_emb,
        )

    def _weights(
        self, attn: Any, hidden: torch.Tensor, encoded: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Softmax weights `[batch, heads, tokens, frames]`, in float32, a head at a time.

        Cross-attention of this model has no rotary embedding; several query heads share
        one key head.
        """
        shared = attn.heads // attn.kv_heads
        query = attn.to_q(hidden).unflatten(-1, (attn.heads, attn.head_dim))
        key = attn.to_k(encoded).unflatten(-1, (attn.kv_heads, attn.head_dim))
        picked = []
        for head in self.heads:
            q = attn.norm_q(query[:, :, head]).float() * attn.scaling
            k = attn.norm_k(key[:, :, head // shared]).float()
            scores = q @ k.mT
            if mask is not None:
                scores = _masked(scores, mask)
            weights = scores.softmax(-1)[:, :, self.tokens]
            picked.append(weights.mT.contiguous())
        return torch.stack(picked, dim=1)


def _masked(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Scores `[batch, frames, tokens]` under a mask of `[batch, 1, 1 or frames, tokens]`,
    boolean (True is kept) or additive."""
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask[:, 0], -torch.inf)
    return scores + mask[:, 0].float()


@contextmanager
def _reading(model: Any, table: HeadTable, tokens: slice) -> Iterator[dict[int, torch.Tensor]]:
    """Readers in the chosen layers and no layers after them; everything back at the end."""
    kept: dict[int, torch.Tensor] = {}
    layers = model.layers
    before = {layer: layers[layer].cross_attn.processor for layer in table}
    try:
        for layer, heads in table.items():
            reader = _HeadReader(before[layer], heads, tokens, kept, layer)
            layers[layer].cross_attn.processor = reader
        # Shortening the list, unlike leaving the forward by an exception, lets hooks that
        # move modules between devices finish their work.
        model.layers = ModuleList(list(layers)[: max(table) + 1])
        yield kept
    finally:
        model.layers = layers
        for layer, processor in before.items():
            layers[layer].cross_attn.processor = processor


def _eager(model: Any, transformer: Any) -> AbstractContextManager[None]:
    """Compiled parts run as plain Python: tracing the readers would cost more than it gains."""
    compiled = transformer is not model or any(
        module._compiled_call_impl is not None for module in model.modules()
    )
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()
