"""A step of training, forward, backward and update, recorded where the device can."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from acestep.device import DevicePolicy

OFTEN = 1
"""Times that inputs of one shape come up before their step is recorded: making a recording
takes as long as a few steps."""

Losses = dict[str, torch.Tensor]

_STEPS = "steps of "


class TrainingStep:
    """Minimises the sum of some losses, and keeps running sums of them and of the weights.

    A small model's step is thousands of short kernels, so that a GPU waits for the host to
    launch them; a recording launches them at once. Recordings share their memory.

    Args:
        losses: of tensors; on a device that records it must not wait for it, nor draw from a
            generator of its own.
        weights: what is trained.
        policy: the device.
        betas: of AdamW.
        decay: of AdamW's weights.
        clip: largest norm of all gradients together.
        forget: least share of a step in the running average of the weights.
        window: step n has the share `window / (n + window)` while that is more.
    """

    def __init__(
        self,
        losses: Callable[..., Losses],
        weights: Sequence[nn.Parameter],
        policy: DevicePolicy,
        *,
        betas: tuple[float, float],
        decay: float,
        clip: float,
        forget: float,
        window: float,
    ) -> None:
        self._losses, self.weights, self._policy = losses, list(weights), policy
        self._clip, self._forget, self._window = clip, forget, window
        rate: Any = torch.zeros((), device=policy.device) if policy.records else 0.0
        self._optimizer = torch.optim.AdamW(
            self.weights,
            lr=rate,
            betas=betas,
            weight_decay=decay,
            fused=policy.is_accelerator,
            capturable=policy.records,
        )
        self._average = [p.detach().clone() for p in self.weights]
        self._sums: Losses = {}
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._recordings: dict[tuple[Any, ...], tuple[list[torch.Tensor], Callable[[], None]]] = {}
        self._pool = policy.recording_pool()
        self.number = 0

    def __call__(self, rate: float, *inputs: torch.Tensor, **options: Any) -> None:
        """Take one step.

        Args:
            rate: learning rate.
            inputs: for the losses, on the device.
            options: likewise, but no tensors: other values are another recording.
        """
        self._set_rate(rate)
        signature = (*(tuple(x.shape) for x in inputs), *sorted(options.items()))
        self._seen[signature] += 1
        if signature in self._recordings:
            places, replay = self._recordings[signature]
            for place, value in zip(places, inputs, strict=True):
                place.copy_(value)
            replay()
        elif self._seen[signature] <= OFTEN:
            self._run(inputs, options)
        else:
            self._record(signature, inputs, options)
            self._set_rate(rate)
            self._recordings[signature][1]()
        share = max(self._forget, self._window / (self.number + self._window))
        torch._foreach_lerp_(self._average, [p.detach() for p in self.weights], share)
        self.number += 1

    def report(self) -> dict[str, float]:
        """Mean of each loss over the steps since the last report that had it; waits for the device."""
        row = {
            name: float(total) / max(float(self._sums[_STEPS + name]), 1.0)
            for name, total in self._sums.items()
            if not name.startswith(_STEPS)
        }
        for total in self._sums.values():
            total.zero_()
        return row

    def settle(self) -> None:
        """Put the running average of the weights in their place."""
        for parameter, value in zip(self.weights, self._average, strict=True):
            parameter.data.copy_(value)

    def averages(self) -> list[torch.Tensor]:
        """The running averages of the weights, in their order."""
        return self._average

    def moments(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """AdamW's running means of each weight's gradient and of its square."""
        states = [self._optimizer.state[p] for p in self.weights]
        return [(state["exp_avg"], state["exp_avg_sq"]) for state in states]

    def resume(
        self,
        number: int,
        moments: Sequence[tuple[torch.Tensor, torch.Tensor]],
        averages: Sequence[torch.Tensor],
    ) -> None:
        """Go on from an earlier run, whose weights are in place already.

        Args:
            number: steps taken so far.
            moments, averages: what `moments` and `averages` gave.
        """
        self.number = number
        on_device = self._policy.is_accelerator
        for p, (mean, square) in zip(self.weights, moments, strict=True):
            count = torch.tensor(float(number), device=p.device if on_device else "cpu")
            self._optimizer.state[p] = {
                "step": count,
                "exp_avg": mean.to(p.device, p.dtype),
                "exp_avg_sq": square.to(p.device, p.dtype),
            }
        for kept, average in zip(self._average, averages, strict=True):
            kept.copy_(average)

    def _set_rate(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _record(
        self, signature: tuple[Any, ...], inputs: Sequence[torch.Tensor], options: dict[str, Any]
    ) -> None:
        places = [value.clone() for value in inputs]
        # The runs before a recording change no weight; AdamW's moments see this batch again.
        self._set_rate(0.0)
        kept = {name: total.clone() for name, total in self._sums.items()}
        replay = self._policy.captured(lambda: self._run(places, options), self._pool)
        for name, total in kept.items():
            self._sums[name].copy_(total)
        self._recordings[signature] = places, replay

    def _run(self, inputs: Sequence[torch.Tensor], options: dict[str, Any]) -> None:
        losses = self._losses(*inputs, **options)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        touched = [p for p in self.weights if p.grad is not None]
        nn.utils.clip_grad_norm_(touched, self._clip)
        self._optimizer.step()
        one = torch.ones((), device=self._policy.device)
        counts = {_STEPS + name: one for name in losses}
        for name, value in {**losses, **counts}.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros((), device=value.device)
            self._sums[name].add_(value.detach())
