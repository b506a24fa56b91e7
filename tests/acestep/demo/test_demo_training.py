"""Tests of the built-in checkpoint's training, in miniature: losses, tasks, weights on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from acestep.corrections.masks import lean_masks
from acestep.demo import autoencoder, diffusion, material, parts, steps, train
from acestep.demo.captions import Prompt, corpus
from acestep.demo.material import Drawn, Material
from acestep.demo.recipe import DemoShape, make_pipeline, make_tokenizer
from acestep.device import resolve
from conformance import simulate

SHAPE = DemoShape(
    latent=4,
    hidden=64,
    layers=2,
    text_hidden=64,
    vocabulary=600,
    condition_hidden=64,
    token_hidden=64,
    condition_layers=1,
    decoder_channels=4,
    multiples=(1, 1, 1, 2, 2),
)


class Ticks:
    """A clock that goes on by one second each time it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture(autouse=True)
def _ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a phase is so many steps and not so many seconds, whatever the machine."""
    for module in (autoencoder, diffusion, train):
        monkeypatch.setattr(module, "time", Ticks())


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer(600, corpus()[:300])


@pytest.fixture
def pipeline(tokenizer: Any) -> Any:
    return make_pipeline(SHAPE, tokenizer=tokenizer)


@pytest.fixture
def made(pipeline: Any) -> Material:
    pieces = material.songs(6, 10.0, seed=1)
    generator = torch.Generator().manual_seed(0)
    latents = 1.0 + 0.2 * torch.randn(6, 750, 4, generator=generator)
    lengths = (5.0, 10.0, 15.0, 20.0, 30.0)
    return Material(pieces, latents, pipeline.tokenizer, lengths, prompts=2, seed=3)


def test_the_condition_is_the_pipelines_own(pipeline: Any) -> None:
    network = diffusion.Network(pipeline)
    prompt = Prompt("calm piano", 100, "C major", "4")
    text, text_mask, lyrics, lyric_mask = pipeline.encode_prompt(
        [prompt.caption], [""], torch.device("cpu"), ["unknown"], 10.0, None, 100, "C major", "4"
    )
    with torch.no_grad():
        wanted, _ = pipeline.condition_encoder(
            text,
            text_mask,
            lyrics,
            lyric_mask,
            pipeline.condition_encoder.silence_latent[:, :750],
            torch.arange(1),
        )
        tokens = torch.tensor([pipeline.tokenizer(prompt.text(10))["input_ids"]] * 2)
        told = network.conditions(tokens)
    assert torch.allclose(told, wanted.expand(2, -1, -1), atol=1e-6)


def test_leaving_out_an_open_mask_changes_nothing(pipeline: Any) -> None:
    network = diffusion.Network(pipeline)
    inputs = (
        torch.randn(1, 40, 4),
        torch.tensor([0.5]),
        torch.randn(1, 6, 64),
        torch.randn(1, 40, 8),
    )
    with torch.no_grad():
        before = network.velocity(*inputs)
        lean_masks(network.transformer)
        assert torch.allclose(network.velocity(*inputs), before, atol=1e-6)


def test_both_phases_train(pipeline: Any, made: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        diffusion,
        "_draw",
        lambda short, long, host, batch, covered: short.draw(host, "text2music", 5.0, batch),
    )
    network, policy = diffusion.Network(pipeline), resolve("cpu")
    rows: list[dict[str, float]] = []

    def run(steps: int, distil: bool, keep_codes: bool = False) -> None:
        diffusion.train(
            network, made, made, policy, seconds=2 * steps, batch=1, rate=3e-2, distil=distil,
            keep_codes=keep_codes, report=rows.append, report_every=2,
        )  # fmt: skip

    start = {name: value.clone() for name, value in network.state_dict().items()}
    run(12, distil=False)
    flow = [row["flow"] for row in rows]
    assert min(flow[-2:]) < flow[0]
    assert not any(p.requires_grad for p in network.parameters())
    moved = [n for n, value in network.state_dict().items() if not torch.equal(value, start[n])]
    assert {name.split(".")[0] for name in moved} == {
        "transformer", "condition", "text", "codes", "uncode",
    }  # fmt: skip
    start = {name: value.clone() for name, value in network.state_dict().items()}
    run(3, distil=False, keep_codes=True)
    moved = [n for n, value in network.state_dict().items() if not torch.equal(value, start[n])]
    assert {name.split(".")[0] for name in moved} == {"transformer", "condition", "text"}
    rows.clear()
    run(4, distil=True)
    assert all(np.isfinite(row["distil"]) for row in rows)
    drawn = made.draw(np.random.default_rng(0), "text2music", 10.0, 2)
    context = network.context(drawn, np.random.default_rng(0))
    song = diffusion.sample(network, drawn.tokens, context, torch.randn(2, 250, 4), policy)
    assert song.shape == (2, 250, 4)
    assert torch.isfinite(song).all()


def test_contexts_of_the_tasks(pipeline: Any) -> None:
    network = diffusion.Network(pipeline)
    latents = torch.randn(2, 40, 4)
    silence = pipeline.condition_encoder.silence_latent[:, :40].expand_as(latents)
    random = np.random.default_rng(1)
    plain = network.context(Drawn(latents, torch.zeros(2, 3), "text2music"), random)
    assert torch.equal(plain, torch.cat([silence, torch.ones_like(latents)], -1))
    repaint = network.context(Drawn(latents, torch.zeros(2, 3), "repaint"), random)
    source, mask = repaint.chunk(2, dim=-1)
    assert 0 < float(mask.mean()) < 1
    assert torch.equal(source, torch.where(mask > 0.5, silence, latents))
    cover = network.context(Drawn(latents, torch.zeros(2, 3), "cover"), random)
    assert torch.equal(cover[..., :4], network.recoded(latents))


def test_the_vae_learns_and_keeps_its_encoder(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = material.songs
    monkeypatch.setattr(material, "songs", lambda count, seconds, seed: make(count, 1.5, seed))
    rows: list[dict[str, float]] = []
    policy = resolve("cpu")
    autoencoder.train(
        pipeline.vae, policy, seconds=4, songs=1, batch=1, report=rows.append, report_every=1
    )
    assert rows
    assert all(np.isfinite(value) for row in rows for value in row.values())
    encoder = {k: v.clone() for k, v in pipeline.vae.encoder.state_dict().items()}
    decoder = {k: v.clone() for k, v in pipeline.vae.decoder.state_dict().items()}
    autoencoder.train(pipeline.vae, policy, seconds=3, songs=1, batch=1, decoder_only=True)
    after = pipeline.vae.encoder.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in encoder.items())
    after = pipeline.vae.decoder.state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in decoder.items())


def test_the_encoder_hears_the_middle(pipeline: Any) -> None:
    """The same latents for one channel twice as before, and wherever things stand."""
    vae = pipeline.vae
    middle, side = torch.randn(2, 1, 9600, generator=torch.Generator().manual_seed(0))

    def latents(width: float) -> torch.Tensor:
        audio = torch.cat([middle + width * side, middle - width * side])[None]
        with torch.no_grad():
            mean: torch.Tensor = vae.encode(audio).latent_dist.mean
        return mean

    narrow, wide = latents(0.0), latents(1.0)
    assert not torch.allclose(narrow, wide, atol=1e-2)
    autoencoder.hear_the_middle(vae)
    assert torch.allclose(latents(0.0), narrow, atol=1e-5)
    assert torch.allclose(latents(1.0), narrow, atol=1e-5)


def test_only_the_beginning_of_a_piece_is_compared_from_its_first_sample() -> None:
    audio = torch.arange(1, 3 * 19200 + 1).float().reshape(1, 1, -1).repeat(1, 2, 1)
    random = torch.Generator().manual_seed(0)
    length = autoencoder.FRAMES * material.HOP
    segments, begins = autoencoder._segments(audio, 200, random)
    assert segments.shape == (200, 2, length)
    assert 0.05 < float(begins.float().mean()) < 0.5
    firsts = segments[:, 0, 1] / (segments[:, 0, 1] - segments[:, 0, 0])
    assert torch.equal(begins, firsts < 3)
    compared = autoencoder._compared(segments, begins)
    edge = 2 * material.HOP
    assert compared.shape[-1] == length - edge
    assert torch.equal(compared[begins], segments[begins][..., :-edge])
    assert not compared[~begins][..., :edge].any()
    assert torch.equal(compared[~begins][..., edge:], segments[~begins][..., edge:-edge])


def test_the_fused_activation_is_the_same() -> None:
    from diffusers.models.autoencoders.autoencoder_oobleck import Snake1d

    snake = Snake1d(3)
    snake.alpha.data.normal_()
    snake.beta.data.normal_()
    x = torch.randn(2, 3, 9)
    assert torch.allclose(autoencoder._snake(x, snake.alpha, snake.beta), snake(x), atol=1e-6)


def test_the_spectral_distance_orders_sounds() -> None:
    time = torch.arange(16000) / 48000
    tone = torch.sin(2 * torch.pi * 440 * time)[None]
    near, far = torch.sin(2 * torch.pi * 442 * time)[None], torch.randn(1, 16000)
    assert float(autoencoder.spectral_distance(tone, tone)) == 0
    distances = [float(autoencoder.spectral_distance(x, tone)) for x in (near, far)]
    assert distances[0] < distances[1]


def test_weights_are_stored_and_read(
    pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "BUILTIN", SHAPE)
    pipeline.tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    pipeline.condition_encoder.silence_latent.copy_(torch.arange(4.0).expand(1, 15000, 4))
    parts.save_parts(pipeline, tmp_path, list(parts.PARTS), torch.float32)
    other = parts.start_pipeline(tmp_path)
    other.transformer.proj_in_conv.weight.data.zero_()
    parts.load_parts(other, tmp_path)
    for name in [module for modules in parts.PARTS.values() for module in modules]:
        own = getattr(other, name).state_dict()
        for key, value in getattr(pipeline, name).state_dict().items():
            assert torch.equal(value, own[key]), (name, key)


def trained() -> tuple[torch.Tensor, dict[str, float], int]:
    """Weights, mean losses and recordings after twelve steps of a small layer."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 1)
    step = steps.TrainingStep(
        lambda x, *, scale: {"loss": (layer(x) * scale - 1).square().mean()},
        list(layer.parameters()),
        resolve("cpu"),
        betas=(0.9, 0.99),
        decay=0.1,
        clip=1.0,
        forget=0.01,
        window=2,
    )
    inputs = torch.Generator().manual_seed(1)
    for _ in range(12):
        step(0.1, torch.randn(4, 3, generator=inputs), scale=2.0)
    row = step.report()
    last = layer.weight.detach().clone()
    step.settle()
    assert not torch.equal(layer.weight, last), "the average is not the last weights"
    return last, row, len(step._recordings)


