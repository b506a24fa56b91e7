"""Load one transformers model from a folder, whole or not at all, and without its progress bar."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from acestep.corrections.empty_weights import without_storage
from acestep.errors import CheckpointError, first_line

# The libraries' bars are switched for the whole process.
_switching = threading.Lock()


def load_pretrained(
    auto: Any, folder: Path, what: str, dtype: torch.dtype, device: Any
) -> nn.Module:
    """The model of `folder` as the transformers class `auto` reads it, for inference only.

    Raises:
        CheckpointError: a file is damaged or does not fit its config; `what` names the part.
    """
    try:
        with _no_progress_bar():
            module, info = auto.from_pretrained(
                folder,
                dtype=dtype,
                device_map={"": device},
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # noqa: BLE001
        # Damaged files make the libraries raise their own kinds, down to plain Exception.
        raise CheckpointError(f"{folder}: {what} cannot be loaded ({first_line(error)})") from None
    for kind in ("missing_keys", "mismatched_keys"):
        if names := sorted(str(name) for name in info.get(kind, ())):
            raise CheckpointError(
                f"{folder}: the weights of {what} do not fit its config "
                f"({kind.replace('_', ' ')}: {', '.join(names[:3])})"
            )
    model: nn.Module = module.eval().requires_grad_(False)
    return model


def empty_pretrained(auto: Any, folder: Path, what: str) -> nn.Module:
    """The model that `folder`'s config describes, without storage for its parameters.

    Raises:
        CheckpointError: the config describes none; `what` names the part.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with without_storage():
            module: nn.Module = auto.from_config(config)
    except Exception as error:  # noqa: BLE001
        # Odd configs make the libraries raise their own kinds, down to plain Exception.
        raise CheckpointError(f"{folder}: {what} cannot be loaded ({first_line(error)})") from None
    return module.eval().requires_grad_(False)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled
    from transformers.utils import logging

    with _switching:
        # Switched off by the environment, the hub's bars warn when they are switched on.
        shown = logging.is_progress_bar_enabled() and not are_progress_bars_disabled()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            if shown:
                logging.enable_progress_bar()
