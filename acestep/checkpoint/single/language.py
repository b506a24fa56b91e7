"""A language model in a single file, as the folder that transformers and vLLM load."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from acestep.checkpoint.files import read_json, stored
from acestep.checkpoint.folders import checkpoint_roots
from acestep.checkpoint.single.configs import text_config
from acestep.checkpoint.single.loading import scaled
from acestep.checkpoint.single.parts import FLOATS, LANGUAGE, Part, parts_of
from acestep.demo import make_folder
from acestep.errors import CheckpointError

_SPARE_ROWS = 2048
"""Embeddings are padded by up to this many rows beyond the tokenizer's vocabulary."""

_CODE = "<|audio_code_0|>"


def unpacked(file: Path, cache: Path) -> Path:
    """A folder with the language model of a single file, made once and kept.

    Args:
        file: one with a language model alone, or all in one.
        cache: the folder that holds the folders made.

    Returns:
        the folder: config, weights in bfloat16, and the tokenizer of another 5 Hz language model.

    Raises:
        CheckpointError: it holds none, or no tokenizer that fits is found.
    """
    part = parts_of(file).get(LANGUAGE)
    if part is None:
        raise CheckpointError(f"{file}: holds no 5 Hz language model")
    state = file.stat()
    told = f"{file.resolve()} {state.st_size} {state.st_mtime_ns}"
    target = cache / f"{file.stem}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
    if not target.is_dir():
        tokenizer = _tokenizer(part)
        make_folder(target, lambda folder: _write(part, tokenizer, folder))
    return target


def _tokenizer(part: Part) -> Path:
    """The folder of a tokenizer with audio codes that fits the embeddings."""
    rows = part.shapes["embed_tokens.weight"][0]
    for folder in _folders(part.file):
        if not (folder / "tokenizer.json").is_file():
            continue
        ids = _ids(folder / "tokenizer.json")
        if _CODE in ids and rows - _SPARE_ROWS < max(ids.values()) + 1 <= rows:
            return folder
    raise CheckpointError(
        f"{part.file}: single files hold no tokenizer, and none of a 5 Hz language model with up "
        f"to {rows} tokens is beside it; fetch one with: hf download ACE-Step/acestep-5Hz-lm-0.6B "
        "--include '*token*' '*.jinja' --local-dir checkpoints/acestep-5Hz-lm-0.6B"
    )


def _ids(file: Path) -> dict[str, int]:
    """Ids by token, read as JSON: the tokenizer itself takes seconds over 64 thousand codes."""
    data = read_json(file)
    try:
        ids = {**data["model"]["vocab"], **{t["content"]: t["id"] for t in data["added_tokens"]}}
        return {str(token): int(number) for token, number in ids.items()}
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{file}: does not describe a tokenizer") from None


def _folders(file: Path) -> Iterator[Path]:
    yield file.absolute().parent
    for root in checkpoint_roots():
        if root.is_dir():
            yield from sorted(f for f in root.iterdir() if "5hz-lm" in f.name.lower())


def _write(part: Part, tokenizer: Path, folder: Path) -> None:
    folder.mkdir()
    head = part.prefix.removesuffix("model.") + "lm_head.weight"
    tied = head not in stored(part.file)
    config = {
        **text_config(part),
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "tie_word_embeddings": tied,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    for file in sorted(tokenizer.iterdir()):
        if (
            file.is_file() and ("token" in file.name or file.suffix in (".jinja", ".txt"))
        ) or file.name == "vocab.json":
            shutil.copy(file, folder)
    names = {f"model.{name}": name for name in part.tensors if name != "lm_head.weight"}
    _write_weights(part, names, None if tied else head, folder / "model.safetensors")


def _write_weights(part: Part, names: dict[str, str], head: str | None, path: Path) -> None:
    """bfloat16 weights, a tensor at a time: a header with every place, then the bytes."""
    shapes = {new: part.shapes[name] for new, name in names.items()}
    if head is not None:
        shapes["lm_head.weight"] = stored(part.file)[head].shape
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for new, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[new] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    converts = scaled(part)
    with safe_open(part.file, framework="pt") as tensors, path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for new in shapes:
            name = names.get(new)
            if name is not None and part.tensors[name].dtype not in FLOATS:
                raise CheckpointError(
                    f"{part.file}: '{name}' is stored as {part.tensors[name].dtype}, expected "
                    "bfloat16, float16, float32 or float8"
                )
            value = tensors.get_tensor(head if name is None else part.prefix + name)
            if name in converts:
                value = converts[name](value)
            out.write(value.to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
