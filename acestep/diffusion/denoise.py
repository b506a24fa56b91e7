"""From noise to latents: the steps of the diffusion, whatever computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from acestep.device import DevicePolicy
from acestep.diffusion.conditions import Conditions
from acestep.diffusion.guidance import AngleGuidance, Guidance, ProjectedGuidance
from acestep.diffusion.schedule import Schedule
from acestep.engines.protocol import Array, Engine, Velocity
from acestep.errors import GenerationError
from acestep.song.request import Request

StepCallback = Callable[[int, int], None]
"""Called with (steps done, steps); may raise to stop."""


def denoise(
    engine: Engine, request: Request, conditions: Conditions, on_step: StepCallback
) -> Array:
    """Latents of a batch, `[batch, frames, channels]`.

    Args:
        engine: the checkpoint, within its `working`.
        request: steps, guidance and seeds.
        conditions: of the same request.
        on_step: called after each step.
    """
    schedule = Schedule.of(request, engine.traits.is_turbo)
    velocity = _Velocities(engine, request, conditions, schedule)
    channels, frames = engine.traits.channels, conditions.context.shape[1]
    drawn = [torch.Generator("cpu").manual_seed(seed) for seed in request.seeds]
    noise = engine.array(draw(drawn, frames, channels))
    state, keep = noise, _Keeper(engine, conditions, noise, len(schedule))
    for step in range(len(schedule)):
        now, then = schedule.span(step)
        change = velocity(state, step)
        if request.infer_method == "sde":
            # A state is (1 - t) x0 + t noise, and the velocity is noise - x0.
            clean = engine.advance(state, change, -now)
            state = (1 - then) * clean + then * engine.array(draw(drawn, frames, channels))
        else:
            state = engine.advance(state, change, then - now)
        state = keep.after_step(state, step, then)
        on_step(step + 1, len(schedule))
        engine.after_step()
    return keep.at_the_end(state)


def draw(generators: Sequence[torch.Generator], frames: int, channels: int) -> torch.Tensor:
    """Noise `[batch, frames, channels]` in float32, each item from its own seed on the host."""
    noise = [torch.randn((frames, channels), generator=generator) for generator in generators]
    return torch.stack(noise)


class _Velocities:
    """The velocity of a state at a step, under the condition that holds then."""

    def __init__(
        self, engine: Engine, request: Request, conditions: Conditions, schedule: Schedule
    ) -> None:
        self._engine, self._schedule = engine, schedule
        self._phases = [(conditions.encoded, conditions.context)]
        if conditions.plain is not None:
            self._phases.append(conditions.plain)
        # A cover of less than full strength goes on as plain text-to-music.
        self._switch = int(request.cover_strength * len(schedule))
        low, high = request.cfg_interval
        # Turbo checkpoints have guidance in their weights.
        scale = 1.0 if engine.traits.is_turbo else request.guidance_scale
        assert scale is not None, "a request is resolved before it is served"
        self._guided = [scale > 1 and low <= time <= high for time in schedule.times]
        kind = AngleGuidance if request.use_adg else ProjectedGuidance
        self._guide: Guidance = kind(engine, scale)
        self._made: dict[tuple[int, bool], Velocity] = {}

    def __call__(self, state: Array, step: int) -> Array:
        phase = 1 if len(self._phases) > 1 and step >= self._switch else 0
        guided, run = self._guided[step], self._run(phase, self._guided[step])
        if not guided:
            return run(state, step)
        both = run(self._engine.xp.concatenate([state, state], axis=0), step)
        half = state.shape[0]
        return self._guide(state, both[:half], both[half:], self._schedule.times[step])

    def _run(self, phase: int, guided: bool) -> Velocity:
        """What runs the transformer; made when it is first needed, for those of one size may
        have to share their place on the device."""
        if (phase, guided) not in self._made:
            encoded, context = self._phases[phase]
            if guided:
                nothing = self._engine.unconditional(encoded)
                encoded = self._engine.xp.concatenate([encoded, nothing], axis=0)
                context = torch.cat([context, context])
            self._made[phase, guided] = self._engine.velocity(
                encoded, context, self._schedule.times
            )
        return self._made[phase, guided]


class _Keeper:
    """Keeps what lies outside a repainted range to the source."""

    def __init__(self, engine: Engine, conditions: Conditions, noise: Array, steps: int) -> None:
        self._repaint = repaint = conditions.repaint
        if repaint is None or conditions.source is None:
            self._repaint = None
            return
        frames, rate = conditions.context.shape[1], engine.traits.frame_rate
        hard = torch.zeros(frames)
        hard[repaint.inside(frames, rate)] = 1.0
        soft = repaint.latent_mask(frames, rate)
        self._hard, self._soft = (engine.array(m[None, :, None]) for m in (hard, soft))
        self._source, self._noise = engine.array(conditions.source[None]), noise
        self._injections = repaint.injections(steps)

    def after_step(self, state: Array, step: int, time: float) -> Array:
        """The state with the source, at the noise of a time, outside the range."""
        if self._repaint is None or step >= self._injections:
            return state
        outside = time * self._noise + (1 - time) * self._source
        return self._hard * state + (1 - self._hard) * outside

    def at_the_end(self, latents: Array) -> Array:
        """The latents, fading into the source's."""
        if self._repaint is None:
            return latents
        return self._soft * latents + (1 - self._soft) * self._source


def check_latents(latents: torch.Tensor, policy: DevicePolicy) -> None:
    """Refuse latents `[batch, frames, channels]` that would become noise or silence.

    Raises:
        GenerationError: a value is NaN or infinite, or a whole item is zero.
    """
    peak = latents.abs().amax(dim=(1, 2)).float().cpu()
    if not torch.isfinite(peak).all():
        half, where = policy.dtype == torch.float16, policy.name
        cause = (
            "float16 overflows in this model; use --dtype bfloat16 or float32"
            if half
            else "the checkpoint may be damaged, or a kernel is wrong; try --dtype float32"
        )
        raise GenerationError(f"the diffusion gave NaN or infinite latents on {where}: {cause}")
    if not peak.all():
        raise GenerationError(
            f"the diffusion gave all-zero latents on {policy.name}: the checkpoint's weights may "
            "be empty; fetch it again"
        )
