"""Language models on disk: where they are, and whether they fit into memory."""

from __future__ import annotations

from pathlib import Path

from acestep.checkpoint.files import read_json, weight_files
from acestep.checkpoint.folders import cache_dir, checkpoint_roots
from acestep.checkpoint.held import held_in
from acestep.checkpoint.single.language import unpacked
from acestep.device import GIB, WEIGHT_BYTES, DevicePolicy
from acestep.errors import CheckpointError, RequestError
from acestep.gpu_config import LM_MEMORY_GB, GPUConfig

DEMO = "demo"

STORED_SMALL = "quantization"
"""The entry of a config that says in how few bits MLX's libraries have stored the weights."""

_MLX_BITS = (2, 3, 4, 5, 6, 8)


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
    found = folder if is_model(folder) else _in_roots(name, checkpoint_dir)
    if found is None and folder.is_dir():
        inside = sorted(part.name for part in folder.iterdir() if is_model(part))
        hint = f"name one in it: {', '.join(inside)}" if inside else "its config.json names none"
        raise CheckpointError(f"the folder {folder} is no language model; {hint}")
    if found is None:
        hint = (
            f"fetch it with: acestep download {name}"
            if name in LM_MEMORY_GB
            else f"give a folder, or one of: {', '.join((DEMO, *LM_MEMORY_GB))}"
        )
        raise CheckpointError(f"no language model '{name}' on this machine; {hint}")
    return found


def available(checkpoint_dir: str | Path | None = None) -> list[str]:
    """Names of the 5 Hz language models on this machine, the built-in `demo` last."""
    names = [
        folder.name
        for root in _roots(checkpoint_dir)
        if root.is_dir()
        for folder in sorted(root.iterdir())
        if "5hz-lm" in folder.name.lower() and is_model(folder)
    ]
    return [*dict.fromkeys(names), DEMO]


def check_memory(folder: Path, policy: DevicePolicy) -> None:
    """Refuse a model whose weights alone exceed the memory that is free.

    Raises:
        CheckpointError: the weights are missing.
        RequestError: they do not fit.
    """
    stored = sum(file.stat().st_size for file in weight_files(folder))
    needed = stored / GIB
    if stored_bits(folder) is None and held_in(folder / "config.json") is None:
        itemsize = 4 if "32" in str(read_json(folder / "config.json").get("dtype")) else 2
        # What embeds stays as it is: a quarter of the smaller models.
        small = WEIGHT_BYTES.get(policy.quantization or "")
        held = policy.dtype_of("lm").itemsize
        needed *= (held if small is None else 0.25 * held + 0.75 * small) / itemsize
    if needed > policy.free_memory:
        raise RequestError(
            f"the language model {folder.name} needs {needed:.1f} GiB and {policy.name} has "
            f"{policy.free_memory:.1f} GiB free; use a smaller one, or offload where the device "
            "has memory of its own"
        )


def stored_bits(folder: Path) -> int | None:
    """In how few bits a folder holds its weights, which MLX alone reads; None for whole ones.

    Raises:
        CheckpointError: its config says how, in no number of bits that there is.
    """
    file = folder / "config.json"
    entry = read_json(file).get(STORED_SMALL)
    if not isinstance(entry, dict) or "bits" not in entry:
        return None
    bits = entry["bits"]
    if not isinstance(bits, int) or bits not in _MLX_BITS:
        raise CheckpointError(f"{file}: weights in {bits!r} bits; expected one of {_MLX_BITS}")
    return bits


def _in_roots(name: str, checkpoint_dir: str | Path | None) -> Path | None:
    folders = (root / name for root in _roots(checkpoint_dir))
    return next((folder for folder in folders if is_model(folder)), None)


def _roots(checkpoint_dir: str | Path | None) -> list[Path]:
    first = [Path(checkpoint_dir).expanduser()] if checkpoint_dir else []
    return [*first, *checkpoint_roots(checkpoint_dir)]


def is_model(folder: Path) -> bool:
    """Whether a folder holds a language model."""
    file = folder / "config.json"
    return file.is_file() and "vocab_size" in read_json(file)
