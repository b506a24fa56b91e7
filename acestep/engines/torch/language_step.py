"""A Qwen3 language model's step by kernels of our own: its weights, buffers and launches."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from acestep.device import DevicePolicy
from acestep.engines.torch.addresses import places
from acestep.engines.torch.launching import Made, launch
from acestep.engines.torch.quantised import Quantised, joined

Weight = tuple[torch.Tensor, torch.Tensor | None]
"""Of a product, `[outputs, inputs]`; and where it is held in whole numbers the outputs' scales."""


@dataclass(frozen=True)
class Tile:
    """How a product is shared out.

    Attributes:
        rows: outputs of a program.
        depth: inputs that it reads at once.
        steps: how often it reads; a product of more inputs is split among programs.
        warps: of a program.
        stages: reads that are under way at a time.
    """

    rows: int
    depth: int
    steps: int
    warps: int
    stages: int = 3


TILES: Mapping[str, Tile] = {
    "joined": Tile(64, 512, 1, 4),
    "out": Tile(64, 512, 1, 4),
    "opened": Tile(32, 128, 16, 4, 4),
    "closed": Tile(64, 128, 6, 4, 4),
    "head": Tile(64, 128, 16, 4, 3),
}
"""Of queries, keys and values; of what attention heard; of the gate; of what passed it; of the
vocabulary. Measured on an H200 at the published shapes."""

WIDE_TILES: Mapping[str, Tile] = {**TILES, "opened": Tile(32, 128, 16, 4, 2)}
"""The same where so many slots take the room of the larger tile."""

WHOLE_TILES: Mapping[str, Tile] = {
    **TILES, "opened": Tile(32, 256, 4, 4), "closed": Tile(64, 256, 3, 4)
}  # fmt: skip
"""The same where weights are held in eight bits."""

_ALL = 1 << 16
READING_TILES: Mapping[str, Tile] = {
    "joined": Tile(128, 64, _ALL, 8, 4),
    "out": Tile(64, 64, _ALL, 4, 6),
    "opened": Tile(128, 64, _ALL, 8, 3),
    "closed": Tile(64, 64, _ALL, 8, 6),
    "head": TILES["head"],
}
"""The same where prompts are read: products that compute, and are not split."""

STRETCH = 64
"""Cached positions that the attention reads at once."""

SLOT_TILE = 128
"""Most slots of one program of a product."""

READ_TILE = 16
"""Slots of one program of the attention where prompts are read."""

_EMBED_WARPS, _ATTEND_WARPS = 4, 4


