"""Makes a tiny random checkpoint out of a tree's own model classes, in the layout it loads."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from conformance.tree import PACKAGE, Absent, Blocked, Tree, first_line
from conformance.trees.missing import load

MUSIC = "acestep-v15-turbo"
TEXT = "Qwen3-Embedding-0.6B"
LANGUAGE = "acestep-5Hz-lm-1.7B"
WIDTH, LATENT, SILENCE_FRAMES = 64, 64, 3000
#: Sizes of everything that has one; a configuration takes those whose names it knows.
SMALL = {
    "hidden_size": WIDTH,
    "encoder_hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "encoder_intermediate_size": WIDTH,
    "inner_mlp_width": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "encoder_num_attention_heads": 4,
    "encoder_num_key_value_heads": 2,
    "head_dim": 16,
    "fsq_dim": WIDTH,
    "text_hidden_dim": WIDTH,
    "num_lyric_encoder_hidden_layers": 1,
    "num_timbre_encoder_hidden_layers": 1,
    "num_attention_pooler_hidden_layers": 1,
    "num_audio_decoder_hidden_layers": 1,
    "in_channels": 3 * LATENT,
    "timbre_fix_frame": 30,
    "vocab_size": 512,
    "is_turbo": True,
}
# (strides of the encoder, whose product is the samples a latent frame)
_STRIDES = (40, 48)
_NEEDED = ("einops", "vector_quantize_pytorch")


def make(tree: Tree, folder: Path) -> Path:
    """A `checkpoints` folder in `folder`: music model, VAE, text encoder and language model.

    Raises:
        Blocked: the tree's model classes, or a library they are made of, are not here.
    """
    module = _model_module(tree)
    checkpoints = folder / "checkpoints"
    with _made(f"a small {module}"):
        _music_model(tree, module, checkpoints / MUSIC)
        _vae(checkpoints / "vae")
        _qwen(checkpoints / TEXT, "Qwen3Model")
        _qwen(checkpoints / LANGUAGE, "Qwen3ForCausalLM")
    return checkpoints


def make_language_model(folder: Path) -> Path:
    """A `checkpoints` folder that holds a tiny random language model alone.

    Raises:
        Blocked: the libraries that it is made with cannot be used here.
    """
    checkpoints = folder / "checkpoints"
    with _made("a small language model"):
        _qwen(checkpoints / LANGUAGE, "Qwen3ForCausalLM")
    return checkpoints


@contextmanager
def _made(what: str) -> Iterator[None]:
    """Random weights of their own; that they cannot be made is nothing the tree has done."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            yield
        except Blocked:
            raise
        except Exception as error:
            told = f"needs weights: {what} cannot be made here"
            raise Blocked(f"{told}: {type(error).__name__}: {first_line(error)}") from error


def _model_module(tree: Tree) -> str:
    """The module of the model's classes, by name; the distilled variant before the others.

    Raises:
        Blocked: the tree's models come with its checkpoints.
    """
    names = [n.removeprefix(f"{PACKAGE}.") for n in tree.module_names()]
    models = [n for n in names if n.rpartition(".")[2].startswith("modeling_")]
    if not models:
        told = "the tree takes its model classes from a checkpoint, which it does not hold"
        raise Blocked(f"needs weights: {told}")
    models.sort(key=lambda name: ("turbo" not in name, "xl" in name, name))
    return models[0]


def _music_model(tree: Tree, name: str, to: Path) -> None:
    module = load(tree, name)
    _refuse_stand_ins(module)
    config_class = _config_class(module)
    known = inspect.signature(config_class.__init__).parameters
    # What a checkpoint's own file sets beyond the class's arguments goes by the same way.
    open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())
    config = config_class(**{k: v for k, v in SMALL.items() if open_ended or k in known})
    model_class = _model_class(module)
    model = model_class(config).float().eval()
    for parameter in model.parameters():
        if not torch.isfinite(parameter).all():
            torch.nn.init.normal_(parameter.data, std=0.02)
    model.save_pretrained(to)
    source = tree.root.joinpath(*f"{PACKAGE}.{name}".split(".")).with_suffix(".py")
    for file in source.parent.glob("*.py"):
        shutil.copy(file, to / file.name)
    description = to / "config.json"
    settings = json.loads(description.read_text(encoding="utf-8"))
    settings["auto_map"] = {
        "AutoConfig": f"{config_class.__module__.rpartition('.')[2]}.{config_class.__name__}",
        "AutoModel": f"{source.stem}.{model_class.__name__}",
    }
    settings["architectures"] = [model_class.__name__]
    description.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    # Not all zeros: whatever is divided by its length must have one.
    torch.save(0.1 * torch.randn(1, LATENT, SILENCE_FRAMES), to / "silence_latent.pt")


def _refuse_stand_ins(module: ModuleType) -> None:
    """A model cannot be made of stand-ins.

    Raises:
        Blocked: one of the libraries that models are made of is missing.
    """
    from conformance.trees.missing import Inert

    for value in vars(module).values():
        if isinstance(value, Inert):
            library = str(vars(value)["_library"])
            raise Blocked(f"needs {library}, of which the tree's model is made", library)


def _config_class(module: ModuleType) -> Any:
    for value in vars(module).values():
        ours = isinstance(value, type) and value.__module__.startswith(PACKAGE)
        if ours and value.__name__.endswith("Config"):
            return value
    raise Blocked("needs weights: the tree's model has no configuration class beside it")


def _model_class(module: ModuleType) -> Any:
    """The model that generates: the one class with such a method."""
    for value in vars(module).values():
        ours = isinstance(value, type) and value.__module__ == module.__name__
        if ours and any(name.startswith("generate_audio") for name in vars(value)):
            return value
    for value in vars(module).values():
        if isinstance(value, type) and value.__name__.endswith("GenerationModel"):
            return value
    raise Blocked("needs weights: which of the tree's classes is the whole model?")


def _vae(to: Path) -> None:
    from diffusers.models import AutoencoderOobleck

    vae = AutoencoderOobleck(
        encoder_hidden_size=4,
        downsampling_ratios=list(_STRIDES),
        channel_multiples=[1, 1],
        decoder_channels=2,
        decoder_input_channels=LATENT,
        audio_channels=2,
        sampling_rate=48000,
    )
    vae.save_pretrained(to)


def _qwen(to: Path, name: str) -> None:
    import transformers

    config = transformers.Qwen3Config(
        vocab_size=512,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    getattr(transformers, name)(config).save_pretrained(to)
    _tokenizer(to)


def _tokenizer(to: Path) -> None:
    """A tokenizer of bytes with Qwen's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*specials, *letters])}
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        eos_token=specials[2],
        pad_token=specials[0],
        additional_special_tokens=specials[1:2],
    )
    made.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{{ message['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    made.save_pretrained(to)


def has_models(tree: Tree) -> bool:
    """Whether a tree carries its model classes, and does not take them from a checkpoint."""
    try:
        return bool(_model_module(tree))
    except (Absent, Blocked):
        return False
