"""Adapters put on a transformer, scaled, switched off and taken away again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from acestep.checkpoint.adapters.layers import AdaptedLinear
from acestep.checkpoint.adapters.making import NAME, peft_package
from acestep.checkpoint.adapters.naming import updates_of
from acestep.checkpoint.adapters.reading import read
from acestep.checkpoint.adapters.updates import LowRank, Update
from acestep.errors import CheckpointError, RequestError, first_line

if TYPE_CHECKING:
    import threading

MAX_SCALE = 4


def has_adapter(transformer: Any) -> bool:
    """Whether an adapter is on the transformer, switched off or not."""
    return bool(getattr(transformer, "peft_config", None)) or any(_own_layers(transformer))


def put_on(transformer: Any, updates: dict[str, Update]) -> None:
    """Put updates on a transformer that has none.

    Args:
        transformer: a `diffusers.AceStepTransformer1DModel`.
        updates: by the layer's name; see `naming.updates_of`.
    """
    by_peft = {name: update for name, update in updates.items() if _fits_peft(update, updates)}
    _put_on_by_peft(transformer, by_peft)
    for name in updates.keys() - by_peft.keys():
        parent, _, leaf = name.rpartition(".")
        base = transformer.get_submodule(name)
        setattr(transformer.get_submodule(parent), leaf, AdaptedLinear(base, updates[name]))
    transformer.eval().requires_grad_(False)


def set_scale(transformer: Any, scale: float) -> None:
    """Apply this much of the adapter: none at 0, where the layers are the base layers again."""
    if getattr(transformer, "peft_config", None):
        if scale:
            transformer.enable_lora()
            transformer.set_adapters(NAME, scale)
        else:
            # A magnitude would still count at a scale of nothing.
            transformer.disable_lora()
    for layer in _own_layers(transformer):
        layer.set_scale(scale)


def take_off(transformer: Any) -> None:
    """Take the adapter away; the base weights are those of before, bit for bit."""
    if getattr(transformer, "peft_config", None):
        transformer.unload_lora()
    for name, layer in list(transformer.named_modules()):
        if isinstance(layer, AdaptedLinear):
            parent, _, leaf = name.rpartition(".")
            setattr(transformer.get_submodule(parent), leaf, layer.base_layer)


class Adapters(Protocol):
    """An engine's transformer, as far as adapters are concerned; one is on it at a time."""

    @property
    def transformer(self) -> nn.Module:
        """diffusers' module, whose layers say what an adapter fits; it may be empty."""
        ...

    def ready(self) -> None:
        """Refuse where a package is missing that adapters need.

        Raises:
            RequestError: names it.
        """
        ...

    def is_on(self) -> bool:
        """Whether there is one, switched off or not."""
        ...

    def put_on(self, updates: dict[str, Update]) -> None:
        """Put updates, by the layer's name, on a transformer that has none; a scale follows."""
        ...

    def set_scale(self, scale: float) -> None:
        """Apply this much of the adapter: none at 0, where the layers are the base layers again."""
        ...

    def take_off(self) -> None:
        """Take the adapter away; the base weights are those of before, bit for bit."""
        ...


class Adaptable(Protocol):
    """What runs a transformer of PyTorch and prepares from it."""

    transformer: Any

    def forget(self) -> None:
        """Drop what was prepared from the transformer's weights."""


class ModuleAdapters:
    """`Adapters` of a transformer of PyTorch.

    Args:
        owner: what was prepared or recorded from its transformer is made again after a change.
    """

    def __init__(self, owner: Adaptable) -> None:
        self._owner = owner

    @property
    def transformer(self) -> nn.Module:
        """The transformer itself."""
        found: nn.Module = self._owner.transformer
        return found

    def ready(self) -> None:
        """peft must be installed."""
        peft_package()

    def is_on(self) -> bool:
        """Whether there is one, switched off or not."""
        return has_adapter(self.transformer)

    def put_on(self, updates: dict[str, Update]) -> None:
        """Put updates on the transformer."""
        put_on(self.transformer, updates)

    def set_scale(self, scale: float) -> None:
        """Apply this much of the adapter."""
        set_scale(self.transformer, scale)
        self._owner.forget()

    def take_off(self) -> None:
        """Take the adapter away."""
        take_off(self.transformer)
        self._owner.forget()


