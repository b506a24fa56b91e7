"""The built-in language model: untrained and tiny, with the real token scheme and template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acestep.demo import make_folder
from acestep.demo.recipe import make_tokenizer, seed_weights
from acestep.lm.tokens import CODEBOOK_SIZE

RECIPE_VERSION = 3
SEED = 5

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""ChatML, the form of Qwen's templates."""


@dataclass(frozen=True)
class LmShape:
    """Widths of a Qwen3 language model; the defaults are the built-in one's.

    Attributes:
        text_tokens: size of the tokenizer before the audio codes are added.
        tied: whether input and output share their embedding.
    """

    hidden: int = 32
    layers: int = 1
    heads: int = 2
    kv_heads: int = 1
    head_dim: int = 32
    intermediate: int = 64
    text_tokens: int = 1024
    tied: bool = False

    def config(self, vocabulary: int) -> Any:
        """The model's configuration for so many tokens."""
        from transformers import Qwen3Config

        return Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=40960,
            tie_word_embeddings=self.tied,
            bos_token_id=None,
            eos_token_id=2,
            pad_token_id=0,
        )


def path(cache: Path) -> Path:
    """The folder of the built-in language model, made on first use.

    Args:
        cache: the folder that holds (or will hold) it.
    """
    target = cache / f"demo-lm-{RECIPE_VERSION}"
    if not target.is_dir():
        make_folder(target, build)
    return target


def build(folder: Path, shape: LmShape | None = None, seed: int = SEED) -> None:
    """Write a language model with random weights.

    Args:
        folder: where to write; made if it does not exist.
        shape: the widths.
        seed: every weight follows from it.
    """
    from transformers import Qwen3ForCausalLM

    shape = shape or LmShape()
    tokenizer = lm_tokenizer(shape.text_tokens)
    model = Qwen3ForCausalLM(shape.config(len(tokenizer)))
    seed_weights(model, seed, "lm")
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def lm_tokenizer(text_tokens: int) -> Any:
    """The demo's byte-level tokenizer with think tags, audio codes and a chat template."""
    from tokenizers import AddedToken

    tokenizer = make_tokenizer(text_tokens)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in ("<think>", "</think>")])
    codes = (f"<|audio_code_{number}|>" for number in range(CODEBOOK_SIZE))
    tokenizer.add_tokens([AddedToken(code, normalized=False, special=True) for code in codes])
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
