"""The built-in language model: small, with the real token scheme and template.

It is trained on what the built-in checkpoint knows (`training.planner`); random weights of any
shape are for tests and benchmarks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acestep.demo import make_folder, planner_model
from acestep.demo.parts import without_bars
from acestep.demo.recipe import make_tokenizer, seed_weights
from acestep.lm.tokens import CODEBOOK_SIZE

RECIPE_VERSION = 5
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
    """Widths of a Qwen3 language model with random weights; the defaults are the smallest.

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
        make_folder(target, build_trained)
    return target


def build_trained(folder: Path, weights: Path = planner_model.FILE) -> None:
    """Write the trained language model, with a row for every code.

    Args:
        folder: where to write; made if it does not exist.
        weights: file that training left.
    """
    with without_bars():
        planner_model.expanded(planner_model.load(weights)).save_pretrained(folder)
    planner_tokenizer().save_pretrained(folder)


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
    return _with_controls(make_tokenizer(text_tokens))


def planner_tokenizer(file: Path = planner_model.TOKENIZER, *, codes: bool = True) -> Any:
    """The trained language model's tokenizer.

    Args:
        file: its text tokens.
        codes: whether to add the audio codes, which takes a second or two.
    """
    from transformers import PreTrainedTokenizerFast

    pad, _, end = planner_model.CONTROLS
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), pad_token=pad, eos_token=end)
    return _with_controls(tokenizer, codes)


def _with_controls(tokenizer: Any, codes: bool = True) -> Any:
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in ("<think>", "</think>")])
    if codes:
        names = (f"<|audio_code_{number}|>" for number in range(CODEBOOK_SIZE))
        tokenizer.add_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
