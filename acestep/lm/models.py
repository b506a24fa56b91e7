"""Language models on disk: where they are, what they hold, and loading their tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acestep.checkpoint.files import read_json, weight_files
from acestep.checkpoint.folders import cache_dir, checkpoint_roots
from acestep.checkpoint.single.language import unpacked
from acestep.device import GIB, DevicePolicy
from acestep.errors import CheckpointError, RequestError, first_line
from acestep.gpu_config import LM_MEMORY_GB, GPUConfig

DEMO = "demo"
CODEBOOK_SIZE = 64000
"""Audio codes of ACE-Step 1.5: FSQ levels 8 * 8 * 8 * 5 * 5 * 5."""


@dataclass(frozen=True)
class AudioTokens:
    """Token ids that matter to the planner.

    Attributes:
        codes: id of `<|audio_code_N|>` at index N.
        think_open, think_close: ids of the tags of the block.
        end: id that ends a turn.
        text: ids below this make up all text, or None where codes and text are mixed.
    """

    codes: tuple[int, ...]
    think_open: int
    think_close: int
    end: int
    text: int | None

    @property
    def is_run(self) -> bool:
        """Whether the codes' ids follow each other."""
        return self.codes == tuple(range(self.codes[0], self.codes[0] + len(self.codes)))


def find(
    model: str | None, checkpoint_dir: str | Path | None = None, config: GPUConfig | None = None
) -> Path:
    """The folder of a language model.

    Args:
        model: a folder, the name of one in `checkpoint_dir` or in the checkpoint roots, or
            `demo`; None, empty or `auto` takes the largest that the memory tier allows.
        checkpoint_dir: searched first.
        config: the memory tier, for `auto`.

    Raises:
        CheckpointError: there is none of that name; the message says what to do.
    """
    name = (model or "auto").strip() or "auto"
    if name == DEMO:
        from acestep.lm import demo

        return demo.path(cache_dir())
    if name == "auto":
        allowed = config.available_lm_models if config else tuple(LM_MEMORY_GB)
        for candidate in reversed(allowed):
            if folder := _in_roots(candidate, checkpoint_dir):
                return folder
        return find(DEMO)
    folder = Path(name).expanduser()
    if folder.is_file():
        return unpacked(folder, cache_dir() / "language-models")
    found = folder if _is_model(folder) else _in_roots(name, checkpoint_dir)
    if found is None:
        hint = (
            f"fetch it with: hf download ACE-Step/{name} --local-dir checkpoints/{name}"
            if name in LM_MEMORY_GB
            else f"give a folder, or one of: {', '.join((DEMO, *LM_MEMORY_GB))}"
        )
        raise CheckpointError(f"no language model '{name}' on this machine; {hint}")
    return found


def is_demo(folder: Path) -> bool:
    """Whether a folder that `find` returned holds the built-in model."""
    return folder == find(DEMO)


def available(checkpoint_dir: str | Path | None = None) -> list[str]:
    """Names of the 5 Hz language models on this machine, the built-in `demo` last."""
    names = [
        folder.name
        for root in _roots(checkpoint_dir)
        if root.is_dir()
        for folder in sorted(root.iterdir())
        if "5hz-lm" in folder.name.lower() and _is_model(folder)
    ]
    return [*dict.fromkeys(names), DEMO]


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a language model.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # noqa: BLE001
        # The tokenizer libraries raise their own kinds, down to plain Exception.
        raise CheckpointError(
            f"{folder}: the tokenizer cannot be loaded ({first_line(error)})"
        ) from None


def audio_tokens(tokenizer: Any, folder: Path) -> AudioTokens:
    """The ids of the tokens that make a 5 Hz language model of a plain one.

    Raises:
        CheckpointError: some of them are missing.
    """
    vocabulary = tokenizer.get_vocab()
    names = [f"<|audio_code_{n}|>" for n in range(CODEBOOK_SIZE)]
    others = ["<think>", "</think>", "<|im_end|>"]
    missing = [name for name in (*others, *names) if name not in vocabulary]
    if missing:
        raise CheckpointError(
            f"{folder}: not a 5 Hz language model; its tokenizer has no {missing[0]}"
        )
    ids = [int(vocabulary[name]) for name in others]
    codes = tuple(int(vocabulary[name]) for name in names)
    # Added last, the codes are the end of the vocabulary, and text is all before them.
    at_end = min(codes) == len(vocabulary) - len(codes) and max(codes) == len(vocabulary) - 1
    return AudioTokens(codes, ids[0], ids[1], ids[2], min(codes) if at_end else None)


def check_memory(folder: Path, policy: DevicePolicy) -> None:
    """Refuse a model whose weights alone exceed the memory that is free.

    Raises:
        CheckpointError: the weights are missing.
        RequestError: they do not fit.
    """
    stored = sum(file.stat().st_size for file in weight_files(folder))
    itemsize = 4 if "32" in str(read_json(folder / "config.json").get("dtype")) else 2
    needed = stored / itemsize * policy.dtype_of("lm").itemsize / GIB
    if needed > policy.free_memory:
        raise RequestError(
            f"the language model {folder.name} needs {needed:.1f} GiB and {policy.name} has "
            f"{policy.free_memory:.1f} GiB free; use a smaller one, or offload where the device "
            "has memory of its own"
        )


def _in_roots(name: str, checkpoint_dir: str | Path | None) -> Path | None:
    folders = (root / name for root in _roots(checkpoint_dir))
    return next((folder for folder in folders if _is_model(folder)), None)


def _roots(checkpoint_dir: str | Path | None) -> list[Path]:
    first = [Path(checkpoint_dir).expanduser()] if checkpoint_dir else []
    return [*first, *checkpoint_roots(checkpoint_dir)]


def _is_model(folder: Path) -> bool:
    file = folder / "config.json"
    return file.is_file() and "vocab_size" in read_json(file)
