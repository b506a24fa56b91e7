"""Low-rank adapters of the diffusion transformer: made, stored, loaded, scaled, taken away."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from acestep.errors import CheckpointError, RequestError, first_line
from acestep.song.audio_files import replacing

if TYPE_CHECKING:
    import threading

NAME = "acestep"
"""The adapter's name inside the transformer; there is one at a time."""

# diffusers keeps the adapter's settings under this key of the file's header.
_METADATA = "lora_adapter_metadata"
_PREFIX = "transformer."


def add_adapter(
    transformer: Any, rank: int, alpha: float, targets: Sequence[str], seed: int
) -> None:
    """Give a transformer a new adapter that changes nothing yet, and make only it trainable.

    Args:
        transformer: a `diffusers.AceStepTransformer1DModel`.
        rank: of each layer's update.
        alpha: the update's scale is alpha / rank.
        targets: the layers' names, or how they end.
        seed: of the first factor; the second is zero.

    Raises:
        RequestError: the package peft is not installed.
    """
    peft = _peft()
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets))
    with torch.random.fork_rng(devices=[]):
        transformer.add_adapter(config, adapter_name=NAME)
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_A" in name:
            # From the host and the name, so that a seed means the same adapter everywhere.
            key = zlib.crc32(f"{seed}/{name}".encode())
            drawn = torch.rand(parameter.shape, generator=torch.Generator("cpu").manual_seed(key))
            bound = parameter.shape[1] ** -0.5
            parameter.data = (drawn * 2 * bound - bound).to(parameter.device)
        elif "lora_B" in name:
            parameter.data = parameter.data.float()


def save_adapter(transformer: Any, path: Path) -> None:
    """Write the adapter in diffusers' format, as one safetensors file under any name.

    Raises:
        RequestError: the file cannot be written there.
    """
    weights = {
        _PREFIX + name: value.detach().to("cpu").contiguous()
        for name, value in _peft().get_peft_model_state_dict(transformer, adapter_name=NAME).items()
    }
    settings = {
        _PREFIX + key: sorted(value) if isinstance(value, set) else value
        for key, value in transformer.peft_config[NAME].to_dict().items()
    }
    header = {"format": "pt", _METADATA: json.dumps(settings, sort_keys=True, default=str)}
    with replacing(path) as part:
        save_file(weights, part, metadata=header)


def read_adapter(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """Weights and settings in an adapter's file.

    Raises:
        RequestError: there is no such file.
        CheckpointError: it is not an adapter of this kind of transformer.
    """
    if path.is_dir():
        path = path / "pytorch_lora_weights.safetensors"
    if not path.is_file():
        raise RequestError(f"{path}: no such adapter file; train one with: acestep train")
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            settings = json.loads((file.metadata() or {}).get(_METADATA, "null"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not readable as an adapter ({first_line(error)}); it may be truncated"
        ) from None
    if not any("lora" in name for name in weights):
        raise CheckpointError(f"{path}: holds no LoRA weights")
    if not any(name.startswith(_PREFIX) for name in weights):
        weights = {_PREFIX + name: value for name, value in weights.items()}
        settings = settings and {_PREFIX + name: value for name, value in settings.items()}
    return weights, settings


class Adaptable(Protocol):
    """What an adapter is put on: something that runs a transformer and prepares from it."""

    transformer: Any

    def forget(self) -> None:
        """Drop what was prepared from the transformer's weights."""


class AdapterMixin:
    """What a handler does with an adapter; the base weights stay as they are, bit for bit."""

    if TYPE_CHECKING:
        _lock: threading.RLock

        @property
        def pipeline(self) -> Adaptable | None:
            """What is loaded, or None."""

    def load_lora(self, path: str | Path, scale: float = 1.0) -> None:
        """Load an adapter onto the transformer, in place of the one there.

        Args:
            path: a file, or a folder with `pytorch_lora_weights.safetensors`.
            scale: how much of it, 0 for none and 1 for all.

        Raises:
            RequestError: no checkpoint is loaded, no such file, or peft is not installed.
            CheckpointError: the file is damaged, or made for another transformer.
        """
        _peft()
        weights, settings = read_adapter(Path(path).expanduser())
        with self._lock:
            transformer = self._adapted()
            self.unload_lora()
            _check_fit(transformer, weights, Path(path))
            try:
                transformer.load_lora_adapter(
                    weights, prefix="transformer", adapter_name=NAME, metadata=settings
                )
            except (ValueError, RuntimeError, KeyError, TypeError) as error:
                self.unload_lora()
                raise CheckpointError(
                    f"{path}: does not fit this checkpoint ({first_line(error)})"
                ) from None
            transformer.eval().requires_grad_(False)
            self.set_lora_scale(scale)

    def set_lora_scale(self, scale: float) -> None:
        """Change how much of the loaded adapter is applied.

        Raises:
            RequestError: the scale is not a number from 0 to 4, or no adapter is loaded.
        """
        if not 0 <= scale <= 4:
            raise RequestError(f"LoRA scale {scale:g} is out of range; expected 0 to 4")
        with self._lock:
            transformer = self._adapted(loaded=True)
            transformer.enable_lora()
            transformer.set_adapters(NAME, scale)
            self._renewed()

    def disable_lora(self) -> None:
        """Switch the adapter off and keep it; `set_lora_scale` switches it on again.

        Raises:
            RequestError: no adapter is loaded.
        """
        with self._lock:
            self._adapted(loaded=True).disable_lora()
            self._renewed()

    def unload_lora(self) -> None:
        """Take the adapter away, if there is one."""
        with self._lock:
            transformer = self._adapted()
            if getattr(transformer, "peft_config", None):
                transformer.unload_lora()
                self._renewed()

    def _adapted(self, loaded: bool = False) -> Any:
        """The transformer; with `loaded`, one that has an adapter."""
        if self.pipeline is None:
            raise RequestError("no checkpoint is loaded; call initialize_service first")
        transformer = self.pipeline.transformer
        if loaded and not getattr(transformer, "peft_config", None):
            raise RequestError("no adapter is loaded; load one with load_lora or --lora")
        return transformer

    def _renewed(self) -> None:
        """What was prepared or recorded from the transformer before is made again."""
        if self.pipeline is not None:
            self.pipeline.forget()


def _check_fit(transformer: Any, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Refuse an adapter whose layers the transformer lacks or has at other widths."""
    for name, value in weights.items():
        layer, _, part = name.removeprefix(_PREFIX).partition(".lora_")
        try:
            base = transformer.get_submodule(layer)
        except AttributeError:
            raise CheckpointError(f"{path}: this checkpoint has no layer '{layer}'") from None
        width = {"A": base.in_features, "B": base.out_features}.get(part[:1])
        if width is not None and value.shape[0 if part.startswith("B") else 1] != width:
            raise CheckpointError(
                f"{path}: made for a transformer of another width ({layer} has {width})"
            )


def _peft() -> Any:
    """The package peft with the one name of its that is used from a submodule.

    Raises:
        RequestError: it is not installed.
    """
    try:
        import peft
    except ImportError:
        raise RequestError(
            "adapters need the package peft; install it with: pip install 'acestep[train]'"
        ) from None
    return peft
