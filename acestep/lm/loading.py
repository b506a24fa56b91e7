"""Loading a language model: which engine, which folder, and both together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acestep.checkpoint.files import most_stored
from acestep.checkpoint.held import held_in
from acestep.device import BACKEND_CHOICES, DevicePolicy, with_engine
from acestep.errors import RequestError
from acestep.gpu_config import get_gpu_config
from acestep.lm import models
from acestep.lm.backend import Backend


@dataclass(frozen=True)
class Choice:
    """A model and its engine, found and allowed, but not loaded yet.

    Attributes:
        folder: the model's folder.
        engine: one of `BACKEND_CHOICES`.
        policy: the device, with the dtype of the model.
        note: a line for the user where the engine differs from the ideal.
        offload, compile_model: see `pt.PtBackend`.
    """

    folder: Path
    engine: str
    policy: DevicePolicy
    note: str | None
    offload: bool
    compile_model: bool

    @property
    def status(self) -> str:
        """One line: what is loaded where."""
        dtype = self.policy.dtypes["lm"].name
        held = f", {self.policy.quantization} weights" if self.policy.quantization else ""
        line = f"{self.folder.name} on {self.policy.name} ({dtype}{held}), backend {self.engine}"
        return f"{line}; {self.note}" if self.note else line

    def load(self) -> Backend:
        """The engine with the model in it; raises as `load` does."""
        return load(
            self.engine,
            self.folder,
            self.policy,
            offload=self.offload,
            compile_model=self.compile_model,
        )


def find(
    model: str | None,
    policy: DevicePolicy,
    *,
    checkpoint_dir: str | Path | None = None,
    backend: str | None = None,
    offload: bool = False,
    compile_model: bool = False,
) -> Choice:
    """What there is to load, refused here where the device or the installation lacks it.

    Args:
        model: which one, see `models.find`.
        policy: the device.
        checkpoint_dir: searched first.
        backend: the engine, see `choose`.
        offload, compile_model: see `pt.PtBackend`.

    Raises:
        RequestError: the device or installation lacks what is asked for.
        CheckpointError: see `models.find`.
    """
    if offload and policy.unified_memory:
        raise RequestError(
            f"offloading is pointless on {policy.name}: the host and the device share their "
            "memory; leave it out"
        )
    engine, note = choose(backend, policy)
    policy = with_engine(policy, "mlx" if engine == "mlx" else "torch")
    folder = models.find(model, checkpoint_dir, get_gpu_config(policy=policy))
    if engine != "mlx" and (bits := models.stored_bits(folder)):
        raise RequestError(
            f"{folder.name} is held in {bits} bits of MLX's; use --backend mlx, or the model that it "
            "was made of"
        )
    stored = most_stored(folder)
    if (held := held_in(folder / "config.json")) is not None:
        if engine == "vllm" and (backend or "auto").strip().lower() == "vllm":
            raise RequestError(
                f"{folder.name} is held in {held.kind}, which vLLM does not read; use --backend pt"
            )
        engine = "pt" if engine == "vllm" else engine
        policy, stored = held.agreed(folder.name, policy), held.stored
    return Choice(folder, engine, policy.for_weights(stored), note, offload, compile_model)


def choose(requested: str | None, policy: DevicePolicy) -> tuple[str, str | None]:
    """The engine for a device, and a line for the user where it differs from the ideal.

    Args:
        requested: one of `BACKEND_CHOICES`; None, empty or `auto` lets the device decide.
        policy: the device.

    Raises:
        RequestError: the engine is unknown, or the device or installation lacks it.
    """
    wanted = (requested or "auto").strip().lower()
    if policy.quantization and wanted in ("auto", "vllm"):
        if wanted == "vllm":
            raise RequestError(
                "vLLM holds weights in its own ways; leave out --quantize, or use pt"
            )
        return "mlx" if policy.lm_backend == "mlx" else "pt", None
    if wanted == "auto":
        missing = policy.lm_backend == "pt" and policy.prefers_vllm
        note = "vLLM is not installed: the language model uses pt" if missing else None
        return policy.lm_backend, note
    if wanted not in BACKEND_CHOICES:
        raise RequestError(f"unknown backend '{wanted}'; choose from {', '.join(BACKEND_CHOICES)}")
    if problem := policy.lm_backend_problem(wanted):
        raise RequestError(
            f"the backend '{wanted}' cannot be used on {policy.name}: "
            f"{problem}; use {policy.lm_backend}"
        )
    return wanted, None


def load(name: str, folder: Path, policy: DevicePolicy, **options: Any) -> Backend:
    """Load a model into an engine that `choose` returned.

    Args:
        options: `offload` and `compile_model`, see `pt.PtBackend`; vLLM places and compiles
            by itself and ignores them, and MLX has nothing to place.

    Raises:
        CheckpointError: the folder does not hold a 5 Hz language model.
        RequestError: the model does not fit into the device's memory.
    """
    if name == "vllm":
        from acestep.lm.vllm import VllmBackend

        return VllmBackend(folder, policy)
    if name == "mlx":
        from acestep.lm.mlx import MlxBackend

        return MlxBackend(folder, policy)
    from acestep.lm.pt import PtBackend

    return PtBackend(folder, policy, **options)
