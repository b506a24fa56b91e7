"""The models of one device: loaded when they are asked for, let go when memory is needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from acestep.device import BACKEND_CHOICES, GIB, resolve
from acestep.errors import RequestError
from acestep.server.options import ServerOptions

if TYPE_CHECKING:
    from pathlib import Path

    from acestep.device import DevicePolicy
    from acestep.handler import AceStepHandler
    from acestep.llm_inference import LLMHandler

Report = Callable[..., Any]

# What a song needs beside the weights; a model that is not in use makes room for it.
_WORKING_GIB = 2.0
_MOST_LOADED = 3


class Engines:
    """The handlers of a device, by the name of what they hold.

    Args:
        device: see `device.resolve`.
        options: of the service.
    """

    def __init__(self, device: str, options: ServerOptions) -> None:
        self.device, self.options = device, options
        self._music: dict[str, AceStepHandler] = {}
        self._planners: dict[tuple[str, str], LLMHandler] = {}
        # Two tasks at a time ask for models that are there.
        self._lock = threading.Lock()

    def has_music(self, name: str) -> bool:
        """Whether a checkpoint is loaded."""
        return name in self._music

    def has_planner(self, name: str, backend: str) -> bool:
        """Whether a language model is loaded; arguments as for `planner`."""
        return self._planner_key(name, backend) in self._planners

    def _planner_key(self, name: str, backend: str) -> tuple[str, str]:
        return name or self.options.lm_model, backend or self.options.lm_backend

    @property
    def policy(self) -> DevicePolicy:
        """The device.

        Raises:
            RequestError: it is not there.
        """
        options = self.options
        return resolve(self.device, quantization=options.quantize, engine=options.engine)

    def music(self, name: str, report: Report) -> AceStepHandler:
        """A handler with a checkpoint, the least recently used of others gone if need be.

        Raises:
            RequestError: the checkpoint cannot be loaded here.
        """
        with self._lock:
            if (known := self._music.pop(name, None)) is not None:
                self._music[name] = known
                return known
        from acestep.checkpoint import finding
        from acestep.console.terminal import quiet_libraries
        from acestep.handler import AceStepHandler

        quiet_libraries()
        policy = self.policy
        found = finding.find(name, self.options.checkpoint)
        self._make_room(policy, _gigabytes(found.path))
        handler = AceStepHandler()
        report(0.0, desc="loading")
        handler.load(
            name, policy, project_root=self.options.checkpoint, offload=self.options.offload,
            progress=report,
        )  # fmt: skip
        self._music[name] = handler
        return handler

    def planner(self, name: str, backend: str, report: Report) -> LLMHandler:
        """A handler with a language model.

        Args:
            name, backend: empty for the service's own.

        Raises:
            RequestError: it cannot be loaded here.
        """
        name, backend = self._planner_key(name, backend)
        if (known := self._planners.get((name, backend))) is not None:
            return known
        from acestep.llm_inference import LLMHandler
        from acestep.lm import models
        from acestep.lm.pt import PtBackend

        policy = self.policy
        engine = backend_on(policy, backend)
        # Nothing is let go for one that is not there.
        if name != "auto":
            models.find(name, self.options.checkpoint)
        report(0.0, desc="loading language model")
        handler = LLMHandler()
        # One is kept: language models are large, and few servers have several.
        for other in self._planners.values():
            other.unload()
        self._planners.clear()
        handler.load(
            name,
            policy,
            checkpoint_dir=self.options.checkpoint,
            backend=engine,
            offload=self.options.offload != "none" and not policy.unified_memory,
        )
        if self.options.ahead and isinstance(handler.backend, PtBackend):
            handler.backend.beside = True
        self._planners[name, backend] = handler
        return handler

    def close(self) -> None:
        """Let all of them go."""
        for handler in self._music.values():
            handler.unload()
        for planner in self._planners.values():
            planner.unload()
        self._music.clear()
        self._planners.clear()

    def _make_room(self, policy: DevicePolicy, gigabytes: float) -> None:
        needed = gigabytes + _WORKING_GIB
        while self._music and (
            len(self._music) >= _MOST_LOADED or policy.free_memory < needed
        ):  # the first is the least recently used
            self._music.pop(next(iter(self._music))).unload()


def backend_on(policy: DevicePolicy, backend: str) -> str:
    """The language model's engine on a device; empty lets the device decide.

    Raises:
        RequestError: the device cannot run the one asked for.
    """
    backend = backend or policy.lm_backend
    if backend not in BACKEND_CHOICES:
        raise RequestError(f"unknown backend '{backend}'; choose from {', '.join(BACKEND_CHOICES)}")
    if problem := policy.lm_backend_problem(backend):
        raise RequestError(
            f"the backend '{backend}' cannot be used on {policy.name}: "
            f"{problem}; choose {policy.lm_backend}"
        )
    return backend


def _gigabytes(path: Path) -> float:
    files = [path] if path.is_file() else path.rglob("*.safetensors")
    return sum(file.stat().st_size for file in files) / GIB
