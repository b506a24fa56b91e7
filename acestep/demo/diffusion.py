"""Trains the built-in checkpoint's transformer, its condition and its audio codes."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from acestep.corrections.masks import lean_masks
from acestep.demo.material import Drawn, Material
from acestep.demo.music import FRAME_RATE
from acestep.demo.steps import TrainingStep
from acestep.device import DevicePolicy

STEPS = 8
"""Steps of the sampler that the checkpoint is distilled for, at shift 1."""
GUIDANCE = 2.5
"""Classifier-free guidance that is distilled into the weights."""
SUBSTEPS = 3
"""Steps that the teacher takes for one of the student's."""

_TASKS = ("text2music", "repaint", "cover")
_REPAINTED = COVERED = 0.06
"""Share of the steps that repaint, and that follow audio codes unless more is asked for."""
_DROPPED = 0.1
_LYRICS = (
    "# Languages\nunknown\n\n# Lyric\n<|endoftext|>",
    "# Languages\nunknown\n\n# Lyric\n[Instrumental]<|endoftext|>",
    "# Languages\nen\n\n# Lyric\n<|endoftext|>",
)
_LYRIC_SHARES = (0.9, 0.06, 0.04)

Report = Callable[[dict[str, float]], None]


class _Given(NamedTuple):
    """What a step learns from: `[batch, ...]` each, `chances` even in 0 to 1, `[3, batch]`."""

    latents: torch.Tensor
    tokens: torch.Tensor
    context: torch.Tensor
    noise: torch.Tensor
    chances: torch.Tensor


