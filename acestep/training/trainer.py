"""`Trainer`: flow-matching training of a velocity model on one device or several."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from acestep.device import DevicePolicy, resolve
from acestep.errors import TrainingError, first_line
from acestep.training.configs import TrainingConfig
from acestep.training.flow import flow_loss, noise_levels
from acestep.training.log import LossLog
from acestep.training.state import RunState, load_state, save_state

Batch = dict[str, torch.Tensor]
"""`latents` `[batch, frames, channels]`, and `encoder_hidden_states` `[batch, tokens, width]`,
`context_latents` and `encoder_attention_mask` `[batch, tokens]` where the model takes them."""

Sampler = Callable[[int], None]

# A large odd number keeps the streams of neighbouring steps and processes apart.
_STREAM = 0x9E3779B1


@dataclass(frozen=True)
class Progress:
    """What a step did: its number from 0, mean loss, gradient norm, rate, and seconds."""

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    seconds: float


class Trainer:
    """Trains the weights of a model that require gradients.

    Autocast is that of the device and its dtype that of the policy; noise is drawn on the
    host, so that a step gives the same gradients on every device up to rounding.

    Args:
        model: a velocity model, see `flow.Velocity`; moved to the device.
        device: see `device.resolve`, or a policy to be used as it is.
        config: the settings.
        masked: the model takes `encoder_attention_mask`, see `masks.lean_masks`: clips whose
            conditions differ in length go through it together.

    Raises:
        DeviceError: the device is not here.
        RequestError: the device lacks the dtype.
    """

    def __init__(
        self,
        model: nn.Module,
        device: str | torch.device | DevicePolicy = "auto",
        config: TrainingConfig | None = None,
        *,
        masked: bool = False,
    ) -> None:
        self.config = config or TrainingConfig()
        self.masked = masked
        if isinstance(device, DevicePolicy):
            self.policy = device
        else:
            self.policy = resolve(device).for_training(self.config.dtype)
        self.model = model.to(self.policy.device)
        self.step = 0

    def training_step(self, batch: Batch, generator: torch.Generator | None = None) -> torch.Tensor:
        """The loss of one batch at random noise levels, a scalar to call `backward` on.

        Args:
            batch: see `Batch`; on any device.
            generator: on the host; by default that of the current step.
        """
        return self._loss(self.model, batch, generator or self._generator(0))

    def fit(
        self,
        clips: Sequence[Any],
        folder: Path,
        *,
        on_step: Callable[[Progress], None] | None = None,
        on_sample: Sampler | None = None,
    ) -> None:
        """Train until `config.steps` are done, continuing what `folder` holds.

        Args:
            clips: each has `batch(seconds, generator)`, which returns a `Batch` of one clip,
                cropped to so many seconds.
            folder: receives `loss.csv`, `tensorboard` and `state`.
            on_step: told of every step.
            on_sample: called with the number of steps done, every `config.sample_every`.

        Raises:
            TrainingError: the loss or a gradient is not finite, or memory ran out.
            RequestError: `folder` holds a run with other settings.
        """
        try:
            self._fit(clips, folder, on_step, on_sample)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"{self.policy.name} ran out of memory ({first_line(error)}); use a smaller batch "
                "with more accumulation, shorter crops or a lower rank"
            ) from None

    def trained(self) -> dict[str, torch.Tensor]:
        """The weights that are trained, by name, float32 on the host."""
        return {
            name: parameter.detach().to("cpu", torch.float32)
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }

    def _fit(
        self,
        clips: Sequence[Any],
        folder: Path,
        on_step: Callable[[Progress], None] | None,
        on_sample: Sampler | None,
    ) -> None:
        from accelerate import Accelerator

        config = self.config
        accelerator = Accelerator(cpu=not self.policy.is_accelerator, device_placement=False)
        folder.mkdir(parents=True, exist_ok=True)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        # Fused: an adapter is hundreds of small tensors, and elementwise steps on each of them
        # take longer to start than to run.
        optimizer = torch.optim.AdamW(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self._restore(folder, optimizer)
        model, prepared = accelerator.prepare(self.model, optimizer)
        log = LossLog(folder, self.step) if accelerator.is_main_process else None
        try:
            while self.step < config.steps:
                done = self._optimise(accelerator, model, prepared, parameters, clips)
                if log is not None:
                    log.write(vars(done))
                    if on_step is not None:
                        on_step(done)
                    self._keep(folder, optimizer, on_sample)
                accelerator.wait_for_everyone()
        finally:
            if log is not None:
                log.close()

    def _optimise(
        self,
        accelerator: Any,
        model: nn.Module,
        optimizer: Any,
        parameters: list[nn.Parameter],
        clips: Sequence[Any],
    ) -> Progress:
        """One step of the optimiser; `accumulate` forward passes."""
        config, started = self.config, time.perf_counter()
        rate = config.rate_at(self.step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        generator = self._generator(accelerator.process_index)
        order = self._indices(len(clips), accelerator.process_index, accelerator.num_processes)
        losses = []
        model.train()
        for part in range(config.accumulate):
            chosen = order[part * config.batch_size : (part + 1) * config.batch_size]
            cropped = [clips[i].batch(config.crop_seconds, generator) for i in chosen]
            batches = list(_grouped(cropped, self.masked))
            for number, (batch, share) in enumerate(batches):
                last = part == config.accumulate - 1 and number == len(batches) - 1
                with _synchronised(accelerator, model, last):
                    loss = self._loss(model, batch, generator)
                    accelerator.backward(loss * share / config.accumulate)
                losses.append(loss.detach() * share / config.accumulate)
        total = accelerator.reduce(torch.stack(losses).sum(), reduction="mean")
        length = accelerator.clip_grad_norm_(parameters, config.max_gradient_norm)
        # The one time in a step that the host waits for the device.
        mean, norm = torch.stack([total, length]).tolist()
        if not (math.isfinite(mean) and math.isfinite(norm)):
            raise TrainingError(
                f"the loss is {mean:g} and its gradient's norm {norm:g} at step {self.step}; use a "
                "lower learning rate, or float32"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.policy.between_steps()
        self.step += 1
        return Progress(self.step - 1, mean, norm, rate, time.perf_counter() - started)

    def _loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        config, device = self.config, self.policy.device
        shape = batch["latents"].shape
        times = noise_levels(shape[0], generator, config.time_shift).to(device)
        noise = torch.randn(shape, generator=generator).to(device)
        placed = {
            name: value.to(device, None if value.dtype == torch.bool else torch.float32)
            for name, value in batch.items()
        }
        latents = placed.pop("latents")
        with self.policy.autocast():
            return flow_loss(model, latents, noise, times, placed).mean()

    def _generator(self, process: int) -> torch.Generator:
        """The stream of the current step on one process, on the host."""
        number = (self.config.seed * _STREAM + self.step) * _STREAM + process
        return self.policy.generator(number % 2**63)

    def _indices(self, count: int, process: int, processes: int) -> list[int]:
        """Which clips this process takes in this step: a new shuffle for each pass over them."""
        config = self.config
        each = config.batch_size * config.accumulate
        start = (self.step * processes + process) * each
        shuffles: dict[int, list[int]] = {}
        chosen = []
        for position in range(start, start + each):
            turn, place = divmod(position, count)
            if turn not in shuffles:
                generator = self.policy.generator((config.seed * _STREAM + turn) % 2**63)
                shuffles[turn] = torch.randperm(count, generator=generator).tolist()
            chosen.append(shuffles[turn][place])
        return chosen

    def _restore(self, folder: Path, optimizer: torch.optim.Optimizer) -> None:
        state = load_state(folder / "state", self.config.plain())
        if state is None:
            return
        named = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in state.weights.items():
                named[name].copy_(value)
        optimizer.load_state_dict(state.optimizer)
        self.step = state.step

    def _keep(
        self, folder: Path, optimizer: torch.optim.Optimizer, on_sample: Sampler | None
    ) -> None:
        """Save and sample where it is time to."""
        config, last = self.config, self.step == self.config.steps
        if last or (config.save_every and self.step % config.save_every == 0):
            state = RunState(self.step, config.plain(), self.trained(), optimizer.state_dict())
            save_state(folder / "state", state)
        if on_sample is not None and config.sample_every and self.step % config.sample_every == 0:
            self.model.eval()
            on_sample(self.step)


def _grouped(batches: Sequence[Batch], masked: bool) -> Iterator[tuple[Batch, float]]:
    """Batches of one joined where their shapes agree, and each one's share of them all.

    A transformer attends to every token of its condition, so padding would change the result
    unless the model takes a mask; without, clips of different lengths go through it in turn.
    """
    groups: dict[tuple[torch.Size, ...], list[Batch]] = {}
    for batch in batches:
        shapes = tuple(
            value.shape
            for name, value in sorted(batch.items())
            if not (masked and name == "encoder_hidden_states")
        )
        groups.setdefault(shapes, []).append(batch)
    for group in groups.values():
        yield _joined(group), len(group) / len(batches)


def _joined(group: Sequence[Batch]) -> Batch:
    """Batches of one as one; shorter conditions are padded, and a mask says where."""
    joined = {
        name: torch.cat([batch[name] for batch in group])
        for name in group[0]
        if name != "encoder_hidden_states"
    }
    conditions = [b["encoder_hidden_states"][0] for b in group if "encoder_hidden_states" in b]
    if conditions:
        joined["encoder_hidden_states"] = pad_sequence(conditions, batch_first=True)
        lengths = [len(condition) for condition in conditions]
        if len(set(lengths)) > 1:
            places = torch.arange(max(lengths))
            joined["encoder_attention_mask"] = places < torch.tensor(lengths)[:, None]
    return joined


def _synchronised(accelerator: Any, model: nn.Module, last: bool) -> Any:
    """Exchange gradients between processes only after the last forward pass of a step."""
    import contextlib

    return contextlib.nullcontext() if last else accelerator.no_sync(model)
