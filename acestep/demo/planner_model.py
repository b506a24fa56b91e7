"""The built-in planner: a Qwen3 language model whose 64,000 audio codes are few embeddings.

A code is six digits. Its embedding is the sum of one embedding for each pair of them, so that
627 rows stand for 64,000, and the logits of a code know which digits go together. For use the
table is written out, and the model is an ordinary `Qwen3ForCausalLM`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from acestep.demo.parts import WEIGHTS

LEVELS = (8, 8, 8, 5, 5, 5)
"""Values of each digit of a code, the first changing fastest, as diffusers' quantizer counts."""

CODES = math.prod(LEVELS)
PAIRS = tuple(itertools.combinations(range(len(LEVELS)), 2))
TEXT_TOKENS = 1536
"""Rows of the vocabulary before the codes: control tokens and text."""

CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""The first tokens: padding, and the marks of a turn."""
END = CONTROLS.index("<|im_end|>")

FILE = WEIGHTS / "planner.safetensors"
"""The trained weights, in half precision."""
TOKENIZER = WEIGHTS / "planner_tokenizer.json"


@dataclass(frozen=True)
class PlannerShape:
    """Widths of the planner; the defaults are those of the one that ships.

    Attributes:
        text: rows of the vocabulary before the codes.
    """

    hidden: int = 192
    layers: int = 7
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    intermediate: int = 512
    text: int = TEXT_TOKENS

    def config(self, vocabulary: int | None = None) -> Any:
        """The configuration in transformers' words.

        Args:
            vocabulary: rows of the embedding; by default the whole table's.
        """
        from transformers import Qwen3Config

        return Qwen3Config(
            vocab_size=self.text + CODES if vocabulary is None else vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=40960,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=END if vocabulary is None else None,
            pad_token_id=0 if vocabulary is None else None,
        )


class Planner(nn.Module):
    """The planner as it is trained and stored.

    Attributes:
        text: `[text, hidden]`, embeddings of all tokens that are no codes.
        pairs: `[627, hidden]`, of each pair of digits.
        body: the layers, a `Qwen3Model` without its own table.
    """

    def __init__(self, shape: PlannerShape | None = None) -> None:
        from transformers import Qwen3Model

        super().__init__()
        self.shape = shape or PlannerShape()
        rows = sum(LEVELS[a] * LEVELS[b] for a, b in PAIRS)
        self.text = nn.Parameter(torch.empty(self.shape.text, self.shape.hidden))
        self.pairs = nn.Parameter(torch.empty(rows, self.shape.hidden))
        # The table is passed in; the model's own row is never read.
        self.body = Qwen3Model(self.shape.config(1))
        self.body.set_input_embeddings(nn.Identity())

    def initialise(self, seed: int) -> Planner:
        """Random weights, all from one seed; returns itself."""
        generator = torch.Generator().manual_seed(seed)
        depth = math.sqrt(2 * self.shape.layers)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if weight.ndim == 1:
                    weight.fill_(1.0)
                    continue
                scale = 0.02 / math.sqrt(len(PAIRS)) if name == "pairs" else 0.02
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    scale /= depth
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
        return self

    def table(self) -> torch.Tensor:
        """The embedding of every token, codes last, `[text + 64000, hidden]`."""
        width = self.shape.hidden
        # The last digit changes slowest: it comes first here.
        total = self.pairs.new_zeros(*reversed(LEVELS), width)
        sizes = [LEVELS[a] * LEVELS[b] for a, b in PAIRS]
        for (a, b), part in zip(PAIRS, torch.split(self.pairs, sizes), strict=True):
            shape = [1] * len(LEVELS) + [width]
            shape[len(LEVELS) - 1 - a], shape[len(LEVELS) - 1 - b] = LEVELS[a], LEVELS[b]
            total = total + part.view(shape)
        return torch.cat([self.text, total.reshape(CODES, width)])

    def forward(self, tokens: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """What the layers make of tokens `[rows, length]`: `[rows, length, hidden]`.

        Rows are padded at their ends, which nothing before can see.
        """
        embedded = nn.functional.embedding(tokens, table)
        made = self.body(
            inputs_embeds=embedded, attention_mask={"full_attention": None}, use_cache=False
        )
        hidden: torch.Tensor = made.last_hidden_state
        return hidden


def make_tokenizer(lines: Iterable[str], size: int) -> Any:
    """A byte-level tokenizer in which every digit is a token, so that numbers can be copied.

    Args:
        lines: the text to take its merges from.
        size: of its vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        # Spelled-out nonsense must not earn tokens of its own.
        min_frequency=20,
        special_tokens=list(CONTROLS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def save(planner: Planner, file: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write the weights as they are trained."""
    weights = planner.state_dict()
    kept = {name: w.detach().to("cpu", dtype).contiguous() for name, w in weights.items()}
    save_file(kept, file)


def load(file: Path, shape: PlannerShape | None = None) -> Planner:
    """The planner of a file, float32 on the host."""
    planner = Planner(shape)
    planner.load_state_dict({name: w.float() for name, w in load_file(file).items()})
    return planner.eval().requires_grad_(False)


def expanded(planner: Planner, dtype: torch.dtype = torch.float16) -> Any:
    """The same model as a `Qwen3ForCausalLM` with every code's own row."""
    from transformers import Qwen3ForCausalLM

    model = Qwen3ForCausalLM(planner.shape.config()).to(dtype)
    with torch.no_grad():
        weights: Mapping[str, torch.Tensor] = {
            f"model.{name}": weight for name, weight in planner.body.state_dict().items()
        } | {"model.embed_tokens.weight": planner.table()}
        absent, unknown = model.load_state_dict(weights, strict=False)
    assert absent == ["lm_head.weight"], absent
    assert not unknown, unknown
    model.tie_weights()
    return model.eval()