class Network(nn.Module):
    """All that is trained beside the VAE, with the condition put together without padding.

    Args:
        pipeline: a `diffusers.AceStepPipeline`; its modules are used, not copied.
    """

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self.transformer = pipeline.transformer
        self.condition = pipeline.condition_encoder
        self.text = pipeline.text_encoder
        self.codes = pipeline.audio_tokenizer
        self.uncode = pipeline.audio_token_detokenizer
        device = pipeline.transformer.device
        lyrics = [pipeline.tokenizer(text)["input_ids"] for text in _LYRICS]
        self._lyrics = [torch.tensor([ids], device=device) for ids in lyrics]

    def conditions(self, tokens: torch.Tensor, lyric: int = 0) -> torch.Tensor:
        """`encoder_hidden_states` `[batch, tokens, width]`: lyrics, timbre, then the prompt.

        The same as the condition encoder's own output when no token is padding; lyrics and
        timbre, equal for the whole batch, are computed once.

        Args:
            tokens: prompts of one length, `[batch, tokens]`.
            lyric: which of the standing lyrics.
        """
        batch = len(tokens)
        # Without a mask of its own the model looks for several texts in a row, and waits for
        # the device to learn that there are none.
        read = self.text(input_ids=tokens, attention_mask={"full_attention": None}, use_cache=False)
        text = self.condition.text_projector(read.last_hidden_state)
        ids = self._lyrics[lyric]
        words = self.condition.lyric_encoder(
            inputs_embeds=self.text.get_input_embeddings()(ids),
            attention_mask=torch.ones_like(ids, dtype=torch.bool),
        )
        silence = self.condition.silence_latent[:, : 30 * FRAME_RATE]
        order = torch.zeros(1, dtype=torch.long, device=tokens.device)
        with _one_reference(self.condition.timbre_encoder) as encoder:
            timbre, _ = encoder(silence, order)
        parts = [words.expand(batch, -1, -1), timbre.expand(batch, -1, -1), text]
        return torch.cat([part.to(text.dtype) for part in parts], dim=1)

    def context(self, drawn: Drawn, random: np.random.Generator) -> torch.Tensor:
        """`context_latents` `[batch, frames, 2 * channels]` of a batch's task."""
        latents = drawn.latents
        frames = latents.shape[1]
        silence = self.condition.silence_latent[:, :frames].expand_as(latents)
        mask = torch.ones_like(latents)
        if drawn.task == "repaint":
            first = int(random.integers(0, frames * 3 // 4))
            last = int(random.integers(first + frames // 8, frames + 1))
            mask = torch.zeros_like(latents)
            mask[:, first:last] = 1.0
            silence = torch.where(mask > 0.5, silence, latents)
        elif drawn.task == "cover":
            with torch.no_grad():
                silence = self.recoded(latents)
        return torch.cat([silence, mask], dim=-1)

    def recoded(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents through the audio codes and back, `[batch, frames, channels]`."""
        frames = latents.shape[1]
        codes, _ = self.codes.tokenize(latents, self.condition.silence_latent)
        made: torch.Tensor = self.uncode(codes)[:, :frames]
        return made

    def dropped(self, conditions: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
        """Conditions with some items replaced by the learned empty one.

        Args:
            conditions: `[batch, tokens, width]`.
            chance: `[batch]`, even in 0 to 1.
        """
        return torch.where(chance[:, None, None] < _DROPPED, self.empty(conditions), conditions)

    def empty(self, conditions: torch.Tensor) -> torch.Tensor:
        """The learned condition for "nothing said", of the same shape."""
        null: torch.Tensor = self.condition.null_condition_emb
        return null.to(conditions.dtype).expand_as(conditions)

    def velocity(
        self,
        state: torch.Tensor,
        times: torch.Tensor,
        conditions: torch.Tensor,
        context: torch.Tensor,
    ) -> torch.Tensor:
        """The transformer's velocity, float32."""
        made: torch.Tensor = self.transformer(
            hidden_states=state,
            timestep=times,
            timestep_r=times,
            encoder_hidden_states=conditions,
            context_latents=context,
            return_dict=False,
        )[0]
        return made.float()


def train(
    network: Network,
    short: Material,
    long: Material,
    policy: DevicePolicy,
    *,
    seconds: float,
    batch: int = 128,
    rate: float = 1.5e-3,
    final: float = 0.05,
    seed: int = 2,
    distil: bool = False,
    covered: float = COVERED,
    keep_codes: bool = False,
    report: Report | None = None,
    report_every: int = 100,
) -> None:
    """Train for a while, then put the running average of the weights in place.

    Args:
        network: what is trained, in float32 on the policy's device.
        short: material of ten seconds.
        long: material to be cut to 5, 15, 20 and 30 seconds.
        policy: device and autocast.
        seconds: wall-clock time.
        batch: clips of ten seconds in a step; fewer where they are longer.
        rate: highest learning rate.
        final: share of it that is left at the end.
        seed: of everything random.
        distil: learn from the weights at the start, with guidance and `SUBSTEPS` times as
            many steps, what one of `STEPS` steps should do; else plain flow matching.
        covered: share of the steps that follow a piece's audio codes, as a planner's are followed.
        keep_codes: leave the codes as they are: a planner that was trained on them stays right.
        report: told losses every `report_every` steps.
    """
    lean_masks(network.transformer)
    quantizer = network.codes.quantizer
    network.train().requires_grad_(True)
    teacher = copy.deepcopy(network).requires_grad_(False).eval() if distil else None
    keep_codes = keep_codes or distil
    if keep_codes:
        # The codes are done; what the teacher knows of them stays as it is.
        network.codes.requires_grad_(False)
        network.uncode.requires_grad_(False)
    codes = {id(p) for module in (network.codes, network.uncode) for p in module.parameters()}
    weights = [p for p in network.parameters() if p.requires_grad]

    def losses(*given: torch.Tensor, lyric: int) -> dict[str, torch.Tensor]:
        if teacher is None:
            return _flow(network, policy, _Given(*given), lyric)
        return _distilled(network, teacher, policy, _Given(*given), lyric)

    main = _step(losses, [p for p in weights if id(p) not in codes], policy)
    coding = None
    if not keep_codes:
        coding = _step(
            lambda latents: _coded(network, policy, latents),
            [p for p in weights if id(p) in codes],
            policy,
        )
    host = np.random.default_rng(seed)
    random = torch.Generator(policy.device).manual_seed(seed)
    quantize = quantizer._quantize
    quantizer._quantize = lambda x: x + (quantize(x) - x).detach()
    started, done = time.perf_counter(), 0.0
    while done < 1.0:
        now = rate * min(1.0, (main.number + 1) / 200) * (final + (1 - final) * (1 - done))
        drawn = _draw(short, long, host, batch, covered)
        lyric = int(host.choice(len(_LYRICS), p=_LYRIC_SHARES))
        with policy.autocast():
            context = network.context(drawn, host)
        latents = drawn.latents
        noise = torch.randn(latents.shape, generator=random, device=policy.device)
        chances = torch.rand(3, len(latents), generator=random, device=policy.device)
        main(now, latents, drawn.tokens, context, noise, chances, lyric=lyric)
        if coding is not None and main.number % 4 == 1:
            coding(now, latents[:64])
        if main.number % 10 == 0:
            policy.synchronize()
        if main.number % report_every == 0 and report is not None:
            elapsed = time.perf_counter() - started
            row = main.report() | (coding.report() if coding is not None else {})
            report({"step": main.number, "elapsed": elapsed, **row})
        done = (time.perf_counter() - started) / seconds
    quantizer._quantize = quantize
    main.settle()
    if coding is not None:
        coding.settle()
    network.eval().requires_grad_(False)


def _step(losses: Any, weights: list[nn.Parameter], policy: DevicePolicy) -> TrainingStep:
    return TrainingStep(
        losses,
        weights,
        policy,
        betas=(0.9, 0.97),
        decay=0.01,
        clip=1.0,
        # A window that grows with the run, so that its first steps are soon forgotten.
        forget=0.002,
        window=10,
    )


def sample(
    network: Network,
    tokens: torch.Tensor,
    context: torch.Tensor,
    noise: torch.Tensor,
    policy: DevicePolicy,
    *,
    steps: int = STEPS,
    guidance: float = 1.0,
) -> torch.Tensor:
    """Latents by Euler steps from noise `[batch, frames, channels]`, as the pipeline takes them."""
    with torch.no_grad(), policy.autocast():
        conditions = network.conditions(tokens)
        state = noise
        for step in range(steps):
            times = torch.full((len(noise),), 1 - step / steps, device=noise.device)
            state = state - _guided(network, state, times, conditions, context, guidance) / steps
    return state


def _draw(
    short: Material, long: Material, host: np.random.Generator, batch: int, covered: float
) -> Drawn:
    task = str(host.choice(_TASKS, p=(1 - _REPAINTED - covered, _REPAINTED, covered)))
    if host.random() < 0.7:
        return short.draw(host, task, 10.0, batch)
    seconds = float(host.choice((5.0, 15.0, 20.0, 30.0), p=(0.25, 0.15, 0.2, 0.4)))
    return long.draw(host, task, seconds, max(1, int(batch * 10 / max(seconds, 8))))


def _flow(
    network: Network, policy: DevicePolicy, given: _Given, lyric: int
) -> dict[str, torch.Tensor]:
    """Distance of the velocity from that of straight lines."""
    latents, tokens, context, noise, (even, bell, dropped) = given
    # Mostly where the velocity is hard to tell, but the whole range, pure noise included.
    normal = math.sqrt(2) * torch.erfinv((2 * bell - 1).clamp(-0.9999, 0.9999))
    centred = torch.sigmoid(0.3 + normal)
    quarter = torch.arange(len(latents), device=latents.device) % 4 == 0
    times = torch.where(quarter, even, centred)
    t = times[:, None, None]
    with policy.autocast():
        conditions = network.dropped(network.conditions(tokens, lyric), dropped)
        made = network.velocity((1 - t) * latents + t * noise, times, conditions, context)
    return {"flow": functional.mse_loss(made, noise - latents)}


def _coded(
    network: Network, policy: DevicePolicy, latents: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Distance of latents from themselves through the audio codes and back."""
    with policy.autocast():
        made = network.recoded(latents)
    return {"codes": functional.mse_loss(made.float(), latents)}


def _guided(
    network: Network,
    state: torch.Tensor,
    times: torch.Tensor,
    conditions: torch.Tensor,
    context: torch.Tensor,
    guidance: float,
) -> torch.Tensor:
    if guidance == 1.0:
        return network.velocity(state, times, conditions, context)
    both = torch.cat([conditions, network.empty(conditions)])
    answer = network.velocity(state.repeat(2, 1, 1), times.repeat(2), both, context.repeat(2, 1, 1))
    told, untold = answer.chunk(2)
    return untold + guidance * (told - untold)


def _distilled(
    network: Network, teacher: Network, policy: DevicePolicy, given: _Given, lyric: int
) -> dict[str, torch.Tensor]:
    """Distance of the student's velocity from the teacher's mean one over a whole step."""
    latents, tokens, context, noise, chances = given
    times = (1 + (chances[0] * STEPS).floor().clamp(max=STEPS - 1)) / STEPS
    t = times[:, None, None]
    start = (1 - t) * latents + t * noise
    with policy.autocast():
        with torch.no_grad():
            told = teacher.conditions(tokens, lyric)
            state = start
            part = 1 / (STEPS * SUBSTEPS)
            for number in range(SUBSTEPS):
                now = times - number * part
                state = state - part * _guided(teacher, state, now, told, context, GUIDANCE)
            wanted = (start - state) * STEPS
        made = network.velocity(start, times, network.conditions(tokens, lyric), context)
    return {"distil": functional.mse_loss(made, wanted)}


@contextmanager
def _one_reference(encoder: Any) -> Iterator[Any]:
    """Within the block the timbre encoder knows that it hears one piece for each song.

    It counts them otherwise, and waits for the device to learn the number.
    """
    encoder.unpack_timbre_embeddings = lambda packed, order: (packed[:, None], order[:, None] == 0)
    try:
        yield encoder
    finally:
        del encoder.unpack_timbre_embeddings


def silence_frame(vae: Any, device: torch.device) -> torch.Tensor:
    """What the VAE makes of silence, away from the ends: one constant frame `[channels]`."""
    with torch.no_grad():
        mean = vae.encode(torch.zeros(1, 2, 96000, device=device)).latent_dist.mean
    frame: torch.Tensor = mean[0, :, mean.shape[-1] // 2].float()
    return frame


def parameters_of(modules: Iterable[nn.Module]) -> int:
    """How many weights some modules have."""
    return sum(p.numel() for module in modules for p in module.parameters())
