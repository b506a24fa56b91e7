"""The two models behind the page: loaded on demand, described in a line, let go again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from acestep.checkpoint import finding
from acestep.checkpoint.distilled import is_distilled
from acestep.checkpoint.kinds import TURBO_TASKS, tasks_of
from acestep.device import resolve
from acestep.errors import AceStepError, RequestError
from acestep.gpu_config import GPUConfig, get_gpu_config
from acestep.gradio_ui import adapters
from acestep.gradio_ui.settings import Choice

if TYPE_CHECKING:
    from acestep.handler import AceStepHandler
    from acestep.llm_inference import LLMHandler

Progress = Callable[..., None]


@dataclass(frozen=True)
class Abilities:
    """What there is to choose with a checkpoint.

    Attributes:
        tasks: what it can do.
        guided: whether it takes guidance; distilled ones do not.
        toy: whether it is the built-in one, which cannot sing.
        adapters: names of the adapters that can be put on it.
    """

    tasks: tuple[str, ...] = TURBO_TASKS
    guided: bool = False
    toy: bool = False
    adapters: tuple[str, ...] = ()


class Engines:
    """The handlers, made when they are first needed: importing them takes seconds.

    Args:
        dit: a handler to use, loaded or not; None makes one.
        llm: likewise for the language model.
        project_root: a folder whose `checkpoints` is searched first.
    """

    def __init__(
        self,
        dit: AceStepHandler | None = None,
        llm: LLMHandler | None = None,
        project_root: str | None = None,
    ) -> None:
        self._dit, self._llm, self.project_root = dit, llm, project_root
        self._lock = threading.Lock()
        self._adapted: tuple[str, float] = ("", 1.0)

    @property
    def dit(self) -> AceStepHandler:
        """The handler that makes music."""
        with self._lock:
            if self._dit is None:
                from acestep.handler import AceStepHandler

                self._dit = AceStepHandler()
            return self._dit

    @property
    def llm(self) -> LLMHandler:
        """The handler that plans it."""
        with self._lock:
            if self._llm is None:
                from acestep.llm_inference import LLMHandler

                self._llm = LLMHandler()
            return self._llm

    @property
    def dit_loaded(self) -> bool:
        """Whether music can be made now."""
        return self._dit is not None and self._dit.engine is not None

    @property
    def llm_loaded(self) -> bool:
        """Whether it can be planned now."""
        return self._llm is not None and self._llm.llm_initialized

    def load(self, choice: Choice, progress: Progress) -> None:
        """Load the checkpoint of a choice; on failure what was loaded stays.

        Raises:
            RequestError: the choice cannot be loaded here; the message says why.
        """
        policy = choice.policy()
        progress(0.0, desc="loading")
        self._adapted = ("", 1.0)
        self.dit.load(
            choice.model,
            policy,
            project_root=self.project_root,
            use_flash_attention=choice.flash_attention,
            offload=choice.offload,
            progress=progress,
        )

    def load_planner(self, choice: Choice, progress: Progress) -> None:
        """Load the language model of a choice.

        Raises:
            RequestError: there is none of that name, or it cannot run here.
        """
        policy = choice.policy()
        if not choice.lm_model:
            raise RequestError("no language model is chosen; choose one in the service panel")
        progress(0.0, desc="loading language model")
        self.llm.load(
            choice.lm_model,
            policy,
            checkpoint_dir=self.project_root,
            backend=choice.backend_on(policy),
            offload=choice.offload != "none" and not policy.unified_memory,
        )

    def adapt(self, name: str, scale: float) -> None:
        """Put an adapter on the loaded checkpoint, or take it off where the name is empty.

        Raises:
            RequestError: there is none of that name, or its scale is out of range.
            CheckpointError: it was made for another checkpoint.
        """
        wanted = (name, scale if name else 1.0)
        if wanted == self._adapted:
            return
        if not name:
            self.dit.unload_lora()
        elif name == self._adapted[0]:
            self.dit.set_lora_scale(scale)
        else:
            # A file that does not fit leaves none on.
            self._adapted = ("", 1.0)
            self.dit.load_lora(adapters.path_of(name, self.project_root), scale)
        self._adapted = wanted

    def unload(self) -> None:
        """Let both models go."""
        self._adapted = ("", 1.0)
        if self._dit is not None:
            self._dit.unload()
        if self._llm is not None:
            self._llm.unload()

    def lines(self) -> list[str]:
        """What is loaded where, a line each; empty when nothing is."""
        loaded = []
        if self._dit is not None and self._dit.engine is not None:
            loaded.append(self._dit.status())
        if self._llm is not None and self._llm.llm_initialized:
            llm = self._llm
            dtype = llm.policy.dtypes["lm"].name
            loaded.append(f"{llm.model_name} on {llm.device} ({dtype}, {llm.llm_backend})")
        return loaded

    def memory(self, device: str) -> tuple[float, float]:
        """Memory in use and in all, GiB, of the device that is loaded or else chosen."""
        dit = self._dit
        loaded = dit is not None and dit.engine is not None
        policy = dit.policy if dit is not None and loaded else resolve(device)
        return policy.total_memory - policy.free_memory, policy.total_memory

    def models(self) -> list[str]:
        """Checkpoints that can be chosen."""
        found = finding.local_checkpoints(self.project_root)
        return list(dict.fromkeys(["auto", *(c.name for c in found), "demo"]))

    def planners(self) -> list[str]:
        """Language models that can be chosen."""
        from acestep.lm.models import available

        return list(dict.fromkeys(["auto", *available(self.project_root)]))

    def tasks(self, model: str) -> tuple[str, ...]:
        """What the loaded checkpoint can do, or else the one that is chosen."""
        return self.abilities(model).tasks

    def abilities(self, model: str) -> Abilities:
        """What there is to choose with the loaded checkpoint, or else with the one chosen."""
        dit = self._dit
        found = tuple(adapters.found(self.project_root))
        if dit is not None and dit.engine is not None and dit.checkpoint is not None:
            turbo = dit.engine.traits.is_turbo
            return Abilities(dit.tasks, not turbo, dit.checkpoint.builtin, found)
        try:
            checkpoint = finding.find(model, self.project_root)
            distilled = is_distilled(checkpoint)
        except AceStepError:
            return Abilities(adapters=found)
        return Abilities(tasks_of(distilled), not distilled, checkpoint.builtin, found)

    @property
    def real_planner(self) -> bool:
        """Whether a language model is here that can write: any but the built-in one."""
        if self._llm is not None and self._llm.llm_initialized:
            return not self.toy_planner
        return any(name not in ("auto", "demo") for name in self.planners())

    @property
    def toy_planner(self) -> bool:
        """Whether the loaded language model is the built-in one."""
        return self._llm is not None and (self._llm.model_name or "").startswith("demo")


def limits_of(device: str) -> GPUConfig:
    """The tier of a device.

    Raises:
        RequestError: it is absent.
    """
    return get_gpu_config(policy=resolve(device))