def fits(model: Any, tiles: Mapping[str, Tile] | None = None) -> bool:
    """Whether a model of transformers is one that the kernels compute, in sizes that divide."""
    tiles = tiles or TILES
    config = model.config
    if config.model_type != "qwen3" or config.hidden_act != "silu":
        return False
    if set(config.layer_types) != {"full_attention"}:
        return False
    linears = [part for layer in model.get_decoder().layers for part in _linears(layer)]
    kinds = {part.kind if isinstance(part, Quantised) else type(part) for part in linears}
    if kinds not in ({nn.Linear}, {"int8"}) or any(part.bias is not None for part in linears):
        return False
    heads, kv, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    hidden, inner = config.hidden_size, config.intermediate_size
    sizes = {
        "joined": ((heads + 2 * kv) * dim, hidden),
        "out": (hidden, heads * dim),
        "opened": (inner, hidden),
        "closed": (hidden, inner),
        "head": (0, hidden),
    }
    powers = (dim, kv, heads // kv)
    whole = all(
        outputs % tiles[name].rows == 0 and inputs % tiles[name].depth == 0
        for name, (outputs, inputs) in sizes.items()
    )
    return whole and all(n.bit_count() == 1 for n in powers) and _alike(tiles)


class LanguageWeights:
    """The weights of a Qwen3 model as the kernels read them.

    Joined weights replace the storage of the modules' own, so nothing is held twice.

    Args:
        model: of transformers, on its device; see `fits`.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config
        body = model.get_decoder()
        with torch.no_grad():
            self.layers = [_Layer(layer) for layer in body.layers]
        self.table = body.embed_tokens.weight
        self.eps = float(self.config.rms_norm_eps)
        gains = [layer.gain for layer in self.layers]
        self.next_gains = [*gains[1:], body.norm.weight]
        self._signature = places(body)

    def is_current(self, model: Any) -> bool:
        """Whether the model still has the weights, at the places, that were read here."""
        return model is self.model and places(model.get_decoder()) == self._signature

    @property
    def is_whole(self) -> bool:
        """Whether the weights are held in whole numbers."""
        return self.layers[0].out[1] is not None

    def rotary(self, length: int) -> torch.Tensor:
        """Cosines and sines of positions, float32 `[length, head_dim]`, half of each."""
        device = self.table.device
        positions = torch.arange(length, device=device)[None]
        like = torch.empty(0, dtype=torch.float32, device=device)
        cosines, sines = self.model.get_decoder().rotary_emb(like, positions)
        half = self.config.head_dim // 2
        return torch.cat([cosines[0, :, :half], sines[0, :, :half]], dim=1).contiguous()


def kernels() -> tuple[Any, Any]:
    """The kernels of the model's step, and those of the choice; Triton is loaded on first use."""
    names = ("_language_kernels", "_choice_kernels")
    step, choice = (importlib.import_module(f"acestep.engines.torch.{name}") for name in names)
    return step, choice


class Cache:
    """Keys and values of some sequences, each from its first place on.

    Attributes:
        keys, values: `[layers, sequences, kv_heads, length, head_dim]`.
    """

    def __init__(self, weights: LanguageWeights, sequences: int, length: int) -> None:
        config = weights.config
        shape = (len(weights.layers), sequences, config.num_key_value_heads, length)
        like = weights.table
        self.length = length
        self.keys = like.new_zeros(*shape, config.head_dim)
        self.values = torch.zeros_like(self.keys)
        self.table = weights.rotary(length)

    def repeat(self, origin: int, sequence: int, count: int) -> None:
        """Let a sequence have the first places of another one."""
        for held in (self.keys, self.values):
            held[:, sequence, :, :count].copy_(held[:, origin, :, :count])


class Pass:
    """The buffers and launches of a step of so many slots.

    Args:
        weights: of the model.
        cache: that the slots belong to.
        slots: how many, a power of two from 16 on.
        used: the first so many of them may be used.
        alone: no two slots that are used belong to the same sequence. Where they may, they are
            sorted by sequence, and those that are used come first.
        policy: the device.
        tiles: how products are shared out, `TILES` by default.

    Attributes:
        ids, positions, sequences: int32 `[slots]`: the token of each slot, its place in its
            sequence, and which that is; a slot at place -1 is not used.
        ready: `[slots, hidden]`: the residual stream times the last norm's gain.
        powers: float32 `[parts, slots]`: sums of its squares, by parts.
    """

    def __init__(
        self,
        weights: LanguageWeights,
        cache: Cache,
        slots: int,
        policy: DevicePolicy,
        *,
        used: int,
        alone: bool,
        tiles: Mapping[str, Tile] | None = None,
    ) -> None:
        self._weights, self._cache, self._slots, self._alone = weights, cache, slots, alone
        self._used, self._tile = used, slots if alone else min(slots, SLOT_TILE)
        self._tiles = tiles or TILES
        config, table = weights.config, weights.table
        self._heads, self._kv = config.num_attention_heads, config.num_key_value_heads
        self._dim, hidden = config.head_dim, config.hidden_size
        self._hidden, self._inner = hidden, config.intermediate_size
        self.ahead, self._made = policy.launches_ahead, Made()

        def numbers(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=table.device)

        self.placed = numbers(3, slots)
        self.ids, self.positions, self.sequences = self.placed.unbind()
        self.positions.fill_(-1)
        single, width = torch.float32, (self._heads + 2 * self._kv) * self._dim
        self.parts = hidden // self._tiles["closed"].rows
        self.stream = numbers(slots, hidden, dtype=single)
        self.ready = numbers(slots, hidden, dtype=table.dtype)
        self.powers = numbers(self.parts, slots, dtype=single)
        self._between = torch.zeros_like(self.powers)
        self._joined = numbers(slots, width, dtype=single)
        self._turns = numbers(slots, self._dim, dtype=single)
        self._heard = numbers(slots, self._heads * self._dim, dtype=table.dtype)
        self._opened = numbers(slots, self._inner, dtype=table.dtype)
        self._stretches = -(-cache.length // STRETCH) if alone else 0
        held = slots * self._heads * self._stretches * (self._dim + 2)
        self._stretch_parts = numbers(held, dtype=single)
        self._stretch_arrivals = numbers(slots * self._kv)
        self._partial, self._arrivals = numbers(1, dtype=single), numbers(1)

    def make_room(self, outputs: int) -> None:
        """Buffers for the parts of all products, that of the vocabulary's so many rows too."""
        most, blocks = 0, 0
        for name, size, inputs in (
            ("joined", self._joined.shape[1], self._hidden),
            ("out", self._hidden, self._heads * self._dim),
            ("opened", 2 * self._inner, self._hidden),
            ("closed", self._hidden, self._inner),
            ("head", outputs, self._hidden),
        ):
            tile = self._tiles[name]
            rows, splits = -(-size // tile.rows), _splits(tile, inputs)
            if splits > 1:
                most = max(most, rows * tile.rows * splits * self._slots)
            blocks = max(blocks, rows * (self._slots // self._tile))
        self._partial = self._partial.new_zeros(most)
        self._arrivals = self._arrivals.new_zeros(blocks)

    def __call__(self, layers: int | None = None) -> None:
        """All layers, or the first so many, for all slots."""
        weights, step = self._weights, kernels()[0]
        block = _power_of_two(self._hidden)
        launch(
            step.embed, (self._used,),
            self.ids, self.positions, weights.table, weights.layers[0].gain, self.stream,
            self.ready, self.powers, self._cache.table, self._turns, self._hidden, BLOCK=block,
            DIM=self._dim, AHEAD=self.ahead, **self._options(_EMBED_WARPS),
        )  # fmt: skip
        parts = 1
        for number, layer in enumerate(weights.layers[:layers]):
            self._product("joined", self.ready, layer.joined, self._joined, parts=parts)
            self._attend(number, layer)
            self._product(
                "out", self._heard, layer.out, self.ready, gain=layer.middle_gain,
                squares=self._between,
            )  # fmt: skip
            self._product(
                "opened", self.ready, layer.opened, self._opened, parts=self.parts,
                powers=self._between, gated=True,
            )  # fmt: skip
            self._product(
                "closed", self._opened, layer.closed, self.ready,
                gain=weights.next_gains[number], squares=self.powers,
            )  # fmt: skip
            parts = self.parts

    def head(self, weight: torch.Tensor, logits: torch.Tensor) -> None:
        """The scores of some tokens after every slot: float32 `[slots, tokens]`."""
        self._product("head", self.ready, (weight, None), logits, parts=self.parts)

    def _attend(self, number: int, layer: _Layer) -> None:
        step, cache, eps = kernels()[0], self._cache, self._weights.eps
        keys, values = cache.keys[number], cache.values[number]
        shared = {
            "HEADS": self._heads, "KV": self._kv, "DIM": self._dim, "AHEAD": self.ahead,
            **self._options(_ATTEND_WARPS),
        }  # fmt: skip
        if self._alone:
            launch(
                step.attend, (self._used, self._kv, self._stretches),
                self._joined, layer.query_gain, layer.key_gain, self._turns, keys, values,
                self.positions, self.sequences, self._heard, self._stretch_parts,
                self._stretch_arrivals, self._stretches, cache.length, self._dim**-0.5, eps,
                SPLIT=STRETCH, made=self._made, key="attend", **shared,
            )  # fmt: skip
            return
        launch(
            step.append, (self._used,),
            self._joined, layer.key_gain, self._turns, keys, values, self.positions,
            self.sequences, cache.length, eps, made=self._made, key="append", **shared,
        )  # fmt: skip
        launch(
            step.read, (self._used // READ_TILE, self._kv),
            self._joined, layer.query_gain, self._turns, keys, values, self.positions,
            self.sequences, self._heard, cache.length, self._dim**-0.5, eps,
            SPLIT=STRETCH, TILE=READ_TILE, made=self._made, key="read", **shared,
        )  # fmt: skip

    def _product(
        self,
        name: str,
        given: torch.Tensor,
        held: Weight,
        out: torch.Tensor,
        *,
        parts: int = 0,
        powers: torch.Tensor | None = None,
        gain: torch.Tensor | None = None,
        squares: torch.Tensor | None = None,
        gated: bool = False,
    ) -> None:
        step, tile = kernels()[0], self._tiles[name]
        weight, scales = held
        outputs, width = out.shape[1], weight.shape[1]
        if name == "head":
            outputs = weight.shape[0]
        splits = _splits(tile, width)
        kind = step.GATED if gated else step.JOINED if gain is not None else step.PLAIN
        launch(
            step.product, (-(-outputs // tile.rows) * splits, self._slots // self._tile),
            given, weight, weight if scales is None else scales, out, self.stream, self.ready if gain is None else gain,
            self.powers if powers is None else powers, parts,
            self.powers if squares is None else squares, self._partial, self._arrivals,
            self.positions, outputs, width, self._used, self._slots, self._weights.eps,
            MANY=self._slots > self._tile, SLOTS=self._tile, ROWS=tile.rows, DEPTH=tile.depth,
            STEPS=width // tile.depth // splits, SPLITS=splits,
            PARTS=_power_of_two(self.parts), EVEN=outputs % tile.rows == 0,
            NORMED=parts > 0, KIND=kind.value, WHOLE=scales is not None,
            AHEAD=self.ahead, made=self._made, key=name, **self._options(tile.warps, tile.stages),
        )  # fmt: skip

    def _options(self, warps: int, stages: int = 1) -> dict[str, Any]:
        options: dict[str, Any] = {"num_warps": warps, "num_stages": stages}
        if self.ahead:
            options["launch_pdl"] = True
        return options


class _Layer:
    """The weights of one layer: products, and the gains of its norms."""

    def __init__(self, layer: Any) -> None:
        own, mlp = layer.self_attn, layer.mlp
        self.joined = _joined(own.q_proj, own.k_proj, own.v_proj)
        self.out = _joined(own.o_proj)
        self.opened = _joined(mlp.gate_proj, mlp.up_proj)
        self.closed = _joined(mlp.down_proj)
        self.gain = layer.input_layernorm.weight
        self.middle_gain = layer.post_attention_layernorm.weight
        self.query_gain, self.key_gain = own.q_norm.weight, own.k_norm.weight


def _linears(layer: Any) -> list[Any]:
    own, mlp = layer.self_attn, layer.mlp
    attention = [own.q_proj, own.k_proj, own.v_proj, own.o_proj]
    return [*attention, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def _joined(*linears: Any) -> Weight:
    """The weights of layers over one input, which are parts of it from here on."""
    if isinstance(linears[0], Quantised):
        whole = joined(*linears) if len(linears) > 1 else linears[0]
        return whole.weight, whole.scale
    if len(linears) == 1:
        return linears[0].weight, None
    weight = torch.cat([linear.weight for linear in linears])
    sizes: list[int] = [linear.out_features for linear in linears]
    for linear, rows in zip(linears, torch.split(weight, sizes), strict=True):
        linear.weight.data = rows
    return weight, None


def _splits(tile: Tile, width: int) -> int:
    """Programs that share a row: as many as the tile has it, or fewer where that divides."""
    reads = width // tile.depth
    steps = min(tile.steps, reads)
    while reads % steps:
        steps -= 1
    return reads // steps


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()


def _alike(tiles: Mapping[str, Tile]) -> bool:
    """Whether both products that end in the residual stream leave its squares in as many parts."""
    return tiles["out"].rows == tiles["closed"].rows
