"""The built-in checkpoint's weights as files: as training leaves them, and as they are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from acestep.demo.captions import corpus
from acestep.demo.recipe import BUILTIN, make_pipeline, make_tokenizer

WEIGHTS = Path(__file__).parent / "weights"
"""The trained ones, in half precision."""

PARTS = {
    "vae": ("vae",),
    "transformer": ("transformer",),
    "conditioning": (
        "condition_encoder",
        "text_encoder",
        "audio_tokenizer",
        "audio_token_detokenizer",
    ),
}
"""File name to the modules of the pipeline that it holds."""


def start_pipeline(folder: Path | None = None) -> Any:
    """An untrained pipeline of the checkpoint's shape, float32 on the host.

    Args:
        folder: of an earlier call, whose tokenizer is taken; by default a new one is made.
    """
    from transformers import PreTrainedTokenizerFast

    if folder is None:
        return make_pipeline(BUILTIN, tokenizer=make_tokenizer(BUILTIN.vocabulary, corpus()))
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token=end, pad_token=end
    )
    return make_pipeline(BUILTIN, tokenizer=tokenizer)


def load_parts(pipeline: Any, folder: Path) -> None:
    """Put the weights of a folder into a pipeline's modules; absent files are passed over."""
    for name, modules in PARTS.items():
        file = folder / f"{name}.safetensors"
        if not file.is_file():
            continue
        weights = load_file(file)
        for module in modules:
            own = {
                key.removeprefix(f"{module}."): value.float()
                for key, value in weights.items()
                if key.startswith(f"{module}.")
            }
            target = getattr(pipeline, module)
            if "silence_frame" in own:
                frame = own.pop("silence_frame")
                target.silence_latent.copy_(frame.expand_as(target.silence_latent))
                own["silence_latent"] = target.silence_latent
            target.load_state_dict(own)


def save_parts(pipeline: Any, folder: Path, names: Sequence[str], dtype: torch.dtype) -> None:
    """Write some of `PARTS`; the latents of silence as the one frame they repeat."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        weights = {}
        for module in PARTS[name]:
            for key, value in getattr(pipeline, module).state_dict().items():
                kept = value.detach().to("cpu", dtype)
                if key == "silence_latent":
                    key, kept = "silence_frame", kept[0, 0].float()
                weights[f"{module}.{key}"] = kept.contiguous()
        save_file(weights, folder / f"{name}.safetensors")


def build_trained(folder: Path, weights: Path = WEIGHTS) -> None:
    """Write the trained checkpoint in diffusers layout.

    Args:
        folder: where to write; made if it does not exist.
        weights: folder that training left.
    """
    pipeline = start_pipeline(weights)
    load_parts(pipeline, weights)
    with without_bars():
        pipeline.save_pretrained(folder)


@contextmanager
def without_bars() -> Iterator[None]:
    """Within the block transformers draws no progress bars."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()