def test_a_recorded_step_is_the_same_as_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, losses, recordings = trained()
    assert recordings == 1, "inputs of one shape came up often"
    monkeypatch.setattr(steps, "OFTEN", 100)
    plain, same, recordings = trained()
    assert recordings == 0
    assert torch.equal(plain, recorded)
    assert losses == same
    assert 0 < losses["loss"] < 5


def test_no_step_waits_for_the_device(pipeline: Any, made: Material) -> None:
    """A recording cannot: whatever the host reads or sends would be that of the first time."""
    with simulate.mps(fallback=False) as simulation:
        policy = resolve("mps", dtype="float32")
        for module in pipeline.components.values():
            if isinstance(module, torch.nn.Module):
                module.to(policy.device)
        network = diffusion.Network(pipeline).requires_grad_(True)
        lean_masks(network.transformer)
        drawn = made.draw(np.random.default_rng(0), "text2music", 5.0, 2)
        latents, tokens = drawn.latents.to(policy.device), drawn.tokens.to(policy.device)
        context = network.context(
            Drawn(latents, tokens, drawn.task), np.random.default_rng(0)
        ).detach()
        noise = torch.randn_like(latents)
        chances = torch.rand(3, 2, device=policy.device)
        segment = torch.randn(1, 2, autoencoder.FRAMES * 1920, device=policy.device)
        begins = torch.ones(1, dtype=torch.bool, device=policy.device)
        code = torch.randn(1, 4, autoencoder.FRAMES, device=policy.device)
        given = diffusion._Given(latents, tokens, context, noise, chances)
        for losses in (
            lambda: diffusion._flow(network, policy, given, 1),
            lambda: diffusion._distilled(network, network, policy, given, 0),
            lambda: diffusion._coded(network, policy, latents),
            lambda: autoencoder._losses(
                pipeline.vae.requires_grad_(True), segment, begins, code, policy
            ),
        ):
            losses()  # makes what later runs find ready, as those before a recording do
            simulation.recorder.clear()
            torch.stack(list(losses().values())).sum().backward()
            assert not simulation.recorder.transfers
            assert sum(simulation.recorder.operators.values()) > 100
        pipeline.to("cpu")