class AdapterMixin:
    """What a handler does with an adapter; the base weights stay as they are, bit for bit."""

    if TYPE_CHECKING:
        _lock: threading.RLock
        engine: Any

    def load_lora(self, path: str | Path, scale: float = 1.0) -> None:
        """Load an adapter onto the transformer, in place of the one there.

        Args:
            path: a file, or a folder with one: LoRA, DoRA, LoKr or LoHa in the forms of PEFT,
                diffusers, ComfyUI, kohya and LyCORIS.
            scale: how much of it, 0 for none and 1 for all.

        Raises:
            RequestError: no checkpoint is loaded, its engine takes no adapters, no such file, or
                peft is not installed.
            CheckpointError: the file is damaged, or made for another transformer.
        """
        _check_scale(scale)
        adapter = read(Path(path).expanduser())
        with self._lock:
            adapters = self._adapters()
            adapters.ready()
            # Judged before the adapter there is taken away: a wrong file costs nothing.
            updates = updates_of(adapter, adapters.transformer)
            self.unload_lora()
            try:
                adapters.put_on(updates)
            except (ValueError, RuntimeError, KeyError, TypeError) as error:
                self.unload_lora()
                raise CheckpointError(
                    f"{path}: does not fit this checkpoint ({first_line(error)})"
                ) from None
            self.set_lora_scale(scale)

    def set_lora_scale(self, scale: float) -> None:
        """Change how much of the loaded adapter is applied.

        Raises:
            RequestError: the scale is not a number from 0 to 4, or no adapter is loaded.
        """
        _check_scale(scale)
        with self._lock:
            self._adapters(loaded=True).set_scale(scale)

    def disable_lora(self) -> None:
        """Switch the adapter off and keep it; `set_lora_scale` switches it on again.

        Raises:
            RequestError: no adapter is loaded.
        """
        with self._lock:
            self._adapters(loaded=True).set_scale(0.0)

    def unload_lora(self) -> None:
        """Take the adapter away, if there is one."""
        with self._lock:
            adapters = self._adapters()
            if adapters.is_on():
                adapters.take_off()

    def _adapters(self, loaded: bool = False) -> Adapters:
        """The transformer's adapters; with `loaded`, there is one."""
        if self.engine is None:
            raise RequestError("no checkpoint is loaded; call initialize_service first")
        adapters: Adapters | None = getattr(self.engine, "adapters", None)
        if adapters is None:
            name = type(self.engine).__name__
            raise RequestError(f"{name} takes no adapters; load the checkpoint with another engine")
        if getattr(self.engine, "quantization", None):
            raise RequestError(
                "adapters cannot be added to quantised weights; load the checkpoint without "
                "quantization"
            )
        if loaded and not adapters.is_on():
            raise RequestError("no adapter is loaded; load one with load_lora or --lora")
        return adapters


def _check_scale(scale: float) -> None:
    if not 0 <= scale <= MAX_SCALE:
        raise RequestError(f"LoRA scale {scale:g} is out of range; expected 0 to {MAX_SCALE}")


def _own_layers(transformer: nn.Module) -> list[AdaptedLinear]:
    return [layer for layer in transformer.modules() if isinstance(layer, AdaptedLinear)]


def _fits_peft(update: Update, updates: dict[str, Update]) -> bool:
    """Whether peft has a layer for an update: LoRA, whole adapters of it with magnitudes."""
    if not isinstance(update, LowRank):
        return False
    if update.magnitude is None:
        return all(other.magnitude is None for other in updates.values())
    return all(
        isinstance(other, LowRank)
        and other.magnitude is not None
        and tuple(other.magnitude.shape) == (other.shape[0], 1)
        for other in updates.values()
    )


def _put_on_by_peft(transformer: Any, updates: dict[str, Update]) -> None:
    chosen = {name: u for name, u in updates.items() if isinstance(u, LowRank)}
    if not chosen:
        return
    peft = peft_package()
    escaped = {name: re.escape(name) for name in chosen}
    config = peft.LoraConfig(
        r=1,
        lora_alpha=1.0,
        target_modules=list(chosen),
        rank_pattern={escaped[name]: update.rank for name, update in chosen.items()},
        alpha_pattern={
            escaped[name]: update.scale * update.rank for name, update in chosen.items()
        },
        use_dora=any(update.magnitude is not None for update in chosen.values()),
    )
    # The first factors are drawn, and replaced below.
    with torch.random.fork_rng(devices=[]):
        transformer.add_adapter(config, adapter_name=NAME)
    state: dict[str, torch.Tensor] = {}
    for name, update in chosen.items():
        state |= {f"{name}.lora_A.weight": update.down, f"{name}.lora_B.weight": update.up}
        if update.magnitude is not None:
            state[f"{name}.lora_magnitude_vector"] = update.magnitude[:, 0]
    result = peft.set_peft_model_state_dict(transformer, state, adapter_name=NAME)
    if result.unexpected_keys:
        raise ValueError(f"peft has no place for {result.unexpected_keys[0]}")
